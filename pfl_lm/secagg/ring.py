"""Arithmetic modulo 2^b: the ring in which reports are masked and summed.

The modulus is a power of two, so a machine word wraps exactly as the ring does (an odd modulus
costs ten times more), uniform words are uniform ring elements, and a sum has the same bytes in
any order. Sums are taken in the narrowest word that holds b bits; bits above b are rubbish
until ``reduce`` clears them, once, at the end.

Legend: d entries of a vector, K vectors, b bits of the ring.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pfl_lm.secagg import packing
from pfl_lm.secagg.errors import MalformedMessage
from pfl_lm.secagg.packing import Integers, Words

MIN_BITS, MAX_BITS = 8, 64


@dataclass(frozen=True)
class Ring:
    """The integers modulo 2^bits, ``8 <= bits <= 64``.

    Raises:
        ValueError: ``bits`` is not an integer in that range.
    """

    bits: int

    def __post_init__(self) -> None:
        if type(self.bits) is not int or not MIN_BITS <= self.bits <= MAX_BITS:
            raise ValueError(f"bits must be an integer from {MIN_BITS} to {MAX_BITS}: {self.bits}")

    @property
    def largest(self) -> int:
        """The largest m such that every sum in ``[-m, m]`` is read back without wrapping."""
        return (1 << (self.bits - 1)) - 1

    @property
    def word(self) -> np.dtype[Any]:
        """The unsigned machine word, little-endian of 4 or 8 bytes, that holds ``bits`` bits."""
        return np.dtype("<u4" if self.bits <= 32 else "<u8")

    def zeros(self, dim: int) -> Words:
        """A running sum before anything was added to it: (dim,) words."""
        return packing.zeros(dim, self.word)

    def check_integers(self, dtype: np.dtype[Any]) -> None:
        """Raise unless these are integers of 32 or 64 bits, as many as a word of the ring at least.

        Integers that wrapped at 32 bits are what they were in a ring of at most 32 bits only.

        Raises:
            ValueError: naming the dtype.
        """
        kind, size = dtype.kind, dtype.itemsize
        if kind not in "iu" or size not in (4, 8) or size < self.word.itemsize:
            least = "int32 or int64" if self.word.itemsize == 4 else "int64"
            raise ValueError(f"vectors must be {least} in a ring of {self.bits} bits: {dtype}")

    def embed(self, integers: Integers, words: Words) -> None:
        """Write integers (n,) as ring elements into words (n,), not reduced to b bits."""
        np.copyto(words, integers, casting="unsafe")

    def reduce(self, words: Words) -> Words:
        """Clear the bits above ``bits``, in place."""
        if self.bits < 8 * words.itemsize:
            np.bitwise_and(words, words.dtype.type((1 << self.bits) - 1), out=words)
        return words

    def centre(self, words: Words) -> NDArray[np.int64]:
        """Return the representatives in ``[-2^(b-1), 2^(b-1))``, int64, a fresh array.

        An integer sum inside ``[-largest, largest]`` comes back as itself; one beyond wraps,
        which costs utility and never privacy. Capacity is to be checked before a run.
        """
        shift = 64 - self.bits
        wide = words.astype(np.uint64)
        wide <<= np.uint64(shift)
        signed = wide.view(np.int64)
        signed >>= np.int64(shift)
        return signed

    def packed_bytes(self, dim: int) -> int:
        """Bytes of ``dim`` packed ring elements: ``ceil(dim * bits / 8)``."""
        return packing.packed_bytes(dim, self.bits)

    def pack(self, words: Words) -> memoryview:
        """Write words (d,) as consecutive b-bit fields (see ``packing``), bits above b left out."""
        return packing.pack(words, self.bits)

    def unpack(self, packed: bytes | memoryview, dim: int) -> Words:
        """Read what ``pack`` wrote: a fresh array (dim,) of ``word``.

        Raises:
            MalformedMessage: see ``check_packed``.
        """
        self.check_packed(packed, dim)
        words = self.zeros(dim)
        self.add_packed(words, [packed])
        return self.reduce(words)

    def add_packed(self, total: Words, vectors: Sequence[bytes | memoryview]) -> None:
        """Add packed vectors to words (d,), in place, not reduced to b bits."""
        packing.add_packed(total, vectors, self.bits)

    def check_packed(self, packed: bytes | memoryview, dim: int) -> None:
        """Raise unless these bytes are ``dim`` packed elements, in the one way to write them.

        Raises:
            MalformedMessage: another length than ``packed_bytes(dim)``, or unused bits set (two
                encodings of one vector would let a message be altered and stay valid).
        """
        if len(packed) != self.packed_bytes(dim):
            raise MalformedMessage(
                f"a vector of {dim} entries of {self.bits} bits takes {self.packed_bytes(dim)} "
                f"bytes, not {len(packed)}"
            )
        unused = 8 * len(packed) - dim * self.bits
        if unused and packed[-1] >> (8 - unused):
            raise MalformedMessage("the unused bits after a packed vector must be zero")
