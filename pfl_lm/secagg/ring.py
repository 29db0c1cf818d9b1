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

MIN_BITS, MAX_BITS = 8, 64
_SLACK = 8  # bytes behind a packed vector that its last 64-bit piece may touch


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

    def pack(self, words: Words) -> bytes | memoryview:
        """Write reduced ring elements (d,) as consecutive b-bit little-endian fields.

        Bit ``i`` of entry ``j`` is bit ``(j*b + i) % 8`` of byte ``(j*b + i) // 8``; the unused
        bits of the last byte are zero. Words that are b bits wide are not copied.
        """
        if self.bits == 8 * words.itemsize:
            return words.data.cast("B")
        padded = np.zeros(-(-words.size // 8) * 8, dtype=self.word)
        padded[: words.size] = words
        fields, width = _join_neighbours(padded, self.bits)
        groups = fields.reshape(-1, 8 * self.bits // width)
        packed = bytearray(len(groups) * self.bits + _SLACK)
        # A group of eight entries fills exactly `bits` bytes. Its last 64-bit piece may run into
        # the next group, so pieces are written from the last to the first.
        for at, piece in reversed(list(enumerate(self._pieces(packed, len(groups))))):
            bits = np.zeros(len(groups), dtype=np.uint64)
            for column, field in enumerate(groups.T):
                shift = column * width - 64 * at
                if 0 <= shift < 64:
                    bits |= field << np.uint64(shift)
                elif -width < shift < 0:
                    bits |= field >> np.uint64(-shift)
            piece[:] = bits
        return bytes(memoryview(packed)[: self.packed_bytes(words.size)])

    def unpack(self, packed: bytes | memoryview, dim: int) -> Words:
        """Read what ``pack`` wrote: an array (dim,) of ``word``, a view where it can be.

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
            return np.frombuffer(packed, dtype=self.word)
        count = -(-dim // 8)
        padded = bytearray(count * self.bits + _SLACK)
        padded[: len(packed)] = packed
        pieces = self._pieces(padded, count)
        width = self.bits * 8 // self.word.itemsize
        mask = np.uint64((1 << width) - 1)
        fields = np.empty((count, 8 * self.bits // width), dtype=np.uint64)
        for column in range(fields.shape[1]):
            at, shift = divmod(column * width, 64)
            field = pieces[at] >> np.uint64(shift)
            if shift + width > 64:
                field |= pieces[at + 1] << np.uint64(64 - shift)
            fields[:, column] = field & mask
        return _split_neighbours(fields.reshape(-1), width, self.word)[:dim]

    def _pieces(self, packed: bytearray, groups: int) -> list[NDArray[np.uint64]]:
        """Views of the 64-bit words at bytes 0, 8, 16, ... of every group of ``bits`` bytes."""
        return [
            np.ndarray((groups,), dtype="<u8", buffer=packed, offset=start, strides=(self.bits,))
            for start in range(0, self.bits, 8)
        ]


def _join_neighbours(words: Words, width: int) -> tuple[NDArray[np.uint64], int]:
    """Join neighbouring ``width``-bit entries into 64-bit fields; return them and their width."""
    while words.itemsize < 8:
        half = 8 * words.itemsize
        wide = words.view(np.dtype(f"<u{2 * words.itemsize}"))
        words = (wide & wide.dtype.type((1 << half) - 1)) | (wide >> half) << width
        width *= 2
    return words.view(np.uint64), width


def _split_neighbours(fields: NDArray[np.uint64], width: int, word: np.dtype[Any]) -> Words:
    """The inverse of ``_join_neighbours``, down to entries of ``word``."""
    words: Words = fields
    while words.itemsize > word.itemsize:
        width //= 2
        half = words.itemsize // 2
        wide = (words & words.dtype.type((1 << width) - 1)) | (words >> width) << 8 * half
        words = wide.view(np.dtype(f"<u{half}"))
    return words
