"""Memory: what is taken is what was allocated, and a limit counts only where it limits."""

import mmap
from pathlib import Path

import pytest

from agent import footprint

MIB = 1 << 20


def test_what_is_allocated_is_taken_and_what_is_mapped_from_a_file_is_not(tmp_path: Path) -> None:
    file = tmp_path / "mapped"
    file.write_bytes(bytes(64 * MIB))
    before = footprint.taken_bytes()
    with file.open("rb") as source, mmap.mmap(source.fileno(), 0, access=mmap.ACCESS_READ) as pages:
        assert pages.find(b"\x01") == -1  # every page has been looked at
        assert footprint.taken_bytes() - before < 16 * MIB
    held = b"\x01" * (64 * MIB)
    assert 48 * MIB < footprint.taken_bytes() - before < 96 * MIB
    assert len(held) == 64 * MIB


@pytest.mark.parametrize(
    ("told", "limit"),
    [("max\n", None), (f"{512 * MIB}\n", 512 * MIB), ("9223372036854771712\n", None)],
    ids=["none", "one", "more than there is"],
)
def test_a_limit_counts_only_where_it_limits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, told: str, limit: int | None
) -> None:
    (tmp_path / "limit").write_text(told)
    monkeypatch.setattr(footprint, "LIMITS", (str(tmp_path / "limit"), str(tmp_path / "no-file")))
    assert footprint.limit_bytes() == limit
