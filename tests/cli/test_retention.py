"""forget, prune and unlock from the command line."""

import json
import os
import re
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from agent.repository.lockfile import Lock, encode_lock
from agent.repository.objects import Folder
from agent.repository.opening import open_repository
from agent.repository.repository import Repository
from agent.repository.times import utc
from agent.storage.local import LocalStorage
from tests.cli.conftest import PASSWORD, Run
from tests.repository.mess import make_mess, noise, save

SHOWN = ["keep", "remove"]


@pytest.fixture
def opened(repo: Path) -> Repository:
    return open_repository(LocalStorage(repo), PASSWORD)


@pytest.fixture
def dated(opened: Repository) -> list[str]:
    """Store a snapshot on each of five days; return their ids, oldest first."""
    return [save(opened, {"f": noise(day)}, day) for day in range(5)]


def ids(repository: Repository) -> list[str]:
    return [snapshot.id for snapshot in repository.snapshots()]


class TestForget:
    def test_a_policy_removes_what_it_does_not_keep_and_says_why(
        self, podlift: Run, repo: Path, opened: Repository, dated: list[str]
    ) -> None:
        done = podlift("forget", "--repo", repo, "--keep-last", "2")
        assert done.code == 0, done
        assert ids(opened) == dated[3:]
        rows = [line.split() for line in done.out.splitlines() if line.split()[0] in SHOWN]
        assert [(row[0], row[1]) for row in rows] == [
            ("keep" if id in dated[3:] else "remove", id[:8]) for id in reversed(dated)
        ]
        assert "last snapshot" in done.out
        assert "no rule keeps it" in done.out
        assert "removed 3 snapshots" in done.out

    def test_a_dry_run_only_talks(
        self, podlift: Run, repo: Path, opened: Repository, dated: list[str]
    ) -> None:
        done = podlift("forget", "--repo", repo, "--keep-last", "1", "--dry-run", "--prune")
        assert done.code == 0, done
        assert "would remove 4 snapshots" in done.out
        assert "nothing was changed" in done.out
        assert ids(opened) == dated
        assert re.search(r"to delete +8 packs", done.out)

    def test_json_has_the_fields_of_restic(
        self, podlift: Run, repo: Path, dated: list[str]
    ) -> None:
        done = podlift("forget", "--repo", repo, "--keep-daily", "2", "--json", "--prune")
        choice, figures = map(json.loads, done.out.splitlines())
        (one,) = choice
        assert [s["id"] for s in one["keep"]] == dated[:2:-1]
        assert [s["id"] for s in one["remove"]] == dated[2::-1]
        assert one["reasons"][0]["matches"] == ["daily snapshot"]
        assert (one["host"], one["paths"]) == ("host", ["/v"])
        assert figures["packs_deleted"] == 6

    def test_snapshots_are_removed_by_the_beginnings_of_their_ids(
        self, podlift: Run, repo: Path, opened: Repository, dated: list[str]
    ) -> None:
        done = podlift("forget", "--repo", repo, dated[0], dated[1][:12], "latest")
        assert done.code == 0, done
        assert ids(opened) == dated[2:4]

    def test_a_damaged_snapshot_can_be_removed(
        self, podlift: Run, repo: Path, opened: Repository, dated: list[str]
    ) -> None:
        damaged = repo / "snapshots" / dated[1]
        damaged.chmod(0o600)
        damaged.write_bytes(b"no snapshot")
        assert podlift("prune", "--repo", repo).code == 1
        by_policy = podlift("forget", "--repo", repo, "--keep-last", "9")
        assert by_policy.code == 0
        assert "left alone" in by_policy.err
        assert podlift("forget", "--repo", repo, dated[1][:10]).code == 0
        assert ids(opened) == [dated[0], *dated[2:]]
        assert podlift("prune", "--repo", repo).code == 0

    @pytest.mark.parametrize(
        ("arguments", "words"),
        [
            ([], "say what to keep"),
            (["--keep-last", "0"], "say what to keep"),
            (["--unsafe-allow-remove-all"], "say what to keep"),
            (["--keep-tag", "none-has-it"], "keeps none of the 5 snapshots of host host"),
            (["--keep-last", "x"], "is no number"),
            (["--keep-last", "9" * 5000], "is no number"),
            (["--keep-within", "5x"], "is no duration"),
            (["--keep-last", "1", "--group-by", "moon"], "cannot group by 'moon'"),
            (["--keep-last", "1", "abcdef"], "not both"),
            (["--host", "h", "abcdef"], "not both"),
            (["0000ffff"], "names no snapshots"),
            (["--keep-last", "1", "--max-unused", "x"], "is no size"),
        ],
    )
    def test_what_was_not_said_plainly_removes_nothing(
        self,
        podlift: Run,
        repo: Path,
        opened: Repository,
        dated: list[str],
        arguments: list[str],
        words: str,
    ) -> None:
        done = podlift("forget", "--repo", repo, *arguments)
        assert done.code == 2
        assert words in done.err
        assert ids(opened) == dated

    def test_all_of_a_host_go_when_it_is_said_plainly(
        self, podlift: Run, repo: Path, opened: Repository, dated: list[str]
    ) -> None:
        other = save(opened, {"o": noise(9)}, 9, host="other")
        done = podlift("forget", "--repo", repo, "--host", "host", "--unsafe-allow-remove-all")
        assert done.code == 0, done
        assert ids(opened) == [other]

    def test_groups_are_made_as_told(
        self, podlift: Run, repo: Path, opened: Repository, dated: list[str]
    ) -> None:
        other = save(opened, {"o": noise(9)}, 0, host="other")
        podlift("forget", "--repo", repo, "--keep-last", "1", "--dry-run")
        done = podlift("forget", "--repo", repo, "--keep-last", "1", "--group-by", "", "--json")
        assert [s["id"] for g in done.json for s in g["keep"]] == [dated[-1]]
        assert other not in ids(opened)

    def test_nothing_is_removed_while_somebody_reads(
        self, podlift: Run, repo: Path, opened: Repository, dated: list[str]
    ) -> None:
        with opened.locked(exclusive=False):
            assert podlift("forget", "--repo", repo, "--keep-last", "1").code == 11
            assert podlift("prune", "--repo", repo).code == 11
        assert ids(opened) == dated


class TestPrune:
    def test_a_prune_says_what_it_found_and_what_it_freed(
        self, podlift: Run, repo: Path, opened: Repository
    ) -> None:
        _, old = make_mess(opened)
        assert podlift("forget", "--repo", repo, *old).code == 0
        before = sum(file.stat().st_size for file in repo.glob("data/*/*"))
        ahead = podlift("prune", "--repo", repo, "--dry-run", "--max-unused", "0", "--json")
        done = podlift("prune", "--repo", repo, "--max-unused", "0")
        assert done.code == 0, done
        assert re.search(rf"to copy +{ahead.json['blobs_repacked']} blobs", done.out)
        assert re.search(rf"in no index +{ahead.json['packs_unindexed']} packs", done.out)
        assert f"pruned {repo}" in done.out
        after = sum(file.stat().st_size for file in repo.glob("data/*/*"))
        assert after < before
        again = podlift("prune", "--repo", repo, "--max-unused", "0")
        frees, nothing = again.out.splitlines()
        assert frees.startswith("frees 0 B; ")
        assert nothing.endswith(" has nothing to prune")
        check = podlift("check", "--repo", repo, "--read-data")
        assert "is in order" in check.out
        assert "hint" not in check.out

    def test_help_gives_examples(self, podlift: Run) -> None:
        for command in ("forget", "prune", "unlock"):
            assert f"podlift {command} --repo REPO" in podlift(command, "--help").out


def lock_of(repository: Repository, *, age_minutes: int = 0, **fields: object) -> str:
    """Store a lock as another process would have."""
    content = {"exclusive": True, "hostname": socket.gethostname(), "username": "u", **fields}
    now = time.time_ns() - age_minutes * 60 * 10**9
    lock = Lock(time_ns=now, **content)  # type: ignore[arg-type]
    return repository.objects.save(Folder.LOCKS, encode_lock(lock, utc))


def dead_pid() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


class TestUnlock:
    def test_locks_of_the_dead_go_and_those_of_the_living_stay(
        self, podlift: Run, repo: Path, opened: Repository
    ) -> None:
        dead = lock_of(opened, pid=dead_pid())
        old = lock_of(opened, pid=os.getpid(), hostname="elsewhere", age_minutes=31)
        alive = lock_of(opened, pid=os.getpid())
        remote = lock_of(opened, pid=dead_pid(), hostname="elsewhere", age_minutes=29)
        nobody = lock_of(opened, pid=0)
        done = podlift("unlock", "--repo", repo)
        assert done.code == 0, done
        lines = dict(re.findall(r"(?:removed|left) (\w{8}): (.*)", done.out))
        assert lines[dead[:8]].endswith("its process no longer exists on this host")
        assert lines[old[:8]].endswith("it is older than 30 minutes")
        assert all("may be alive" in lines[id[:8]] for id in (alive, remote, nobody))
        assert {path.name for path in (repo / "locks").iterdir()} == {alive, remote, nobody}
        assert "2 locks removed, 3 left" in done.out

    def test_all_go_when_it_is_said(self, podlift: Run, repo: Path, opened: Repository) -> None:
        lock_of(opened, pid=os.getpid())
        (repo / "locks" / ("0" * 64)).write_bytes(b"")
        (repo / "locks" / ("1" * 64)).write_bytes(b"damaged")
        kept = podlift("unlock", "--repo", repo)
        assert "0 locks removed, 3 left" in kept.out
        assert "cannot be read" in kept.out
        done = podlift("unlock", "--repo", repo, "--remove-all")
        assert "3 locks removed, 0 left" in done.out
        assert list((repo / "locks").iterdir()) == []
        assert podlift("unlock", "--repo", repo).out == "no locks\n"
