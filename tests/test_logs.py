"""The agent's log: a line an event, that names its object through tasks and threads, as text and as JSON."""

import asyncio
import io
import json
import logging
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.logs import JsonLines, TextLines, working_on
from agent.threads import Threads, within_context

TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z")

Said = Callable[[], list[str]]


def written(form: logging.Formatter) -> Iterator[tuple[logging.Logger, Said]]:
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(form)
    logger = logging.getLogger("agent.test")
    logger.propagate = False
    logger.addHandler(handler)
    yield logger, lambda: stream.getvalue().splitlines()
    logger.removeHandler(handler)


@pytest.fixture
def as_json() -> Iterator[tuple[logging.Logger, Said]]:
    yield from written(JsonLines())


@pytest.fixture
def as_text() -> Iterator[tuple[logging.Logger, Said]]:
    yield from written(TextLines())


def test_a_line_has_time_level_logger_and_message(as_json: tuple[logging.Logger, Said]) -> None:
    log, said = as_json
    log.warning("%s is late", "it")
    (line,) = map(json.loads, said())
    assert TIME.fullmatch(line.pop("time"))
    assert line == {"level": "warning", "logger": "agent.test", "message": "it is late"}


def test_an_exception_is_one_field(as_json: tuple[logging.Logger, Said]) -> None:
    log, said = as_json
    try:
        raise ValueError("a\nb")
    except ValueError:
        log.exception("it broke")
    (line,) = map(json.loads, said())
    assert line["message"] == "it broke"
    assert line["exception"].startswith("Traceback (most recent call last):\n")
    assert line["exception"].endswith("ValueError: a\nb")


@given(st.text(st.characters(), max_size=60))
def test_whatever_is_said_is_one_line_of_ascii_that_says_it(text: str) -> None:
    for log, said in written(JsonLines()):
        log.error("%s", text)
        (line,) = said()
        assert line.isascii()
        assert json.loads(line)["message"] == text.encode("utf-8", "backslashreplace").decode()


async def test_lines_of_tasks_and_threads_name_the_object_that_they_are_for(
    as_json: tuple[logging.Logger, Said],
) -> None:
    log, said = as_json

    async def task(name: str) -> None:
        with working_on("PodVolumeBackup", name):
            await asyncio.sleep(0)
            log.error("%s: begins", name)
            with Threads(2) as pool:
                list(pool.map(lambda n: log.error("%s: part %d", name, n), range(3)))
                pool.submit(within, name).result()
            thread = threading.Thread(target=within_context(log.error), args=["%s: aside", name])
            thread.start()
            thread.join()
        log.error("%s: nobody's", name)

    def within(name: str) -> None:
        with Threads(1) as pool:
            pool.submit(log.error, "%s: deeper", name).result()

    async with asyncio.TaskGroup() as tasks:
        for number in range(3):
            tasks.create_task(task(f"b-{number}"))
    lines = [json.loads(line) for line in said()]
    assert len(lines) == 3 * 7
    for line in lines:
        name, what = line["message"].split(": ")
        if what == "nobody's":
            assert not line.keys() & {"kind", "name"}
        else:
            assert (line["kind"], line["name"]) == ("PodVolumeBackup", name)


def test_a_thread_of_a_pool_does_not_keep_what_the_task_before_was_for(
    as_json: tuple[logging.Logger, Said],
) -> None:
    log, said = as_json
    with Threads(1) as pool:
        with working_on("PodVolumeRestore", "r-1"):
            pool.submit(log.error, "one").result()
        pool.submit(log.error, "two").result()
    assert [json.loads(line).get("name") for line in said()] == ["r-1", None]


def test_for_people_the_name_stands_once_before_the_message(
    as_text: tuple[logging.Logger, Said],
) -> None:
    log, said = as_text
    with working_on("PodVolumeBackup", "b-1"):
        log.error("b-1: begins")
        log.error("made a checkpoint")
    log.error("nobody's")
    ends = [line.split(" ERROR ")[1] for line in said()]
    assert ends == ["b-1: begins", "b-1: made a checkpoint", "nobody's"]


@pytest.mark.parametrize("place", ["main", "thread", "warning"])
def test_what_nobody_caught_is_a_line_too(place: str) -> None:
    begin: dict[str, Any] = {
        "main": "1 / 0",
        "thread": "threading.Thread(target=lambda: 1 / 0, name='t').start()",
        "warning": "warnings.warn('old')",
    }
    program = (
        "import logging, threading, warnings\nfrom agent.logs import write_log_as\n"
        f"logging.basicConfig()\nwrite_log_as('json')\n{begin[place]}\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    (line,) = map(json.loads, done.stderr.splitlines())
    assert done.stdout == ""
    if place == "warning":
        assert (line["level"], line["logger"]) == ("warning", "py.warnings")
        assert "UserWarning: old" in line["message"]
    else:
        assert line["level"] == "critical"
        assert line["exception"].endswith("ZeroDivisionError: division by zero")
