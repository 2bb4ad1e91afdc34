"""One token carries "stop" from whoever asks to every thread that works.

A token is set once and never cleared. It may be asked to wind down first. Threads look at it between units of work of at most a
second or so (a chunk, a slice of an upload, a pause of the retry loop) and raise ``Canceled``.
A ``Run`` adds the other reason to stop: the first failure of any of its threads.
"""

import threading

from agent.errors import Canceled


class CancelToken:
    """A stop request that any thread may set and every thread may see."""

    def __init__(self) -> None:
        self._event = threading.Event()
        self._winding_down = False
        self._reason = ""

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
