"""A public random rotation that spreads an update evenly over its coordinates.

A sum whose coordinates are all of like size fits a narrower ring: its largest coordinate is that of
its norm ÷ √d, not of its norm. The rotation is the randomized Hadamard transform H·D/√m, D random
signs, on the first m coordinates and then, with other signs, on the last m, where m is the largest
power of two up to d. Together they are orthogonal on exactly d coordinates: nothing is padded, so
norms, sensitivity and the accounting are those without it; and every coordinate of the result is
subgaussian with variance proxy ‖x‖²/m ≤ 2‖x‖²/d.

The signs are public and the same for a whole cohort; they must not be known before the updates
that they rotate are fixed by data and model, or an update could be made to undo the spreading
(which would cost utility, never privacy).

What is here in numpy is the definition; ``native/hadamard.c`` computes the same, to float32's
rounding, ten times faster.

Source: Ailon, Chazelle 2006 (fast Johnson-Lindenstrauss transform); Kairouz, Liu, Steinke 2021
(arXiv:2102.06387), Section 4.2, for its use here. The overlapping blocks are this project's.
"""

from __future__ import annotations

import ctypes
import math
from functools import cache
from typing import Any

import numpy as np

from pfl_lm import native
from pfl_lm.dp.sampler.random_bits import RandomBits, reproducible_bits

Floats = np.ndarray[Any, np.dtype[np.float32]]
Signs = np.ndarray[Any, np.dtype[np.uint8]]

_STAGE_BITS = 6  # a stage is one product with the 64 × 64 Hadamard matrix: BLAS does the rest


def block_of(dim: int) -> int:
    """Return m, the coordinates of one transform: the largest power of two up to ``dim``."""
    return 1 << (dim.bit_length() - 1)


class Rotation:
    """The rotation of one round, d coordinates.

    Args:
        dim: d, at least 1.
        seed: 32 public bytes, fresh for every round.

    Guarantees:
        ``inverse`` undoes ``forward``, and both keep ℓ2 norms, up to float32 rounding (a few
        1e-7 of the norm). Clip after ``forward``: a clip norm is then exact.
    """

    def __init__(self, dim: int, seed: bytes) -> None:
        if dim < 1:
            raise ValueError(f"dim must be at least 1, got {dim}")
        self.dim = dim
        block, bits = block_of(dim), reproducible_bits(seed)
        starts = [0] if block == dim else [0, dim - block]
        self._turns = [(slice(start, start + block), _draw_signs(block, bits)) for start in starts]

    def forward(self, rows: Floats) -> None:
        """Rotate every row of float32[K, d], in place; a row that is not finite stays so."""
        for row in self._checked(rows):
            for part, signs in self._turns:
                _turn_signs(row[part], signs)
                _hadamard(row[part])

    def inverse(self, rows: Floats) -> None:
        """Rotate every row of float32[K, d] back, in place."""
        for row in self._checked(rows):
            for part, signs in reversed(self._turns):
                _hadamard(row[part])
                _turn_signs(row[part], signs)

    def _checked(self, rows: Floats) -> Floats:
        if rows.dtype != np.float32 or rows.ndim != 2 or rows.shape[1] != self.dim:
            raise ValueError(f"rows must be float32[K, {self.dim}], got {rows.dtype}{rows.shape}")
        return rows


def _draw_signs(count: int, bits: RandomBits) -> Signs:
    """Return ``count`` signs, the bits of the key stream, least significant first: 1 is minus."""
    packed = np.empty(-(-count // 8), dtype=np.uint8)
    bits.fill(packed)
    return packed


def _turn_signs(block: Floats, signs: Signs) -> None:
    """Multiply float32[m] by m signs, in place."""
    compiled = _compiled(block)
    if compiled is not None:
        compiled.turn_signs(block.ctypes.data, signs.ctypes.data, len(block))
    else:
        minus = np.unpackbits(signs, count=len(block), bitorder="little").view(np.bool_)
        np.negative(block, out=block, where=minus)


def _hadamard(block: Floats) -> None:
    """Multiply float32[m], m a power of two, by the orthonormal Hadamard matrix, in place.

    H of size a·b is the Kronecker product of those of sizes a and b: one stage for every six bits
    of an index.
    """
    compiled = _compiled(block)
    if compiled is not None:
        compiled.hadamard(block.ctypes.data, len(block), 1 / math.sqrt(len(block)))
        return
    size, stride = len(block), 1
    source, target = block, np.empty_like(block)
    # Overflow of huge coordinates becomes inf and then nan: the clip erases such a row.
    with np.errstate(over="ignore", invalid="ignore"):
        while stride < size:
            radix = min(1 << _STAGE_BITS, size // stride)
            matrix = _matrix(radix)
            if stride == 1:
                np.matmul(source.reshape(-1, radix), matrix, out=target.reshape(-1, radix))
            else:
                shape = (-1, radix, stride)
                np.matmul(matrix, source.reshape(shape), out=target.reshape(shape))
            source, target, stride = target, source, stride * radix
    if source is not block:
        block[:] = source


def _compiled(block: Floats) -> ctypes.CDLL | None:
    """``native/hadamard.c``, which takes a contiguous row of whole vectors of 8; else None."""
    if len(block) < 8 or block.strides != (4,):
        return None
    return native.load("hadamard")


@cache
def _matrix(size: int) -> Floats:
    """Return the orthonormal Hadamard matrix, float32[size, size] (symmetric)."""
    indices = np.arange(size)
    parity = np.bitwise_count(indices[:, None] & indices) & 1
    matrix: Floats = ((1 - 2.0 * parity) / math.sqrt(size)).astype(np.float32)
    return matrix
