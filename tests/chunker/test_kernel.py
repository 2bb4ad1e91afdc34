import subprocess
import sys
import threading
from pathlib import Path

import chunker
from chunker import Parameters
from tests.chunker.golden import GOLDEN

ROOT = Path(__file__).resolve().parents[2]


def test_a_missing_extension_is_an_error_that_says_what_to_do() -> None:
    program = "import sys; sys.modules['chunker._scan'] = None; import chunker"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "ImportError" in done.stderr
    assert "pip install -e ." in done.stderr


def test_the_kernel_in_use_is_named_for_logs() -> None:
    assert chunker.KERNEL_NAME == "native, 8 lanes"


def test_other_threads_run_while_the_kernel_scans() -> None:
    # With this switch interval a thread gets the GIL only where another lets go of it.
    parameters = Parameters(next(iter(GOLDEN)))
    zeros = bytes(256 * 1024 * 1024)
    events: list[str] = []

    def work() -> None:
        events.append("scan begins")
        chunker.scan(zeros, b"", *parameters.tables, parameters.mask)
        events.append("scan ends")

    interval = sys.getswitchinterval()
    sys.setswitchinterval(100)
    try:
        thread = threading.Thread(target=work)
        thread.start()
        events.append("main runs")
        thread.join()
    finally:
        sys.setswitchinterval(interval)
    assert events == ["scan begins", "main runs", "scan ends"]
