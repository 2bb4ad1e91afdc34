"""gc before it reaches anything: what it asks for, and what it says when it cannot begin."""

from pathlib import Path

import pytest

from tests.cli.conftest import Run


def test_the_location_must_be_named(podlift: Run) -> None:
    done = podlift("gc")
    assert done.code == 2
    assert "--location" in done.err


@pytest.mark.parametrize("text", ["3", "h", "-1h", "1.5h", "72 h", "1w", "", "1h30m"])
def test_a_grace_that_is_no_time_is_refused(podlift: Run, text: str) -> None:
    done = podlift("gc", "--location", "default", "--grace", text)
    assert done.code == 2
    assert "is not a time such as 72h" in done.err


def test_without_a_way_to_the_cluster_it_says_what_to_give(podlift: Run) -> None:
    done = podlift("gc", "--location", "default")
    assert done.code == 1
    assert "give --kubeconfig" in done.err
    assert done.out == ""


def test_a_kubeconfig_that_is_not_there_is_named(podlift: Run, tmp_path: Path) -> None:
    done = podlift("gc", "--location", "default", "--kubeconfig", tmp_path / "none")
    assert done.code == 1
    assert f"kubeconfig {tmp_path / 'none'} does not exist" in done.err


def test_a_short_grace_is_warned_of(podlift: Run) -> None:
    assert "shorter than the 4 h" in podlift("gc", "--location", "d", "--grace", "3h").err
    assert "shorter" not in podlift("gc", "--location", "d", "--grace", "4h").err


def test_help_teaches_how_to_look_first(podlift: Run) -> None:
    done = podlift("gc", "--help")
    assert done.code == 0
    look, act = (
        line.split("#") for line in done.out.splitlines() if line.startswith("  podlift gc")
    )
    assert "--apply" not in look[0]
    assert "--apply" in act[0]
