"""What /metrics says of the real data path, compared with what really happened."""

import os
import re
import secrets
import urllib.request
from pathlib import Path

from tests.cluster.test_metrics import shown
from tests.e2e.restoring import ask, waiting_pod
from tests.e2e.scene import WITHOUT_OVERRIDE, Agent, Scene, until
from tests.support.apiservers import StandinServer
from tests.support.faultproxy import Fault, FaultProxy, Kind, reply
from tests.support.s3servers import S3Server

FOREVER = 10_000
MIB = 1 << 20


def samples(agent: Agent) -> dict[str, float]:
    """Return every sample by its name and label values."""
    port = until(lambda: re.search(r"metrics on port (\d+)", agent.log_text), "the port")[1]
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        text = answer.read().decode()
    return {
        " ".join([sample.name, *sample.labels.values()]): sample.value
        for family in shown(text)
        for sample in family.samples
    }


def test_bytes_files_locks_and_the_storages_wishes_are_counted_while_they_happen(
    standin: StandinServer, s3_server: S3Server, proxy: FaultProxy, tmp_path: Path
) -> None:
    standin.apply_velero_crds()
    scene = Scene(standin, s3_server, tmp_path / "scene", proxy).with_repository()
    text = b"what compresses well, and is there twice " * (2 * MIB // 41)
    volume = scene.volume().fill(
        random=secrets.token_bytes(8 * MIB), one=text, other=text, bad=b"x"
    )
    os.chmod(volume.path / "bad", 0)
    if os.geteuid() == 0:
        os.chown(volume.path / "bad", 1000, 1000)
    size = (8 * MIB) + 2 * len(text)
    proxy.add(Fault(Kind.RESET, 100), "PUT", "/data/")
    proxy.add(reply(503, "SlowDown"), "PUT", "/data/", times=FOREVER)
    with scene.agent(wrapper=WITHOUT_OVERRIDE) as agent:
        name = scene.backup(volume)
        until(lambda: samples(agent)["podlift_storage_throttled_seconds_total"] > 0.5, "a wait")
        during = samples(agent)
        proxy.clear()
        snapshot = scene.completed(name, agent)["snapshotID"]
        scene.completed(scene.backup(volume), agent)
        restored = ask(scene, waiting_pod(scene), snapshot)
        scene.completed(restored, agent)
        until(lambda: samples(agent)["podlift_restores_running"] == 0, "the end of all work")
        after = samples(agent)
    assert 0 < during["podlift_lock_age_seconds"] < 60
    assert (during["podlift_backups_running"], during["podlift_uploaded_bytes_total"]) == (1, 0)
    assert during["podlift_read_bytes_total"] >= 8 * MIB
    assert during["podlift_storage_throttled_total"] >= 2
    assert after["podlift_storage_retries_total throttled"] >= 2
    assert after["podlift_storage_retries_total unreachable"] == 1
    assert after["podlift_backups_total partial"] == 2
    assert after["podlift_unreadable_entries_total"] == 2
    assert after["podlift_read_bytes_total"] == size  # the second one read nothing
    assert after["podlift_processed_bytes_total"] == 2 * size
    assert after["podlift_files_total new"] == after["podlift_files_total unmodified"] == 3
    assert 8 * MIB + len(text) <= after["podlift_added_bytes_total"] < size
    assert 8 * MIB < after["podlift_stored_bytes_total"] < 9 * MIB
    assert after["podlift_stored_bytes_total"] < after["podlift_uploaded_bytes_total"] < 9 * MIB
    assert after["podlift_read_back_bytes_total"] > 0
    assert after["podlift_restored_bytes_total"] == size
    assert 8 * MIB < after["podlift_fetched_bytes_total"] < 9 * MIB
    assert after["podlift_lock_age_seconds"] == after["podlift_backups_running"] == 0
    assert after["podlift_backups_duration_seconds_count"] == 2
    assert after[f"podVolume_pod_volume_backup_dequeue_count {scene.node}"] == 2
