"""Arithmetic modulo 2^b: the ring in which reports are masked and summed.

The modulus is a power of two, so a machine word wraps exactly as the ring does (an odd modulus
costs ten times more), uniform words are uniform ring elements, and a sum has the same bytes in
any order. Sums are taken in the narrowest word that holds b bits; bits above b are rubbish
until ``reduce`` clears them, once, at the end.

Legend: d entries of a vector, K vectors, b bits of the ring.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pfl_lm.secagg.errors import MalformedMessage

Words = NDArray[np.unsignedinteger[Any]]

MIN_BITS, MAX_BITS = 2, 64
_LANES = 64  # entries whose b-bit fields fill a whole number (b) of 64-bit words
_BLOCK = 256 * _LANES  # entries packed at a time: small enough to stay in the cache


@dataclass(frozen=True)
class Ring:
    """The integers modulo 2^bits, ``2 <= bits <= 64``.

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
        """The narrowest unsigned machine word, little-endian, that holds ``bits`` bits."""
        return np.dtype("<u2" if self.bits <= 16 else "<u4" if self.bits <= 32 else "<u8")

    def embed(self, integers: NDArray[np.int64]) -> Words:
        """Map integers to ring elements, a fresh array of ``word`` of the same shape."""
        words: Words = integers.astype(self.word)
        return self.reduce(words)

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
        return (dim * self.bits + 7) // 8

    def pack(self, words: Words) -> bytes:
        """Write reduced ring elements (d,) as consecutive b-bit little-endian fields.

        Bit ``i`` of entry ``j`` is bit ``(j*b + i) % 8`` of byte ``(j*b + i) // 8``; the unused
        bits of the last byte are zero.
        """
        if self.bits == 8 * words.itemsize:
            return words.tobytes()
        padded = np.zeros(-(-words.size // _LANES) * _LANES, dtype=self.word)
        padded[: words.size] = words
        packed = np.empty((padded.size // _LANES, self.bits), dtype="<u8")
        rows = _BLOCK // _LANES
        lanes = padded.reshape(-1, _LANES)
        for start in range(0, lanes.shape[0], rows):
            block = lanes[start : start + rows].T.astype(np.uint64, order="C")
            packed[start : start + rows] = self._fields_to_words(block).T
        return packed.tobytes()[: self.packed_bytes(words.size)]

    def unpack(self, packed: bytes | memoryview, dim: int) -> Words:
        """Read what ``pack`` wrote: a writable array (dim,) of ``word``.

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
        if self.bits == 8 * self.word.itemsize:
            return np.frombuffer(packed, dtype=self.word).copy()
        groups = -(-dim // _LANES)
        padded = np.zeros(groups * self.bits * 8, dtype=np.uint8)
        padded[: len(packed)] = np.frombuffer(packed, dtype=np.uint8)
        fields = padded.view("<u8").reshape(groups, self.bits)
        lanes = np.empty((groups, _LANES), dtype=self.word)
        rows = _BLOCK // _LANES
        for start in range(0, groups, rows):
            block = np.ascontiguousarray(fields[start : start + rows].T)
            lanes[start : start + rows] = self._words_to_fields(block).T
        return lanes.reshape(-1)[:dim].copy()

    def _fields_to_words(self, lanes: NDArray[np.uint64]) -> NDArray[np.uint64]:
        """(64, R) entries below 2^b -> (b, R) words that hold their bits back to back."""
        words = np.zeros((self.bits, lanes.shape[1]), dtype=np.uint64)
        for lane in range(_LANES):
            at, shift = divmod(lane * self.bits, 64)
            words[at] |= lanes[lane] << np.uint64(shift)
            if shift + self.bits > 64:
                words[at + 1] |= lanes[lane] >> np.uint64(64 - shift)
        return words

    def _words_to_fields(self, words: NDArray[np.uint64]) -> NDArray[np.uint64]:
        """The inverse of ``_fields_to_words``: (b, R) -> (64, R)."""
        lanes = np.empty((_LANES, words.shape[1]), dtype=np.uint64)
        for lane in range(_LANES):
            at, shift = divmod(lane * self.bits, 64)
            np.right_shift(words[at], np.uint64(shift), out=lanes[lane])
            if shift + self.bits > 64:
                lanes[lane] |= words[at + 1] << np.uint64(64 - shift)
        lanes &= np.uint64((1 << self.bits) - 1)
        return lanes
