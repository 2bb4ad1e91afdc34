"""Fetching ahead: chunks are asked for before their turn, and come out in order.

The order of a stream is that of its items; only waiting for the storage is done side by side. At
most ``CHUNKS_AHEAD`` chunks of at most 8 MiB are held, whatever is asked for.
"""

import collections
import concurrent.futures
from collections.abc import Callable, Generator, Iterator
from typing import TypeVar

from agent.cancel import CancelToken
from agent.threads import Threads

CHUNKS_AHEAD = 8
"""Chunks in flight or waiting for their turn."""

_ITEMS_AHEAD = 512
"""Items without a chunk of their own that may wait as well; each is a header."""

T = TypeVar("T")
Waiting = tuple[T, "concurrent.futures.Future[bytes] | None"]


def fetched(
    items: Iterator[tuple[T, bytes | None]],
    load: Callable[[bytes], bytes],
    cancel: CancelToken,
) -> Generator[tuple[T, bytes], None, None]:
    """Yield each item with the chunk of its id; b"" where the id is None.

    A chunk that repeats, as in a hole, is fetched once. Raises what ``load`` raises, at the turn
    of the chunk that failed; closing the generator drops what was not begun.
    """
    pool = Threads(CHUNKS_AHEAD, "fetch")
    try:
        yield from _in_turn(pool, items, load, cancel)
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _in_turn(
    pool: Threads,
    items: Iterator[tuple[T, bytes | None]],
    load: Callable[[bytes], bytes],
    cancel: CancelToken,
) -> Generator[tuple[T, bytes], None, None]:
    waiting: collections.deque[Waiting[T]] = collections.deque()
    last_id: bytes | None = None
    ahead = 0  # distinct chunks in ``waiting``
    ended = False
    while waiting or not ended:
        cancel.check()
        while not ended and ahead < CHUNKS_AHEAD and len(waiting) < _ITEMS_AHEAD:
            found = next(items, None)
            if found is None:
                ended = True
                break
            item, id = found
            future = waiting[-1][1] if waiting and id == last_id else None
            if id is not None and future is None:
                future = pool.submit(load, id)
                ahead += 1
            last_id = id
            waiting.append((item, future))
        if waiting:
            item, future = waiting.popleft()
            yield item, b"" if future is None else future.result()
            if future is not None and not (waiting and waiting[0][1] is future):
                ahead -= 1
