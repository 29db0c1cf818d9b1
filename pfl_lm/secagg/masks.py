"""Masks: pseudo-random ring elements from seeds, added at the speed of the key stream.

A mask is the AES-128-CTR key stream of a 32-byte seed: 16 bytes of key, 16 of initial counter,
so that trying one key attacks one mask, not all of them at once. The stream is read as a packed
vector, b bits to an entry: no bit of it is wasted. Powers of two: uniform bits are uniform ring
elements, and nothing is rejected.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, CipherContext, algorithms, modes

from pfl_lm.secagg import packing
from pfl_lm.secagg.packing import TOGETHER, Bytes, Integers, Words, packed_bytes
from pfl_lm.secagg.ring import Ring

_BLOCK_BYTES = 1 << 18  # of one stream at a time
_APART = 320  # bytes between two such blocks: at powers of two they share sets of the cache
_STREAMS = 4096  # open at a time: about a kilobyte of cipher state each


def add_masks(ring: Ring, total: Words, plus: Iterable[bytes], minus: Iterable[bytes]) -> None:
    """Add the masks of ``plus`` and subtract those of ``minus``, in place.

    Args:
        ring: whose elements the masks are.
        total: its words (d,), contiguous; wraps as machine words do, not reduced to b bits.
        plus, minus: 32-byte seeds.
    """
    rows = _rows()
    for seeds, subtract in ((iter(plus), False), (iter(minus), True)):
        while batch := list(islice(seeds, _STREAMS)):
            masks = _Masks(ring, batch, total, rows, subtract)
            for first, count in _blocks(ring, total.size):
                masks.add(first, count)


def mask(ring: Ring, vector: Integers, plus: Sequence[bytes], minus: Sequence[bytes]) -> memoryview:
    """Return a vector (d,) with masks added and subtracted, packed; no copy of it is made.

    Args:
        ring: in which it is masked; entries, int32 or int64, are taken modulo 2^b.
        plus, minus: 32-byte seeds.
    """
    packed = np.empty(ring.packed_bytes(vector.size), dtype=np.uint8)
    words, rows = ring.zeros(min(vector.size, _block(ring))), _rows()
    masks = [_Masks(ring, plus, words, rows, False), _Masks(ring, minus, words, rows, True)]
    for first, count in _blocks(ring, vector.size):
        ring.embed(vector[first : first + count], words[:count])
        for stream in masks:
            stream.add(0, count)
        start, stop = (packed_bytes(entries, ring.bits) for entries in (first, first + count))
        packing.pack_into(packed[start:stop], words[:count], ring.bits)
    return packed.data


class _Masks:
    """Masks of one sign, read block by block from the first to the last.

    One block of every stream is added before the next block of any is made: what it is added to
    stays in the cache.
    """

    def __init__(
        self, ring: Ring, seeds: Sequence[bytes], total: Words, rows: Bytes, subtract: bool
    ) -> None:
        self._bits = ring.bits
        self._streams = [_open_stream(seed) for seed in seeds]
        self._targets = [row.data for row in rows]
        self._add = packing.adder(total, list(rows), ring.bits, subtract)

    def add(self, first: int, count: int) -> None:
        """Add the next ``count`` entries of every mask to the words from ``first`` on."""
        source = memoryview(_ZEROS)[: packed_bytes(count, self._bits)]
        targets = [target[: len(source)] for target in self._targets]
        for start in range(0, len(self._streams), TOGETHER):
            together = self._streams[start : start + TOGETHER]
            for stream, target in zip(together, targets, strict=False):
                stream.update_into(source, target)
            self._add(first, count, len(together))


_ZEROS = bytes(_BLOCK_BYTES)  # a stream cipher's key stream is what it makes of them


def _rows() -> Bytes:
    return np.empty((TOGETHER, _BLOCK_BYTES + _APART), dtype=np.uint8)


def _block(ring: Ring) -> int:
    """Entries of a block: whole blocks of the cipher and whole groups of fields, whatever b is."""
    return _BLOCK_BYTES // (16 * ring.bits) * 128


def _blocks(ring: Ring, dim: int) -> Iterator[tuple[int, int]]:
    """The first entry of each block, and how many it has."""
    for first in range(0, dim, _block(ring)):
        yield first, min(_block(ring), dim - first)


def _open_stream(seed: bytes) -> CipherContext:
    return Cipher(algorithms.AES128(seed[:16]), modes.CTR(seed[16:])).encryptor()
