"""Masks: pseudo-random ring elements from seeds, added at the speed of the key stream.

A mask is the AES-128-CTR key stream of a 32-byte seed: 16 bytes of key, 16 of initial counter,
so that trying one key attacks one mask, not all of them at once. The stream is read as a packed
vector, b bits to an entry: no bit of it is wasted. Powers of two: uniform bits are uniform ring
elements, and nothing is rejected.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import islice

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, CipherContext, algorithms, modes

from pfl_lm.secagg.packing import SLACK, Words, adder, packed_bytes
from pfl_lm.secagg.ring import Ring

_BLOCK_BYTES = 1 << 17  # of one stream at a time
_TOGETHER = 4  # streams whose blocks are added in one call
_STREAMS = 4096  # open at a time: about a kilobyte of cipher state each


def add_masks(ring: Ring, total: Words, plus: Iterable[bytes], minus: Iterable[bytes]) -> None:
    """Add the masks of ``plus`` and subtract those of ``minus``, in place.

    Args:
        ring: whose elements the masks are.
        total: its words (d,), contiguous; wraps as machine words do, not reduced to b bits.
        plus, minus: 32-byte seeds.
    """
    for seeds, subtract in ((iter(plus), False), (iter(minus), True)):
        while batch := list(islice(seeds, _STREAMS)):
            _apply(ring, total, [_open_stream(seed) for seed in batch], subtract)


def _apply(ring: Ring, total: Words, streams: Sequence[CipherContext], subtract: bool) -> None:
    """One block of every stream before the next block of any: the running sum stays in cache."""
    rows = np.empty((_TOGETHER, _BLOCK_BYTES + SLACK), dtype=np.uint8)
    add = adder(total, rows, ring.bits, subtract)
    zeros = bytes(_BLOCK_BYTES)
    step = _BLOCK_BYTES // (16 * ring.bits) * 128  # whole blocks of the cipher, whatever b is
    for first in range(0, total.size, step):
        count = min(step, total.size - first)
        source = memoryview(zeros)[: packed_bytes(count, ring.bits)]
        targets = [row.data[: len(source)] for row in rows]
        for start in range(0, len(streams), _TOGETHER):
            together = streams[start : start + _TOGETHER]
            for stream, target in zip(together, targets, strict=False):
                stream.update_into(source, target)
            add(first, count, len(together))


def _open_stream(seed: bytes) -> CipherContext:
    return Cipher(algorithms.AES128(seed[:16]), modes.CTR(seed[16:])).encryptor()
