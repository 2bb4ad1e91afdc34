"""Fixtures of the whole suite; each module of ``tests.support`` brings one kind of real part."""

import logging
import signal
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings

pytest_plugins = [
    "tests.support.apiservers",
    "tests.support.s3servers",
    "tests.support.restic",
    "tests.support.prometheus",
    "tests.support.promtool",
    "tests.support.image",
]

# How long an example takes says how busy the machine is, and nothing of what is tested.
settings.register_profile("podlift", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("podlift")


@pytest.fixture(autouse=True)
def process() -> Iterator[None]:
    """Take back what a command that ran in this process has set for good."""
    before, level = signal.getsignal(signal.SIGHUP), logging.getLogger("agent").level
    yield
    signal.signal(signal.SIGHUP, before)
    logging.getLogger("agent").setLevel(level)
