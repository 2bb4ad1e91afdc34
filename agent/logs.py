"""The agent's log: a line an event, for people or for machines.

What is written for one object says so by itself: ``working_on`` names it for a scope, for every task and
thread that begins in it. As JSON a line has ``time`` (RFC 3339, UTC), ``level``, ``logger``, ``message``,
then ``kind`` and ``name`` of the object if there is one, and ``exception``, a traceback, where one was
caught. It is ASCII, and whatever a message holds it is one line.
"""

import contextlib
import contextvars
import datetime
import json
import logging
import sys
import threading
from collections.abc import Iterator
from types import TracebackType
from typing import NamedTuple

from agent.config import LogFormat

LOG = logging.getLogger(__name__)


class Subject(NamedTuple):
    """An object that is worked on."""

    kind: str
    name: str


_subject: contextvars.ContextVar[Subject | None] = contextvars.ContextVar("subject", default=None)


@contextlib.contextmanager
def working_on(kind: str, name: str) -> Iterator[None]:
    """Name the object that everything which is logged in the scope belongs to."""
    token = _subject.set(Subject(kind, name))
    try:
        yield
    finally:
        _subject.reset(token)


class TextLines(logging.Formatter):
    """For people: the object's name stands before what does not begin with it."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:
        """Return the line without its traceback."""
        subject = _subject.get()
        if subject is not None and not record.message.startswith(f"{subject.name}: "):
            record.message = f"{subject.name}: {record.message}"
        return super().formatMessage(record)


class JsonLines(logging.Formatter):
    """For machines: one JSON object a line."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        moment = datetime.datetime.fromtimestamp(record.created, datetime.UTC)
        line = {
            "time": moment.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if subject := _subject.get():
            line |= subject._asdict()
        if record.exc_info and record.exc_info[0] is not None:
            line["exception"] = self.formatException(record.exc_info)
        printable = {key: _printable(value) for key, value in line.items()}
        return json.dumps(printable, ensure_ascii=True)


def write_log_as(chosen: LogFormat) -> None:
    """Give what the process writes to stderr its form, also what nobody caught."""
    form = JsonLines() if chosen == "json" else TextLines()
    for handler in logging.getLogger().handlers:
        if isinstance(handler, logging.StreamHandler) and handler.stream is sys.stderr:
            handler.setFormatter(form)
    if chosen == "json":
        logging.captureWarnings(True)
        sys.excepthook = _log_uncaught
        threading.excepthook = _log_uncaught_in_thread


def _printable(text: str) -> str:
    """Replace what no decoder of JSON need accept: halves of surrogate pairs."""
    return text.encode("utf-8", "backslashreplace").decode()


def _log_uncaught(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    LOG.critical("the process ended by a bug; report this", exc_info=(kind, error, trace))


def _log_uncaught_in_thread(caught: threading.ExceptHookArgs) -> None:
    error = caught.exc_value or caught.exc_type()
    name = caught.thread.name if caught.thread else "?"
    exc_info = (caught.exc_type, error, caught.exc_traceback)
    LOG.critical("thread %s ended by a bug; report this", name, exc_info=exc_info)
