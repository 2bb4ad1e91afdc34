import dataclasses

import click

from agent.commands.services import agent
from agent.config import ENVIRONMENT, AgentSettings, agent_settings
from tests.docs.configuration import PAGE, render


def test_the_page_says_what_the_agent_says() -> None:
    assert PAGE.read_text() == render(), "the agent's options have changed: run `make docs`"


def test_every_option_and_variable_has_a_row() -> None:
    options = {each.name for each in agent.params if isinstance(each, click.Option)}
    assert options == set(ENVIRONMENT)
    assert all(f"`{variable}`" in PAGE.read_text() for variable in ENVIRONMENT.values())


def test_the_defaults_that_the_page_names_are_those_that_hold() -> None:
    rows = [line.split(" | ") for line in PAGE.read_text().splitlines() if line.startswith("| `--")]
    told = {row[0][5:-1].replace("-", "_"): row[2].strip("`") for row in rows if row[2]}
    told.pop("metrics_address")  # its default is written without the host
    assert len(told) > 10
    held = agent_settings({"node_name": "n"}, {})
    assert agent_settings({"node_name": "n", **told}, {}) == held
    assert {field.name for field in dataclasses.fields(AgentSettings)} >= told.keys()
