"""A backup is killed inside directories that are worked on in stretches, and done again.

Whatever had arrived is not sent again, nothing of the first run is in the way of the second, and no
temporary file is left behind.
"""

import shutil
from pathlib import Path

import pytest

from agent.repository.opening import open_repository
from agent.storage.local import LocalStorage
from tests.faults.long_killing import Places, killed_at
from tests.faults.test_agent_killed import stored_twice
from tests.repository.making import PASSWORD, all_entries, fill
from tests.support.restic import judges
from tests.transfer.running import noise

MOST_CALLS = 60


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_a_kill_in_a_long_directory_is_survived(tmp_path: Path, after: bool) -> None:
    volume = tmp_path / "volume"
    for folder in ("a", "b"):
        (volume / folder).mkdir(parents=True)
        for number in range(25):
            (volume / folder / f"f{number:02}").write_bytes(noise(number, 3000 + len(folder)))
    trees, survived = set(), 0
    judge = judges(tmp_path / "home")[-1]
    for nth in range(1, MOST_CALLS):
        places = Places(volume, tmp_path / f"r{nth}", tmp_path / f"c{nth}")
        fill(LocalStorage.create(places.repository))
        if not killed_at(places, nth, after=after):
            break
        assert not killed_at(places, 0)
        repository = open_repository(LocalStorage(places.repository), PASSWORD)
        assert stored_twice(repository) == 0
        assert not [path for path in places.cache.rglob("*") if path.name.startswith("tmp")]
        trees.add(repository.snapshot("latest").tree)
        assert len(all_entries(repository, "latest")) == 52
        survived += 1
        if nth % 4 == 0:
            judge.run(str(places.repository), "check", "--read-data", password=PASSWORD)
        shutil.rmtree(places.repository)
    assert len(trees) == 1
    assert 5 < survived < MOST_CALLS - 1
