"""The agent is killed at every one of its calls while it restores, and the next one completes that.

As in ``test_agent_killed``, with a pod that waits. Its helper ends as soon as it finds the done file, and
then the pod writes into its volume: from that moment on no agent may write anything more. In the end the
PodVolumeRestore is Completed, the volume is what was backed up, but for what the pod has written, and the
pod was told exactly once.
"""

import multiprocessing
import os
import shutil
import time
from pathlib import Path

import pytest

from agent.cancel import NEVER
from agent.monitor import Monitor
from agent.repository import pack, writer
from agent.repository.opening import create_repository, open_repository
from agent.storage.local import LocalStorage
from agent.transfer.job import Request, run_backup
from tests.cluster.scene import NODE
from tests.cluster.stage import RUNNING, RestoreStage
from tests.faults.agent_killing import Plan, until_ended
from tests.faults.local_agent import PACK_BYTES
from tests.interop.volumes import differences
from tests.repository.making import CHEAP
from tests.support.apihandle import Json
from tests.support.apiservers import StandinServer
from tests.transfer.running import noise

PASSWORD = "pass"
MOST_CALLS = 300
WRITTEN = b"the pod has started, and this is its own\n"

STRIDE = 1 if os.environ.get("PODLIFT_KILL_RESTORES_EVERYWHERE") else 4
"""Which calls are taken: every one, or as many as a check of each commit has time for and all of the end."""


class Pod:
    """A pod that waits, and what it does when it is told."""

    def __init__(self, stage: RestoreStage, name: str) -> None:
        self._stage = stage
        self._name = name
        self.object, self.target = stage.waiting_pod(name)
        self.told = 0
        self.sleeps_until = 0.0
        stage.helper_is(RUNNING, pod=name)

    def look(self) -> None:
        """Go on if the done file is there, as the helper and after it the pod do."""
        done = self.target / ".velero" / "restore-uid"
        if time.monotonic() < self.sleeps_until or not done.exists():
            return
        assert done.stat().st_mode & 0o444 == 0o444
        assert done.parent.stat().st_mode & 0o555 == 0o555
        self.told += 1
        (self.target / "large").write_bytes(WRITTEN)
        if self.told == 1:
            ended = {"terminated": {"exitCode": 0, "finishedAt": "2026-01-01T00:00:00Z"}}
            self._stage.helper_is(ended, pod=self._name)
        shutil.rmtree(done.parent)


class Killing:
    """The stage, a snapshot of a volume, and what was seen so far."""

    def __init__(self, server: StandinServer, root: Path) -> None:
        self.stage = RestoreStage(server, root)
        self.root = root
        self.place = root / "repository"
        self.survived = 0
        volume = self.stage.volume
        for number in range(2):
            (volume / f"d{number}").mkdir()
            for file in range(12):
                (volume / f"d{number}" / f"f{file}").write_bytes(noise(100 * number + file, 9000))
        (volume / "large").write_bytes(noise(7, 1 << 20))
        (volume / "link").symlink_to("large")
        create_repository(LocalStorage.create(self.place), PASSWORD, cost=CHEAP)
        repository = open_repository(LocalStorage(self.place), PASSWORD)
        request = Request(str(volume), ("/v",), "velero", {}, lambda *_: None)
        self.snapshot = run_backup(repository, request, Monitor(), NEVER).snapshot_id

    def run(self, nth: int, *, after: bool) -> bool:
        """Kill an agent at its n-th call, let the next one finish; return False if it lived."""
        name = f"r-{nth}-{'after' if after else 'before'}"
        pod = Pod(self.stage, f"db-{name}")
        reference = {key: pod.object["metadata"][key] for key in ("name", "namespace", "uid")}
        self.stage.pvr(name, pod=reference, snapshotID=self.snapshot)
        settings = self.stage.settings(node_name=NODE, cache_dir=self.root / f"cache-{name}")
        killed = until_ended(self.stage, name, Plan(settings, self.place, nth, after), pod.look)
        if killed:
            late = nth // STRIDE % 2  # the next agent may be there before the pod has looked
            pod.sleeps_until = time.monotonic() + 1.5 * late
            assert not until_ended(self.stage, name, Plan(settings, self.place), pod.look)
        pod.sleeps_until = 0.0
        pod.look()
        self._judge(self.stage.status(name), pod)
        self.stage.server.delete(self.stage.server.path("podvolumerestores", name))
        self.stage.server.delete(self.stage.server.path("pods", f"db-{name}"))
        self.survived += killed
        return killed

    def _judge(self, status: Json, pod: Pod) -> None:
        assert status["phase"] == "Completed", status
        assert pod.told == 1
        assert (pod.target / "large").read_bytes() == WRITTEN
        shutil.copy2(self.stage.volume / "large", pod.target / "large")
        os.utime(pod.target, ns=(0, self.stage.volume.stat().st_mtime_ns))
        assert differences(self.stage.volume, pod.target) == []
        shutil.rmtree(pod.target)
        assert not list((self.place / "locks").iterdir())


@pytest.fixture(autouse=True)
def small_packs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pack, "TARGET_BYTES", PACK_BYTES)
    monkeypatch.setattr(writer, "TARGET_BYTES", PACK_BYTES)


@pytest.mark.timeout(900)
@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_a_kill_at_any_call_of_a_restore_is_survived(
    standin: StandinServer, tmp_path: Path, after: bool
) -> None:
    killing = Killing(standin, tmp_path)
    first = 1 + STRIDE // 2 * after
    for nth in range(first, MOST_CALLS, STRIDE):
        if not killing.run(nth, after=after):
            break
    for last in range(nth - STRIDE + 1, nth):  # all of the end, where the pod is told
        if not killing.run(last, after=after):
            break
    assert 6 < killing.survived < MOST_CALLS // STRIDE
    print(  # noqa: T201 (what the harness is there to show)
        f"\nkilled {'after' if after else 'before'} every {STRIDE}. call of a restore:"
        f" {killing.survived} of {killing.survived} survived"
    )
    assert not multiprocessing.active_children()
