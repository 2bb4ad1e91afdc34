"""A backup whose storage falls silent: a stop ends it at once, with all its threads."""

import dataclasses
import random
import threading
import time
from pathlib import Path

import pytest

from agent.errors import Canceled
from agent.storage.opening import open_s3
from agent.storage.settings import Patience, S3Settings
from tests.repository.making import fill, keys
from tests.support.faultproxy import Fault, FaultProxy, Kind
from tests.transfer.running import Bench


@pytest.mark.parametrize("at", [0, 200_000], ids=["no answer", "in the body"])
def test_a_cancel_ends_a_backup_whose_uploads_have_stalled(
    proxy: FaultProxy,
    proxied: S3Settings,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    at: int,
) -> None:
    monkeypatch.setattr("agent.repository.writer.TARGET_BYTES", 256 << 10)
    bench = Bench.new(tmp_path / "volume")
    (bench.volume / "large").write_bytes(random.Random(3).randbytes(12 << 20))
    storage = open_s3(dataclasses.replace(proxied, patience=Patience()))  # would wait for 60 s
    fill(storage)
    proxy.add(Fault(Kind.STALL, at=at), "PUT", "/data/", times=99)
    canceled_at = []

    def cancel_when_stalled() -> None:
        while sum("/data/" in each.path for each in list(proxy.requests)) < 2:
            time.sleep(0.05)
        time.sleep(0.5)
        canceled_at.append(time.monotonic())
        bench.cancel.cancel("the pod is asked to end")

    canceling = threading.Thread(target=cancel_when_stalled)
    canceling.start()
    with pytest.raises(Canceled, match="asked to end"):
        bench.go(storage)
    assert time.monotonic() - canceled_at[0] < 5
    canceling.join()
    assert [each.name for each in threading.enumerate() if each.name.startswith("upload")] == []
    assert keys(storage, "locks") == keys(storage, "snapshots") == []
    storage.close()
