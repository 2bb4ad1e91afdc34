"""Things that are open: closed at the end of their scope, whatever happens in it."""

import os
from types import TracebackType
from typing import Self


class Scoped:
    """A context manager that closes itself; closing twice must do nothing."""

    def close(self) -> None:
        """Give everything back."""
        raise NotImplementedError

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


class OneDescriptor(Scoped):
    """The owner of one descriptor, which ``close`` gives back."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def close(self) -> None:
        """Give the descriptor back; closing twice does nothing."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)
