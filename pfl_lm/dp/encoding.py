"""What happens to an update between training and the sum: clip, encode, noise; and decode after.

Shapes: K devices at once (K = 1 is one device), d coordinates of the payload.
Units: an update is in the model's units; a vector on the grid is in integers, ``grid.scale`` of
them to one model unit. Everything after the clip is integers, whose sums are exact in any order.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pfl_lm.dp.grid import Grid
from pfl_lm.dp.noise import NoiseShare, sources_of
from pfl_lm.dp.sampler.arrays import Doubles, Flags, Int64s, Integers, Updates
from pfl_lm.dp.sampler.discrete_noise import Table, add_noise, one_table
from pfl_lm.dp.sampler.random_bits import RandomBits
from pfl_lm.dp.sampler.rounding import round_at_random, sum_of_squares

TRIES = 64  # of conditional rounding; each fails with probability ≤ e^(−1/2), all with < 2^-46
_MARGIN = 2.0**-22  # room below the clip norm for the rounding errors of float32
_CACHED = 1 << 25  # bytes of vectors that a cache may still hold when they are summed


@dataclass(frozen=True)
class Clipped:
    """What the clip did: the norms before it (nan where a row was not finite), and who changed."""

    norms: Doubles  # (K,) before clipping, in model units
    clipped: Flags  # (K,) true where the row was scaled down or zeroed

    @classmethod
    def of(cls, lengths: Doubles, factors: Doubles) -> Clipped:
        """Return what the clip did to rows of these norms, by what they were scaled by."""
        return cls(np.where(np.isfinite(lengths), lengths, np.nan), factors != 1.0)


def norms(updates: Updates) -> Doubles:
    """Return float64[K], the ℓ2 norm of each row, summed in float64; not finite if the row is not.

    The order of summation is fixed, so that a reproducible run does not depend on the machine.

    Squares of float32 cannot overflow float64, so a norm is inf or nan only if a coordinate is.
    """
    _check(updates)
    return np.sqrt(np.array([sum_of_squares(row) for row in updates], dtype=np.float64))


def protect(
    updates: Updates,
    grid: Grid,
    share: NoiseShare | None,
    bits: RandomBits | Sequence[RandomBits],
    out: Integers | None = None,
) -> tuple[Integers, Clipped]:
    """Clip, round to the grid and add each device's own noise share: float32[K, d] → (K, d).

    Each row is scaled down to norm ≤ grid.clip_norm. Each coordinate times ``grid.scale`` is then
    rounded up with a probability equal to its fraction; a row whose rounded norm exceeds
    ``grid.norm_bound`` is rounded again with other bits. The share of noise is added last.

    Args:
        updates: (K, d), C-contiguous float32, in model units; left as they are.
        grid: of the round, ``grid.dim`` = d.
        share: the noise of each device; None where devices add none.
        bits: one source for all rows in turn, or one for each.
        out: (K, d) of ``grid.integer`` to write into; a buffer used again saves the time of fresh
            memory pages.

    Returns:
        The vectors, in ``grid.integer``: where that has 32 bits, noise so large that it wraps
        there wraps in the ring too. And what clipping did.

    Guarantees:
        Before its noise, every row's integer norm is ≤ ``grid.norm_bound``, checked in exact
        integer arithmetic whatever the input. After 64 refused roundings (probability < 2^-46 for
        a clipped row) the row is rounded towards zero, which never lengthens it; should even that
        exceed the bound, the row becomes zero. A refusal depends on the rounding alone, and the
        noise drawn beside a refused rounding is discarded unseen. Noise is independent across
        coordinates and rows, exact to statistical distance 2^-150 per coordinate
        (:func:`pfl_lm.dp.sampler.discrete_noise.add_noise`), and is in every coordinate of every
        row, of an erased row too.

    ===================================  ======================================================
    row                                  what the device sends, before its noise
    ===================================  ======================================================
    all zeros (also −0.0)                zeros
    any NaN or ±inf                      zeros; its norm is reported as nan
    norm ≤ clip_norm·(1 − 2^-22)         the rounded row
    longer, coordinates up to 3e38       the rounded row·clip_norm·(1 − 2^-22)/norm
    subnormal coordinates                rounded as they are: zeros, at any ordinary clip norm
    ===================================  ======================================================

    The expectation is the clipped row, up to four errors, which touch utility and not privacy:
    the rounding's coarseness (2^-17 of a grid step per coordinate without a share; beside a share
    that one table draws, whose word of 32 bits decides both, 2^-12 of a step up to a share of 255
    steps' deviation and 2^-18 of the deviation above), 2^-23 of a coordinate's size (float32), the
    2^-22 of the clip's margin, and the refusals. A refusal happens with probability
    p ≤ β = e^(−1/2) and shifts the expectation by p/(1 − p)·E[refused − update], at most 1.6·√d
    grid steps in norm; from a few thousand coordinates on, p is too small to see.

    Source: Kairouz, Liu, Steinke 2021 (arXiv:2102.06387), Algorithm 1 and Proposition 22.

    Raises:
        ValueError: wrong dtype, shape or layout; sources that are not one for each row.
    """
    before = norms(updates)
    if updates.shape[1] != grid.dim:
        raise ValueError(f"updates have {updates.shape[1]} coordinates, the grid {grid.dim}")
    vectors = np.empty(updates.shape, dtype=grid.integer) if out is None else out
    if vectors.shape != updates.shape or vectors.dtype != grid.integer:
        raise ValueError(
            f"out must be {grid.integer}{updates.shape}, got {vectors.dtype}{vectors.shape}"
        )
    factors = clip_factors(before, grid.clip_norm)
    encoder = _Encoder(grid, share, past_caches=vectors.nbytes > _CACHED)
    for k, source in enumerate(sources_of(bits, len(updates))):
        encoder.write(updates[k], float(factors[k]), source, vectors[k])
    return vectors, Clipped.of(before, factors)


def decode(total: Int64s, grid: Grid, report_goal: int) -> Updates:
    """Return the mean update float32[d] of an integer sum: ÷ scale ÷ report_goal.

    The divisor is the public report goal, never the number of reports that came.
    """
    if report_goal < 1:
        raise ValueError(f"report_goal must be at least 1, got {report_goal}")
    return (total / (grid.scale * report_goal)).astype(np.float32)


def _check(updates: Updates) -> None:
    if updates.dtype != np.float32 or updates.ndim != 2 or not updates.flags.c_contiguous:
        raise ValueError(
            f"updates must be C-contiguous float32[K, d], got {updates.dtype}{updates.shape}"
        )


def clip_factors(lengths: Doubles, clip_norm: float) -> Doubles:
    """Return float64[K]: 1 for a row to leave alone, 0 for one to erase, else what to scale by."""
    limit = clip_norm * (1 - _MARGIN)
    # No negation of "norm > limit": that is false for nan, which must be erased.
    with np.errstate(invalid="ignore", divide="ignore"):
        scaled = np.where(lengths <= limit, 1.0, limit / lengths)
    return np.where(np.isfinite(lengths), scaled, 0.0)


class _Encoder:
    """Rounds one row after the other and adds noise to it, while its blocks are in the cache."""

    def __init__(self, grid: Grid, share: NoiseShare | None, past_caches: bool) -> None:
        self._grid, self._share, self._past_caches = grid, share, past_caches
        self._table: Table | None = None
        if share is not None and share.variance > 0:
            self._table = one_table(share.kind, share.variance)
        self._alias = None if self._table is None else self._table.alias

    def write(self, row: Updates, factor: float, bits: RandomBits, out: Integers) -> None:
        """Round row·factor within the norm bound if that succeeds, else towards zero; add noise.

        A refused rounding discards its noise unseen: the refusal depends on the rounding alone.
        """
        factor *= self._grid.scale
        for _ in range(TRIES if factor != 0.0 else 0):
            squares, left = round_at_random(row, factor, bits, out, self._alias, self._past_caches)
            if squares <= self._grid.norm_bound_squared:
                if self._table is None:
                    self._add_noise(out, bits)
                else:
                    self._table.add_rest(left, out, bits)
                return
        if factor == 0.0:
            out[:] = 0
        else:
            np.trunc(row * np.float64(factor), out=out, casting="unsafe")
            if int(np.dot(out, out.astype(np.int64))) > self._grid.norm_bound_squared:
                out[:] = 0
        self._add_noise(out, bits)

    def _add_noise(self, out: Integers, bits: RandomBits) -> None:
        if self._share is not None:
            add_noise(self._share.kind, self._share.variance, out, bits)
