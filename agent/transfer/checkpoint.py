"""Checkpoints: what a long backup has done so far, stored as a parent for whoever goes on with it.

A thread of its own makes one now and then, while the pipeline works on, and a last one when the run is
asked to wind down; after that it stops the run. A checkpoint that fails costs nothing but itself:
whatever is wrong with the storage ends the run by itself.
"""

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence

from msgspec.structs import replace

from agent.cancel import CancelToken
from agent.errors import PodliftError
from agent.monitor import Monitor
from agent.repository.contract import BackupTarget
from agent.repository.snapshot import CHECKPOINT_TAG, CHECKPOINT_TIME_NS, Snapshot
from agent.threads import within_context

SECONDS = 300.0
"""Between two checkpoints: how much reading a crash may cost. Each costs a few small packs."""

_LOOK_SECONDS = 0.2

log = logging.getLogger(__name__)


class Checkpoints:
    """Those of one run, of which there is one at a time.

    ``described`` returns the snapshot of a root tree as it would be if this was the end.
    """

    def __init__(
        self,
        target: BackupTarget,
        described: Callable[[bytes], Snapshot],
        monitor: Monitor,
        cancel: CancelToken,
    ) -> None:
        self._target = target
        self._described = described
        self._monitor = monitor
        self._cancel = cancel
        self._made: list[str] = []
        self._over = threading.Event()

    @contextlib.contextmanager
    def of(self, partial: Callable[[], bytes]) -> Iterator[None]:
        """Make checkpoints for the length of a scope; ``partial`` stores a root tree of what is done."""
        thread = threading.Thread(
            target=within_context(self._work), args=[partial], name="checkpoint", daemon=True
        )
        thread.start()
        try:
            yield
        finally:
            self._over.set()
            thread.join()

    def _work(self, partial: Callable[[], bytes]) -> None:
        due = time.monotonic() + SECONDS
        while not (self._over.wait(_LOOK_SECONDS) or self._cancel.canceled):
            if self._cancel.winding_down:
                self._make(partial)
                self._cancel.cancel(self._cancel.reason)
            elif time.monotonic() >= due:
                self._make(partial)
                due = time.monotonic() + SECONDS

    def _make(self, partial: Callable[[], bytes]) -> None:
        began = time.monotonic()
        try:
            self._save(partial())
            self._monitor.add(checkpoints=1)
            log.info("made a checkpoint in %.1f s", time.monotonic() - began)
        except PodliftError as error:
            log.warning("no checkpoint was made: %s", error)

    def keep(self, tree: bytes, others: Sequence[str]) -> None:
        """Make one of a run that is over and gets no snapshot, in the place of ``others``."""
        try:
            self._save(tree)
            self._target.remove_checkpoints(others)
        except PodliftError as error:
            log.warning("no checkpoint was made: %s", error)

    def _save(self, tree: bytes) -> None:
        """Store a checkpoint, then remove the one before it."""
        whole = self._described(tree)
        tags = (*whole.tags, CHECKPOINT_TAG)
        made = self._target.checkpoint(replace(whole, time_ns=CHECKPOINT_TIME_NS, tags=tags))
        self.remove()
        self._made = [made]

    def remove(self, others: Sequence[str] = ()) -> None:
        """Remove the checkpoint of this run, and others."""
        self._target.remove_checkpoints([*self._made, *others])
        self._made = []
