"""Threads that know what they work for: each task runs in the context of whoever submitted it.

A log line of a thread then names the object that the thread works for (``logs``), whatever stands between.
"""

import concurrent.futures
import contextvars
from collections.abc import Callable
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


class Threads(concurrent.futures.ThreadPoolExecutor):  # noqa: TID251  (this is that class)
    """A pool of threads, with the context of each task."""

    def submit(
        self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs
    ) -> concurrent.futures.Future[T]:
        """Queue a task; ``map`` does so too."""
        return super().submit(within_context(fn), *args, **kwargs)


def within_context(work: Callable[P, T]) -> Callable[P, T]:
    """Return the same as ``work``, run once, in the context of now."""
    context = contextvars.copy_context()

    def run(*args: P.args, **kwargs: P.kwargs) -> T:
        return context.run(work, *args, **kwargs)

    return run
