"""The end of the process: when it was asked for, and how long what runs may still take."""

import asyncio

from agent.cluster.status import Clock

RESERVED_SECONDS = 5.0
"""Kept of the grace time for writing final states (kubernetes.md section 6, practice 10)."""

HURRY_SECONDS = 1.0
"""The longest pause between two tries once the end was asked for."""


class Shutdown:
    """The one deadline of a process that was asked to end."""

    def __init__(self, clock: Clock, grace_seconds: float) -> None:
        self._clock = clock
        self._grace_seconds = grace_seconds
        self._asked_at: float | None = None
        self._asked = asyncio.Event()

    @property
    def asked(self) -> bool:
        """Tell whether the end was asked for."""
        return self._asked_at is not None

    def ask(self) -> None:
        """Start the grace time; the first call counts."""
        if self._asked_at is None:
            self._asked_at = self._clock.monotonic()
            self._asked.set()

    def patience(self) -> float | None:
        """Return until when work may wind down on the monotonic clock, or None."""
        if self._asked_at is None:
            return None
        return self._asked_at + max(0.0, self._grace_seconds - RESERVED_SECONDS) / 2

    def deadline(self) -> float | None:
        """Return the end of the grace time on the monotonic clock, or None."""
        return None if self._asked_at is None else self._asked_at + self._grace_seconds

    def left(self, most_seconds: float) -> float:
        """Return what is left of the grace time, ``most_seconds`` at most."""
        deadline = self.deadline()
        left = most_seconds if deadline is None else deadline - self._clock.monotonic()
        return max(0.0, min(most_seconds, left))

    @property
    def over(self) -> bool:
        """Tell whether the grace time does not suffice for another try."""
        deadline = self.deadline()
        return deadline is not None and self._clock.monotonic() >= deadline - HURRY_SECONDS

    async def pause(self, seconds: float) -> None:
        """Sleep until the end is asked for; after that, briefly."""
        if self.asked:
            await self._clock.sleep(min(seconds, HURRY_SECONDS))
            return

        async def asleep() -> None:
            await self._clock.sleep(seconds)

        async with asyncio.TaskGroup() as tasks:
            either = {tasks.create_task(asleep()), tasks.create_task(self._asked.wait())}
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
            for each in either:
                each.cancel()
