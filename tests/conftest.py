"""Fixtures of the whole suite; each module of ``tests.support`` brings one kind of real part."""

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
