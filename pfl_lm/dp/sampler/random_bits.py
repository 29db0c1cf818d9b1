"""Where the privacy path takes its uniform bits from: AES-256 in counter mode, never numpy."""

from __future__ import annotations

import os
from typing import Any, NoReturn

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from pfl_lm.dp.sampler.arrays import Octets, Room

_ZEROS = bytes(1 << 18)  # the keystream is the encryption of zeros, this many bytes at a time
_room = Room(np.uint8)


class RandomBits:
    """A source of independent uniform bits, to be consumed once, in order, by one thread.

    Open it with :func:`secure_bits` (protects people) or :func:`reproducible_bits` (simulation).

    Guarantees:
        * The bytes are the AES-256-CTR keystream of one key that no other source has: to tell
          them from uniform bytes is to break AES. Nothing else enters, no clock, no library
          generator.
        * No bit is served twice, and none in two processes: after a fork a secure source draws a
          new key, a reproducible one refuses (its labels must be opened anew in the child).
        * A source cannot be copied or pickled, so a checkpoint cannot bring spent bits back.

    Source: NIST SP 800-38A §6.5 (counter mode); SP 800-90A on why forks need a fresh key.
    """

    def __init__(self, key: bytes | None) -> None:
        """Args: key: 32 bytes, or None for a key from the operating system's CSPRNG.

        Raises:
            ValueError: a key of another length.
        """
        if key is not None and len(key) != 32:
            raise ValueError(f"key must be 32 bytes, got {len(key)}; derive it with streams.key")
        self.reproducible = key is not None
        self._open(os.urandom(32) if key is None else key)

    def _open(self, key: bytes) -> None:
        # A key serves one stream only, so the counter may start at zero.
        self._keystream = Cipher(algorithms.AES(key), modes.CTR(bytes(16))).encryptor()
        self._process = os.getpid()

    def fill(self, out: np.ndarray[Any, Any]) -> None:
        """Overwrite a contiguous integer array of any width with uniform bits.

        Raises:
            RuntimeError: a reproducible source that crossed a fork.
        """
        if os.getpid() != self._process:
            if self.reproducible:
                raise RuntimeError(
                    "reproducible bits crossed a fork; open them from their key in the child"
                )
            self._open(os.urandom(32))
        target = out.data.cast("B")
        for start in range(0, len(target), len(_ZEROS)):
            chunk = target[start : start + len(_ZEROS)]
            zeros = _ZEROS if len(chunk) == len(_ZEROS) else memoryview(_ZEROS)[: len(chunk)]
            self._keystream.update_into(zeros, chunk)

    def octets(self, count: int) -> Octets:
        """Return uint8[count], uniform, in memory that this thread's next call writes over."""
        room = _room.of(count)
        self.fill(room)
        return room

    def uint16(self, count: int) -> np.ndarray[Any, np.dtype[np.uint16]]:
        """Return uint16[count], uniform."""
        words = np.empty(count, dtype="<u2")
        self.fill(words)
        return words

    def uint64(self, count: int) -> np.ndarray[Any, np.dtype[np.uint64]]:
        """Return uint64[count], uniform."""
        words = np.empty(count, dtype="<u8")
        self.fill(words)
        return words

    def integer(self, width: int) -> int:
        """Return one uniform integer of ``width`` bits (a multiple of 64)."""
        return int.from_bytes(self.uint64(width // 64).tobytes(), "little")

    def __reduce__(self) -> NoReturn:
        raise TypeError("random bits cannot be copied or pickled: they would be used twice")


def secure_bits() -> RandomBits:
    """Open bits that protect people: the key comes from the operating system and is forgotten."""
    return RandomBits(None)


def reproducible_bits(key: bytes) -> RandomBits:
    """Open the bits that a 32-byte key names: for simulations that must be repeated exactly.

    The key tells all of the noise. The run's manifest says which kind was used.

    Args:
        key: from ``streams.key(seed, "noise", round, device)``; one label, one source.
    """
    return RandomBits(key)
