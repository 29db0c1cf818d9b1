"""Plain versions of what ``protect`` does in one pass: clip, encode, add noise shares, in turn.

Arithmetic is float64 and nothing is fused, so that each step can be read against its formula.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from pfl_lm.dp.grid import Grid
from pfl_lm.dp.noise import NoiseShare
from pfl_lm.dp.sampler.discrete_noise import add_noise
from pfl_lm.dp.sampler.pmf import Kind
from pfl_lm.dp.sampler.random_bits import RandomBits

Array = np.ndarray[Any, Any]


def clip(updates: Array, clip_norm: float) -> Array:
    """Scale every row down to norm ≤ clip_norm·(1 − 2^-22); erase rows that are not finite."""
    rows = updates.astype(np.float64)
    limit = clip_norm * (1 - 2.0**-22)
    for row in rows:
        norm = math.sqrt(math.fsum(row * row)) if np.isfinite(row).all() else math.inf
        if math.isinf(norm):
            row[:] = 0.0
        elif norm > limit:
            row *= limit / norm
    return rows


def encode(rows: Array, grid: Grid, bits: Sequence[RandomBits]) -> Array:
    """Round clipped rows up with a probability equal to the fraction, within the norm bound."""
    vectors = np.zeros(rows.shape, dtype=np.int64)
    for row, source, vector in zip(rows * grid.scale, bits, vectors, strict=True):
        for _ in range(64 if row.any() else 0):
            dither = source.octets(2 * len(row)).view(np.uint16).astype(np.float64)
            vector[:] = np.floor(row + (dither + 0.5) / 2**16)
            if np.dot(vector, vector) <= grid.norm_bound_squared:
                break
        else:
            vector[:] = np.trunc(row)
    return vectors


def noise_share(kind: Kind, grid: Grid, noise_multiplier: float, reports: int) -> NoiseShare:
    """Return each device's share, of which ``reports`` together carry the whole noise."""
    return NoiseShare(kind, grid.noise_variance(noise_multiplier) / reports)


def add_shares(vectors: Array, share: NoiseShare, bits: Sequence[RandomBits]) -> None:
    """Add an independent noise share to every row of int64[K, d], in place."""
    for row, source in zip(vectors, bits, strict=True):
        add_noise(share.kind, share.variance, row, source)


def noise_multiplier_of_rho(rho_: float) -> float:
    """Return the multiplier of the Gaussian release that is ρ-zCDP and no better.

    Its exact ε holds for a ρ that comes from Gaussian noise alone; a general zCDP claim supports
    only ``renyi.epsilon`` of α·ρ, which is 4 to 7% looser.
    """
    return math.inf if rho_ == 0 else (2 * rho_) ** -0.5
