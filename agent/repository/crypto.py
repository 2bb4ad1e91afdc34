"""Seal and unseal: AES-256 in counter mode, authenticated by Poly1305-AES.

A sealed byte string is ``IV(16) || CIPHERTEXT || MAC(16)``; the MAC covers the ciphertext and is
checked before anything is decrypted (restic-format.md section 4). The rule guarded here: an IV
is used once, so it comes from the caller, who takes it from the system's random source.
"""

from collections.abc import Iterable

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.ciphers import Cipher, CipherContext
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import CTR, ECB
from cryptography.hazmat.primitives.poly1305 import Poly1305

from agent.errors import MalformedData

IV_SIZE = 16
MAC_SIZE = 16
OVERHEAD = IV_SIZE + MAC_SIZE
"""Bytes that sealing adds."""

ENCRYPT_SIZE = 32
MAC_PART_SIZE = 16

Buffer = bytes | bytearray | memoryview


class Sealing:
    """What is too large to be sealed in one call: ``update`` with its pieces, then ``finish`` once.

    The stored form is the IV, all that ``update`` returned, and what ``finish`` returns.
    """

    def __init__(self, encryptor: CipherContext, mac: Poly1305) -> None:
        self._encryptor = encryptor
        self._mac = mac

    def update(self, plaintext: Buffer) -> bytes:
        """Return the next piece, encrypted."""
        sealed = self._encryptor.update(plaintext)
        self._mac.update(sealed)
        return sealed

    def finish(self) -> bytes:
        """Return the authentication code."""
        return self._mac.finalize()


class Unsealing:
    """The same way back, in two passes: nothing is decrypted before all of it is authentic."""

    def __init__(self, decryptor: CipherContext, mac: Poly1305, what: str) -> None:
        self._decryptor = decryptor
        self._mac = mac
        self._what = what

    def authenticate(self, ciphertext: Iterable[Buffer], code: bytes) -> None:
        """Read all ciphertext once; raise ``MalformedData`` if this is not its code."""
        for piece in ciphertext:
            self._mac.update(piece)
        try:
            self._mac.verify(code)
        except InvalidSignature:
            raise _not_authentic(self._what) from None

    def update(self, ciphertext: Buffer) -> bytes:
        """Return the next piece, decrypted."""
        return self._decryptor.update(ciphertext)


class Key:
    """The three secrets that seal: ``encrypt`` (32 bytes), ``mac_k`` and ``mac_r`` (16 each)."""

    __slots__ = ("_aes", "_mac_aes", "encrypt", "mac_k", "mac_r")

    def __init__(self, encrypt: bytes, mac_k: bytes, mac_r: bytes) -> None:
        """Raise ``MalformedData`` for wrong sizes and for all-zero parts, which restic refuses."""
        sizes = (len(encrypt), len(mac_k), len(mac_r))
        if sizes != (ENCRYPT_SIZE, MAC_PART_SIZE, MAC_PART_SIZE):
            raise MalformedData("the master key", f"its parts have {sizes} bytes")
        if not (any(encrypt) and any(mac_k) and any(mac_r)):
            raise MalformedData("the master key", "a part of it is all zero")
        self.encrypt = encrypt
        self.mac_k = mac_k
        self.mac_r = mac_r
        self._aes = AES(encrypt)
        self._mac_aes = AES(mac_k)

    def __repr__(self) -> str:
        return "Key(<secret>)"

    def _one_time(self, iv: bytes) -> Poly1305:
        encryptor = Cipher(self._mac_aes, ECB()).encryptor()  # noqa: S305 - one block, by Poly1305-AES
        return Poly1305(self.mac_r + encryptor.update(iv))

    def seal(self, iv: bytes, plaintext: Buffer) -> bytearray:
        """Encrypt and authenticate; ``iv`` is 16 fresh random bytes, not all zero."""
        _check_iv(iv)
        size = len(plaintext)
        sealed = bytearray(size + OVERHEAD)
        sealed[:IV_SIZE] = iv
        with memoryview(sealed) as view:
            Cipher(self._aes, CTR(iv)).encryptor().update_into(plaintext, view[IV_SIZE:])
            mac = self._one_time(iv)
            mac.update(view[IV_SIZE : IV_SIZE + size])
            view[IV_SIZE + size :] = mac.finalize()
        return sealed

    def sealing(self, iv: bytes) -> Sealing:
        """Begin to seal piece by piece; ``iv`` as for ``seal``."""
        _check_iv(iv)
        return Sealing(Cipher(self._aes, CTR(iv)).encryptor(), self._one_time(iv))

    def unsealing(self, iv: bytes, what: str) -> Unsealing:
        """Begin to unseal piece by piece; raises ``MalformedData`` naming ``what``."""
        if len(iv) != IV_SIZE or not any(iv):
            raise _not_authentic(what)
        return Unsealing(Cipher(self._aes, CTR(iv)).decryptor(), self._one_time(iv), what)

    def unseal(self, sealed: Buffer, what: str) -> bytes:
        """Return the plaintext; raise ``MalformedData`` naming ``what`` if the MAC is wrong."""
        if len(sealed) < OVERHEAD:
            raise MalformedData(what, f"{len(sealed)} bytes are too few to be sealed data")
        view = memoryview(sealed)
        iv = bytes(view[:IV_SIZE])
        ciphertext = view[IV_SIZE:-MAC_SIZE]
        mac = self._one_time(iv)
        mac.update(ciphertext)
        try:
            mac.verify(bytes(view[-MAC_SIZE:]))
        except InvalidSignature:
            raise _not_authentic(what) from None
        if not any(iv):
            raise _not_authentic(what)
        return Cipher(self._aes, CTR(iv)).decryptor().update(ciphertext)


def _check_iv(iv: bytes) -> None:
    if len(iv) != IV_SIZE or not any(iv):
        raise ValueError("an IV is 16 bytes, not all of them zero")


def _not_authentic(what: str) -> MalformedData:
    return MalformedData(what, "its authentication code is wrong")
