"""Masks: pseudo-random ring elements from seeds, added at the speed of the key stream.

A mask is the AES-128-CTR key stream of a 32-byte seed: 16 bytes of key, 16 of initial counter,
so that trying one key attacks one mask, not all of them at once. The stream is read as words of
the ring, little-endian; the bits above b fall to ``Ring.reduce``. Powers of two: uniform words
are uniform ring elements, and nothing is rejected.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import islice

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, CipherContext, algorithms, modes

from pfl_lm.secagg.ring import Words

_BLOCK_BYTES = 1 << 17  # zeros, stream and running sum of a block lie in the second-level cache
_STREAMS = 4096  # open at a time: about a kilobyte of cipher state each


def add_masks(total: Words, plus: Iterable[bytes], minus: Iterable[bytes]) -> None:
    """Add the masks of ``plus`` and subtract those of ``minus``, in place.

    Args:
        total: ring words (d,), contiguous; wraps as machine words do, not reduced to b bits.
        plus, minus: 32-byte seeds.
    """
    for seeds, operation in ((iter(plus), np.add), (iter(minus), np.subtract)):
        while batch := list(islice(seeds, _STREAMS)):
            _apply(total, [_open_stream(seed) for seed in batch], operation)


def _apply(total: Words, streams: Sequence[CipherContext], operation: np.ufunc) -> None:
    """One block of every stream before the next block of any: the running sum stays in cache."""
    zeros = bytes(_BLOCK_BYTES)
    buffer = bytearray(_BLOCK_BYTES)
    step = _BLOCK_BYTES // total.itemsize
    mask = np.frombuffer(buffer, dtype=total.dtype)
    for start in range(0, total.size, step):
        block = total[start : start + step]
        words = mask[: block.size]
        source = memoryview(zeros)[: block.nbytes]
        target = memoryview(buffer)[: block.nbytes]
        for stream in streams:
            stream.update_into(source, target)
            operation(block, words, out=block)


def _open_stream(seed: bytes) -> CipherContext:
    return Cipher(algorithms.AES128(seed[:16]), modes.CTR(seed[16:])).encryptor()
