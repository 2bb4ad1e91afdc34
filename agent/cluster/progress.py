"""When a progress report is due, and what it says: a pure rule over a clock value.

At most one report a second, at least one in ten while the backup runs (velero.md section 10,
SHOULD 21), and in between when a percent was done. Numbers never go down, and what is done is
never more than the total, whatever the counters say while the walk is still going on.
"""

from dataclasses import dataclass

LEAST_SECONDS = 1.0
MOST_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class Report:
    """Bytes of the volume: all that are known of, and those that are done."""

    total_bytes: int
    done_bytes: int


class ProgressRule:
    """Remembers what was reported last."""

    def __init__(self) -> None:
        self._last = Report(0, 0)
        self._reported_at: float | None = None

    def due(self, now: float, total_bytes: int, done_bytes: int) -> Report | None:
        """Return the report to write at ``now`` (monotonic seconds), or None."""
        total = max(total_bytes, self._last.total_bytes)
        done = max(min(done_bytes, total), self._last.done_bytes)
        report = Report(max(total, done), done)
        if self._reported_at is not None and not self._worth(now - self._reported_at, report):
            return None
        self._reported_at = now
        self._last = report
        return report

    def _worth(self, silent_seconds: float, report: Report) -> bool:
        if silent_seconds >= MOST_SECONDS:
            return True
        if silent_seconds < LEAST_SECONDS:
            return False
        step = max(1, report.total_bytes // 100)
        return report.done_bytes - self._last.done_bytes >= step
