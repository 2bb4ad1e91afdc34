"""Fixtures of the whole suite; each module of ``tests.support`` brings one kind of real part."""

pytest_plugins = [
    "tests.support.apiservers",
    "tests.support.s3servers",
    "tests.support.restic",
]
