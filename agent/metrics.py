"""What is counted of one agent, for Prometheus; every name stands in docs/metrics.md.

Labels are few and their values fixed: no names of objects, so that the number of series never
grows. What the data path counts is read off the monitors of the runs at work whenever somebody
asks, and kept when a run has ended; so a counter moves while bytes do. Used on the event loop alone.

Velero's own names for its node-agent are served beside ours, with the labels that do not name
objects (velero.md section 3.4): a backup counts as dequeued when it has completed.
"""

import contextlib
import dataclasses
import platform
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import NamedTuple, Protocol

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from agent import __version__, footprint
from agent.monitor import Counters, Monitor

NOUNS = ("backup", "restore")

DURATIONS = (1, 3, 10, 30, 60, 300, 900, 1800, 3600, 7200, 14400, 28800, 57600, 115200)
"""Buckets of how long a volume took, in seconds: from a small one to a day and more."""

WATCH_ENDS = ("eof", "idle", "expired", "broken", "malformed")
"""Why watches end; shown before it happens, since a rate needs a value from before."""

VELERO_DURATIONS = (60, 300, 600, 900, 1800, 3600, 7200, 10800, 14400)
"""Velero's own buckets for the same (velero.md section 3.4)."""


class WatchCounts(Protocol):
    """What is counted of one watch; it is read whenever somebody asks."""

    @property
    def lists(self) -> int:
        """Return how many lists were taken."""

    @property
    def ends(self) -> Mapping[str, int]:
        """Return how many watches ended, by reason."""


class _Flow(NamedTuple):
    """A counter that is read off the monitors: a field, of runs of one noun or of both ("")."""

    name: str
    words: str
    noun: str
    field: str
    label: tuple[str, str] | None = None
    scale: float = 1.0


_FILES = "Files that backups were done with, by how they were met"
_RETRIES = "Calls to storages that were made again, by reason"

_FLOWS = (
    _Flow("podlift_processed_bytes", "Bytes of files backed up, read or not", "backup", "bytes_done"),
    _Flow("podlift_read_bytes", "Bytes read from volumes", "backup", "bytes_read"),
    _Flow("podlift_added_bytes", "Bytes of blobs that were new", "backup", "bytes_added"),
    _Flow("podlift_stored_bytes", "The same, compressed and encrypted", "backup", "bytes_stored"),
    _Flow("podlift_uploaded_bytes", "Bytes uploaded and acknowledged", "backup", "bytes_uploaded"),
    _Flow("podlift_read_back_bytes", "Of them, read back", "backup", "bytes_read_back"),
    _Flow("podlift_files", _FILES, "backup", "files_new", ("state", "new")),
    _Flow("podlift_files", _FILES, "backup", "files_changed", ("state", "changed")),
    _Flow("podlift_files", _FILES, "backup", "files_unmodified", ("state", "unmodified")),
    _Flow("podlift_unreadable_entries", "Entries left out of backups", "backup", "problems"),
    _Flow("podlift_checkpoints", "Checkpoints written", "backup", "checkpoints"),
    _Flow("podlift_fetched_bytes", "Bytes fetched to restore", "restore", "bytes_read"),
    _Flow("podlift_restored_bytes", "Bytes of files given back", "restore", "bytes_done"),
    _Flow("podlift_incomplete_entries", "Entries not restored in full", "restore", "problems"),
    _Flow("podlift_storage_retries", _RETRIES, "", "retries_throttled", ("reason", "throttled")),
    _Flow("podlift_storage_retries", _RETRIES, "", "retries_unreachable", ("reason", "unreachable")),
    _Flow("podlift_storage_retries", _RETRIES, "", "retries_integrity", ("reason", "integrity")),
    _Flow("podlift_storage_retries", _RETRIES, "", "retries_credentials", ("reason", "credentials")),
    _Flow("podlift_storage_throttled", "Calls refused as too many", "", "throttled"),
    _Flow(
        "podlift_storage_throttled_seconds",
        "Seconds that threads waited since a storage asked for fewer calls",
        "",
        "throttled_milliseconds",
        None,
        1e-3,
    ),
)  # fmt: skip


class OrderMetrics:
    """What is counted of one kind of order; ``noun`` is backup or restore."""

    def __init__(self, registry: CollectorRegistry, noun: str) -> None:
        kind = f"PodVolume{noun.capitalize()}s"
        name = f"podlift_{noun}s"
        self.enqueued = Counter(
            f"{name}_enqueued", f"{kind} of this node seen ready to begin", registry=registry
        )
        self.dequeued = Counter(f"{name}_dequeued", f"{kind} taken up", registry=registry)
        self.resumed = Counter(
            f"{name}_resumed", f"{kind} taken over from a process that is gone", registry=registry
        )
        self.ended = Counter(name, f"{kind} ended, by result", ["result"], registry=registry)
        self.running = Gauge(f"{name}_running", f"{kind} at work now", registry=registry)
        self.waiting = Gauge(f"{name}_waiting", f"{kind} ready, and not begun", registry=registry)
        self.duration = Histogram(
            f"{name}_duration_seconds",
            f"From claim to end of {kind} that completed",
            registry=registry,
            buckets=DURATIONS,
        )


class Metrics:
    """The counters of the agent of one node, in the registry that it was given."""

    def __init__(self, registry: CollectorRegistry, node: str) -> None:
        self.registry = registry
        self._watches = _WatchCollector()
        self._runs = _RunCollector()
        self._velero = _VeleroMetrics(registry, node)
        registry.register(self._watches)
        registry.register(self._runs)
        self.of = {noun: OrderMetrics(registry, noun) for noun in NOUNS}
        self.claims = Counter(
            "podlift_claims", "Claims tried, by result", ["result"], registry=registry
        )
        self.at_a_time = Gauge(
            "podlift_volumes_at_a_time", "Volumes that may be moved at a time", registry=registry
        )
        self.internal_errors = Counter(
            "podlift_internal_errors", "Bugs that one object met; see the log", registry=registry
        )
        self.ready = Gauge("podlift_ready", "1 if /readyz says so, else 0", registry=registry)
        registry.register(_MemoryCollector())
        ProcessCollector(registry=registry)
        build = Info("podlift_build", "Which podlift this is", registry=registry)
        build.info({"version": __version__, "python": platform.python_version()})

    def expect(self, results: Iterable[str]) -> None:
        """Show what has not happened yet as 0, since a rate needs a value from before."""
        for result in results:
            for counts in self.of.values():
                counts.ended.labels(result)
        for result in ("won", "lost"):
            self.claims.labels(result)

    @contextlib.contextmanager
    def at_work(self, noun: str, monitor: Monitor) -> Iterator[None]:
        """Count what one run moves, for the length of a scope."""
        self._runs.running.append((noun, monitor))
        self.of[noun].running.inc()
        try:
            yield
        finally:
            self.of[noun].running.dec()
            self._runs.ended(noun, monitor)

    def enqueued(self, noun: str) -> None:
        """Count an object that was seen ready to begin."""
        self.of[noun].enqueued.inc()
        if noun == "backup":
            self._velero.enqueued += 1

    def completed(self, noun: str, seconds: float) -> None:
        """Count how long a volume took from its claim to its end."""
        self.of[noun].duration.observe(seconds)
        self._velero.completed(noun, seconds)

    def follow_watch(self, resource: str, counts: WatchCounts) -> None:
        """Expose how often watches of a resource ended, by reason, and how often it was listed."""
        self._watches.followed[resource] = counts

    def follow_ready(self, not_ready: Callable[[], str]) -> None:
        """Expose whether the agent is ready: ``not_ready`` returns why not, or ""."""
        self.ready.set_function(lambda: float(not not_ready()))


class _RunCollector:
    """The flows, and the age of the lock that was proven longest ago."""

    def __init__(self) -> None:
        self.running: list[tuple[str, Monitor]] = []
        self._before = {noun: Counters() for noun in NOUNS}

    def ended(self, noun: str, monitor: Monitor) -> None:
        """Keep what a run has counted."""
        self.running.remove((noun, monitor))
        _add(self._before[noun], monitor.counters)

    def collect(self) -> Iterator[Metric]:
        sums = {noun: dataclasses.replace(before) for noun, before in self._before.items()}
        for noun, monitor in self.running:
            _add(sums[noun], monitor.counters)
        families: dict[str, CounterMetricFamily] = {}
        for flow in _FLOWS:
            label = [flow.label[0]] if flow.label else []
            family = families.setdefault(
                flow.name, CounterMetricFamily(flow.name, flow.words, labels=label)
            )
            nouns = [flow.noun] if flow.noun else NOUNS
            value = sum(getattr(sums[noun], flow.field) for noun in nouns) * flow.scale
            family.add_metric([flow.label[1]] if flow.label else [], value)
        yield from families.values()
        oldest = max((monitor.lock_age_seconds for _, monitor in self.running), default=0.0)
        yield GaugeMetricFamily(
            "podlift_lock_age_seconds",
            "Since the held repository lock that was proven longest ago was; 0 if none is held",
            oldest,
        )

    def describe(self) -> Iterable[Metric]:
        return ()


def _add(into: Counters, what: Counters) -> None:
    for field in {flow.field for flow in _FLOWS}:
        setattr(into, field, getattr(into, field) + getattr(what, field))


class _WatchCollector:
    def __init__(self) -> None:
        self.followed: dict[str, WatchCounts] = {}

    def collect(self) -> Iterator[Metric]:
        ended = CounterMetricFamily(
            "podlift_watch_ends", "Watches that ended, by reason", labels=["resource", "reason"]
        )
        listed = CounterMetricFamily("podlift_lists", "Full lists taken", labels=["resource"])
        for resource, counts in self.followed.items():
            for reason, count in {**dict.fromkeys(WATCH_ENDS, 0), **counts.ends}.items():
                ended.add_metric([resource, reason], count)
            listed.add_metric([resource], counts.lists)
        yield ended
        yield listed

    def describe(self) -> Iterable[Metric]:
        return ()


class _MemoryCollector:
    """What a kill for memory depends on; where the system does not say, nothing is served."""

    def collect(self) -> Iterator[Metric]:
        with contextlib.suppress(OSError):
            yield GaugeMetricFamily(
                "podlift_memory_bytes",
                "Memory that the agent takes and the kernel cannot give to others by itself",
                footprint.taken_bytes(),
            )
        yield GaugeMetricFamily(
            "podlift_memory_limit_bytes",
            "What the container may take; without a limit, the memory of the machine",
            footprint.limit_bytes() or footprint.machine_bytes(),
        )

    def describe(self) -> Iterable[Metric]:
        return ()


class _VeleroMetrics:
    """Velero's names, whose counters end in ``_count``: the client library would add ``_total``."""

    def __init__(self, registry: CollectorRegistry, node: str) -> None:
        self._node = node
        self.enqueued = 0
        self._dequeued = 0
        name, labels = "podVolume_pod_volume_operation_latency_seconds", ["node", "operation"]
        words = "Seconds that volumes took which completed"
        self._latency = Histogram(name, words, labels, registry=registry, buckets=VELERO_DURATIONS)
        self._last = Gauge(
            f"{name}_gauge", "Seconds that the last volume took", labels, registry=registry
        )
        registry.register(self)

    def completed(self, noun: str, seconds: float) -> None:
        self._dequeued += noun == "backup"
        self._latency.labels(self._node, noun).observe(seconds)
        self._last.labels(self._node, noun).set(seconds)

    def collect(self) -> Iterator[Metric]:
        for what, count in (("enqueue", self.enqueued), ("dequeue", self._dequeued)):
            name = f"podVolume_pod_volume_backup_{what}_count"
            family = Metric(name, f"PodVolumeBackups {what}d; a counter", "unknown")
            family.add_sample(name, {"node": self._node}, count)
            yield family

    def describe(self) -> Iterable[Metric]:
        return ()
