"""One token carries "stop" from whoever asks to every thread that works.

A token is set once and never cleared; it may be asked to wind down first. Threads look at it between
units of work of at most a second or so (a chunk, a slice of an upload, a pause of the retry loop) and
raise ``Canceled``. What waits in a system call registers how to end that (``acting``).
A ``Run`` adds the other reason to stop: the first failure of any of its threads.
"""

import contextlib
import threading
from collections.abc import Callable, Iterator

from agent.errors import Canceled


class CancelToken:
    """A stop request that any thread may set and every thread may see."""

    def __init__(self) -> None:
        self._event = threading.Event()
        self._winding_down = False
        self._reason = ""
        self._acts: dict[object, Callable[[], None]] = {}  # no lock: signal handlers cancel too

    def wind_down(self, reason: str) -> None:
        """Ask for an end in good order: what was done is to be kept, then the work is to stop.

        Who can keep nothing takes no notice, and is stopped by ``cancel`` after a while.
        """
        if not self.canceled:
            self._reason = self._reason or reason
            self._winding_down = True

    @property
    def winding_down(self) -> bool:
        """Tell whether an end in good order was asked for."""
        return self._winding_down

    def cancel(self, reason: str) -> None:
        """Ask for the stop; the first reason is kept."""
        if not self._event.is_set():
            self._reason = self._reason or reason
            self._event.set()
            for act in list(self._acts.values()):
                act()

    @contextlib.contextmanager
    def acting(self, act: Callable[[], None]) -> Iterator[None]:
        """Have ``act`` called once the stop is asked for within the scope.

        The canceling thread calls it, perhaps from a signal handler and perhaps twice: it must
        be quick, must not raise, and must not wait for a lock that its own thread may hold.
        """
        key = object()
        self._acts[key] = act
        try:
            if self._event.is_set():
                act()
            yield
        finally:
            del self._acts[key]

    @property
    def canceled(self) -> bool:
        """Tell whether the stop was asked for."""
        return self._event.is_set()

    @property
    def reason(self) -> str:
        """Return why, or "" while nobody has asked."""
        return self._reason

    def check(self) -> None:
        """Raise ``Canceled`` once the stop was asked for."""
        if self._event.is_set():
            raise Canceled(self._reason)

    def pause(self, seconds: float) -> None:
        """Sleep for ``seconds``, or raise ``Canceled`` as soon as the stop is asked for."""
        if self._event.wait(seconds):
            raise Canceled(self._reason)


@contextlib.contextmanager
def patience(seconds: float) -> Iterator[CancelToken]:
    """Yield a token for a last duty, which asks for the stop when it takes longer than that."""
    token = CancelToken()
    timer = threading.Timer(seconds, token.cancel, [f"no answer for {seconds:g} s"])
    timer.daemon = True
    timer.start()
    try:
        yield token
    finally:
        timer.cancel()


class _Never(CancelToken):
    """A token for work that must not be stopped half-way, such as removing our lock."""

    def cancel(self, reason: str) -> None:
        raise AssertionError(f"NEVER cannot be canceled ({reason})")


NEVER = _Never()


class Run:
    """What all threads of one run share: the stop request, and the first failure."""

    def __init__(self, cancel: CancelToken) -> None:
        self._cancel = cancel
        self._lock = threading.Lock()
        self._failure: BaseException | None = None

    def fail(self, error: BaseException) -> None:
        """Remember the first failure."""
        with self._lock:
            self._failure = self._failure or error

    def check(self) -> None:
        """Raise the failure or ``Canceled``; called between units of work."""
        if self._failure is not None:
            raise self._failure
        self._cancel.check()
