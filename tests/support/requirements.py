"""Parts of the suite that a machine may lack: skipped with a hint, or a failure in CI.

``.ci/run`` sets ``PODLIFT_REQUIRE_ALL=1``; then nothing may be skipped.
"""

import os
from typing import NoReturn

import pytest

REQUIRE_ALL = os.environ.get("PODLIFT_REQUIRE_ALL") == "1"


def missing(what: str, how: str) -> NoReturn:
    """Skip the test because ``what`` is not here (``how`` says how to get it), or fail it in CI."""
    message = f"left out: {what} is missing; to get it: {how}"
    if REQUIRE_ALL:
        pytest.fail(f"PODLIFT_REQUIRE_ALL=1, but {message}", pytrace=False)
    pytest.skip(message)
