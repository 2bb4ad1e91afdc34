"""Ports for servers that are told where to listen: free now, and given to nobody by chance.

They lie below those that the kernel hands out by itself, so that no connection of another worker
takes one between the question and the server's start, or while a server is being restarted.
"""

import contextlib
import random
import socket

LOWEST, HIGHEST = 12_000, 32_000  # Linux hands out ports from 32,768 on


def free_port(count: int = 1) -> int:
    """Return a port that is free together with the ``count - 1`` next ones."""
    for _ in range(100):
        first = random.SystemRandom().randrange(LOWEST, HIGHEST)
        with contextlib.ExitStack() as held, contextlib.suppress(OSError):
            for port in range(first, first + count):
                held.enter_context(socket.socket()).bind(("127.0.0.1", port))
            return first
    raise AssertionError(f"no {count} free ports in a row")
