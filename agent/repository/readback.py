"""Reading back: is what the storage keeps of a pack what it was sent?

A storage may acknowledge a pack and keep something else: few verify a checksum that came with it
(s3.md section 2), and a proxy, a cache or a disk may err behind their backs. So packs are read back
*before* an index file names them: no index ever names a pack that was found damaged. ``all`` reads
each, ``sample`` one in ``SHARE`` by chance, and at least one of those that an index file names;
where one was damaged, every further one of the run.

What is read is hashed and compared with the pack's name, in ranges, since up to all connections do
it at once. It goes through the same storage as every other read, with its retries. Where caches lie
between us and the medium (a directory's pages are in memory just then), the medium itself is not
proven: that is what ``check --read-data`` does later.
"""

import hashlib
import logging
import secrets

from agent.cancel import CancelToken
from agent.config import VerifyStored
from agent.errors import DamagedPack, ObjectMissing, StorageError
from agent.repository.crypto import Buffer
from agent.repository.identity import PackId
from agent.repository.locking import HeldLock
from agent.repository.objects import Objects, of_one_object, pack_key

SHARE = 16
"""One pack in so many is read back as a sample: 6 % more traffic, and every fault that is no rarity."""

STEP_BYTES = 2 << 20
"""How much is fetched at a time; twice that is in memory, for each connection."""

log = logging.getLogger(__name__)


class ReadBack:
    """Decides which packs are read back, and does it; safe to use from many threads.

    A pack's name is a hash over random bytes, so its last byte is chance enough; ``seed`` is what
    nobody outside of the run can know of the choice.
    """

    def __init__(
        self,
        objects: Objects,
        lock: HeldLock,
        cancel: CancelToken,
        how: VerifyStored = "sample",
        seed: int | None = None,
    ) -> None:
        """Serve one run under a lock, whose journal learns of what is damaged."""
        self._objects = objects
        self._lock = lock
        self._cancel = cancel
        self._how = how
        self._seed = secrets.randbelow(SHARE) if seed is None else seed
        self._damaged = False

    def wants(self, id: PackId, *, first: bool) -> bool:
        """Tell whether a pack has to be read back; ``first``: none that goes into its index was."""
        if self._how == "sample" and not self._damaged:
            return first or id[-1] % SHARE == self._seed
        return self._how != "none"

    def prove(self, id: PackId, whole: Buffer) -> None:
        """Read back what was sent; send it once more if it is damaged; raises ``DamagedPack``.

        From the moment that damage is seen until the pack is proven, no later run will adopt it.
        """
        damage = self._damage(id, len(whole))
        if not damage:
            return
        self._note(id)
        if hashlib.sha256(whole).digest() != id:
            raise self._refused(id, "it has changed in this machine's memory, which is suspect")
        log.warning("pack %s is sent again to %s: %s", id.hex(), self._place, damage)
        self._lock.check()
        self._objects.storage.put(pack_key(id), whole, sha256=id, cancel=self._cancel)
        damage = self._damage(id, len(whole))
        if damage:
            raise self._refused(id, f"{damage}, twice")
        self._lock.journal.pack(id)

    def kept(self, id: PackId, size: int) -> bool:
        """Tell whether the storage holds a pack of a run that is gone as that run has sent it."""
        damage = self._damage(id, size)
        if damage:
            self._note(id)
            log.warning("pack %s in %s is not adopted: %s", id.hex(), self._place, damage)
        return not damage

    @property
    def _place(self) -> str:
        return self._objects.storage.place

    def _note(self, id: PackId) -> None:
        self._damaged = True
        self._lock.journal.damaged(id)

    def _refused(self, id: PackId, damage: str) -> DamagedPack:
        return DamagedPack(id.hex(), self._place, damage)

    def _damage(self, id: PackId, size: int) -> str:
        """Return what is wrong with what is stored, "" if nothing is."""
        storage, key = self._objects.storage, pack_key(id)
        digest = hashlib.sha256()
        try:
            stored = storage.size(key, cancel=self._cancel)
            if stored != size:
                return f"{size} bytes were sent, {stored} are there"
            room = memoryview(bytearray(min(STEP_BYTES, size)))
            for place in range(0, size, STEP_BYTES):
                part = room[: size - place]
                storage.get_range(key, place, part, cancel=self._cancel)
                digest.update(part)
        except ObjectMissing:
            return "it is not there"
        except StorageError as error:
            if not of_one_object(error):
                raise
            return str(error)
        return "" if digest.digest() == id else "its content does not match its name"
