"""The sides run, and what they took is measured of them and of nobody else."""

import os
import sys
from pathlib import Path

import pytest
from samples import SAMPLES
from sides import Cost, Place, Podlift, Restic, run, sides
from storages import storage

from tests.support.restic import binaries

MIB = 1 << 20


def measured(statement: str) -> Cost:
    return run([sys.executable, "-S", "-c", statement], dict(os.environ))


def test_memory_is_that_of_the_program_and_not_of_who_started_it() -> None:
    held = bytearray(os.urandom(1)) * (100 * MIB)
    light = measured("import time; time.sleep(0.3)")
    assert light.rss_mib < len(held) / MIB
    assert light.wall_seconds >= 0.3 > light.cpu_seconds
    assert light.resident
    heavy = measured("import time; x = b'x' * (200 << 20); time.sleep(0.3)")
    assert 200 < heavy.rss_mib < 300
    assert max(mib for _, mib in heavy.resident) > 200


def test_cpu_is_counted() -> None:
    busy = "import time\nwhile time.process_time() < 0.2: pass"
    assert 0.2 <= measured(busy).cpu_seconds < 1.0


def test_a_side_that_fails_ends_the_benchmark_with_its_words() -> None:
    with pytest.raises(SystemExit, match=r"ended with 3:\nno such thing"):
        measured("import sys; sys.stderr.write('no such thing'); sys.exit(3)")


def test_podlift_is_there_without_the_others(capsys: pytest.CaptureFixture[str]) -> None:
    found = sides(None)
    assert isinstance(found[0], Podlift)
    assert not [side for side in found if isinstance(side, Restic)]
    assert "without it" in capsys.readouterr().out


def test_sides_back_up_and_restore_and_the_storage_is_seen_to_grow(tmp_path: Path) -> None:
    volume = SAMPLES["incompressible"].make(tmp_path / "volume", 4)
    restics = binaries()
    for side in sides(restics[0] if restics else None)[: 1 + bool(restics)]:
        assert side.name in side.version()
        with storage("local", tmp_path / side.name) as store:
            place = store.place("repository")
            side.init(place)
            empty = store.stored("repository")
            side.backup(place, volume)
            full = store.stored("repository")
            assert 4 * MIB < full - empty < 4.2 * MIB
            side.backup(place, volume)
            assert store.stored("repository") - full < 10_000
            assert store.requests() is None
            _restored(side, place, volume, tmp_path / f"{side.name}-target")


def _restored(side: Podlift | Restic, place: Place, volume: Path, target: Path) -> None:
    side.restore(place, "latest", target)
    for path in volume.iterdir():
        assert (target / path.name).read_bytes() == path.read_bytes()


def test_the_sink_counts_what_it_throws_away(tmp_path: Path) -> None:
    volume = SAMPLES["incompressible"].make(tmp_path / "volume", 4)
    with storage("sink", tmp_path / "sink") as store:
        place = store.place("repository")
        Podlift().init(place)
        asked, empty = store.requests(), store.stored("repository")
        Podlift().backup(place, volume)
        assert 4 * MIB < store.stored("repository") - empty < 4.2 * MIB
        assert asked is not None
        assert 5 < (store.requests() or 0) - asked < 100
