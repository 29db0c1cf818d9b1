"""What happens to an update between training and the sum: clip, encode, noise; and decode after.

Shapes: K devices at once (K = 1 is one device), d coordinates of the payload.
Units: an update is in the model's units; a vector on the grid is in integers, ``grid.scale`` of
them to one model unit. Everything after the clip is integers, whose sums are exact in any order.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pfl_lm.dp.arrays import Doubles, Flags, Int64s, Updates
from pfl_lm.dp.bits import Bits
from pfl_lm.dp.grid import Grid
from pfl_lm.dp.noise import NoiseShare, sources_of
from pfl_lm.dp.rounding import round_at_random, scale, sum_of_squares
from pfl_lm.dp.samplers import Table, add_noise, one_table

_TRIES = 64  # of conditional rounding; each fails with probability ≤ e^(−1/2), all with < 2^-46
_MARGIN = 2.0**-22  # room below the clip norm for the rounding errors of float32
_CACHED = 1 << 25  # bytes of vectors that a cache may still hold when they are summed


@dataclass(frozen=True)
class Clipped:
    """What clipping did: the norms before it (nan where a row was not finite), and who changed."""

    values: Updates  # (K, d)
    norms: Doubles  # (K,) before clipping, in model units
    clipped: Flags  # (K,) true where the row was scaled down or zeroed


def norms(updates: Updates) -> Doubles:
    """Return float64[K], the ℓ2 norm of each row, summed in float64; not finite if the row is not.

    The order of summation is fixed, so that a reproducible run does not depend on the machine.

    Squares of float32 cannot overflow float64, so a norm is inf or nan only if a coordinate is.
    """
    _check(updates)
    return np.sqrt(np.array([sum_of_squares(row) for row in updates], dtype=np.float64))


def clip(updates: Updates, clip_norm: float, in_place: bool = False) -> Clipped:
    """Scale each row of float32[K, d] down to ℓ2 norm ≤ clip_norm.

    Args:
        updates: (K, d), C-contiguous float32.
        clip_norm: in model units, at least 1e-30.
        in_place: write the result into ``updates``.

    Guarantees:
        Every returned row, as the real numbers its float32 coordinates are, has ℓ2 norm ≤
        clip_norm: rows above clip_norm·(1 − 2^-22) are scaled to it, and rounding to float32
        moves a norm by less than 2^-23 of it (d up to 2^28, for the sum of squares in float64).

    ============================  =========================================
    row                           result
    ============================  =========================================
    all zeros (also −0.0)         as it is
    any NaN or ±inf               all zeros; its norm is reported as nan
    subnormal coordinates         as they are (norm far below any clip norm)
    1e30, or up to 3e38           scaled, in float64
    norm exactly clip_norm        scaled by 1 − 2^-22
    ============================  =========================================

    Raises:
        ValueError: wrong dtype, shape or layout; a clip norm below 1e-30 or not finite.
    """
    if not 1e-30 <= clip_norm < math.inf:
        raise ValueError(f"clip_norm must be finite and at least 1e-30, got {clip_norm}")
    before = norms(updates)
    values = updates if in_place else updates.copy()
    factors = _factors(before, clip_norm)
    for k in np.flatnonzero(factors != 1.0):
        if factors[k] == 0.0:
            values[k] = 0.0
        else:
            scale(values[k], float(factors[k]), values[k])
    return Clipped(values, _reported(before), factors != 1.0)


def encode(updates: Updates, grid: Grid, bits: Bits | Sequence[Bits]) -> Int64s:
    """Round clipped updates to the integer grid without bias: float32[K, d] → int64[K, d].

    Each coordinate times ``grid.scale`` is rounded up with a probability equal to its fraction,
    and a row whose rounded norm exceeds ``grid.norm_bound`` is rounded anew.

    Args:
        updates: (K, d) rows of norm ≤ grid.clip_norm.
        bits: one source for all rows in turn, or one for each.

    Guarantees:
        Every row's integer norm is ≤ ``grid.norm_bound``, checked in exact integer arithmetic
        whatever the input. After 64 refused roundings (probability < 2^-46 for a clipped row) the
        row is rounded towards zero, which never lengthens it; should even that exceed the bound,
        the row becomes zero.

    The expectation is the update, up to three errors, which touch utility and not privacy: 2^-17
    of a grid step per coordinate (16 random bits decide), 2^-23 of its size (float32), and the
    refusals. A refusal happens with probability p ≤ β = e^(−1/2) and shifts the expectation by
    p/(1 − p)·E[refused − update], at most 1.6·√d grid steps in norm; from a few thousand
    coordinates on, p is too small to see.

    Source: Kairouz, Liu, Steinke 2021 (arXiv:2102.06387), Algorithm 1 and Proposition 22.

    Raises:
        ValueError: a row that is not finite or longer than grid.clip_norm; wrong shapes.
    """
    lengths = norms(updates)
    if not (lengths <= grid.clip_norm * (1 + 1e-9)).all():
        raise ValueError("updates must have norm ≤ clip_norm; clip them before encoding")
    return _encode(updates, np.ones(len(updates)), grid, None, bits)


def protect(
    updates: Updates,
    grid: Grid,
    share: NoiseShare | None,
    bits: Bits | Sequence[Bits],
    out: Int64s | None = None,
) -> tuple[Int64s, Clipped]:
    """Clip, encode and add each device's own noise share: float32[K, d] → int64[K, d].

    The same guarantees, distribution and edge cases as :func:`clip`, :func:`encode` and
    :func:`add_shares` in turn (a row that is not finite becomes pure noise), in two passes over
    memory and without touching ``updates``; ``Clipped.values`` is that unclipped input. Only the
    rounding is coarser beside a share that one table draws, whose word of 32 bits decides both: its
    expectation is within 2^-12 of a grid step up to a share of 255 steps' deviation, and within
    2^-18 of the deviation above.

    Args:
        share: the noise of each device; None for none (a trusted server adds it, or nobody).
        out: int64[K, d] to write into; a buffer used again saves the time of fresh memory pages.
    """
    before = norms(updates)
    factors = _factors(before, grid.clip_norm)
    vectors = _encode(updates, factors, grid, share, bits, out)
    return vectors, Clipped(updates, _reported(before), factors != 1.0)


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


def _factors(lengths: Doubles, clip_norm: float) -> Doubles:
    """Return float64[K]: 1 for a row to leave alone, 0 for one to erase, else what to scale by."""
    limit = clip_norm * (1 - _MARGIN)
    # No negation of "norm > limit": that is false for nan, which must be erased.
    with np.errstate(invalid="ignore", divide="ignore"):
        scaled = np.where(lengths <= limit, 1.0, limit / lengths)
    return np.where(np.isfinite(lengths), scaled, 0.0)


def _reported(lengths: Doubles) -> Doubles:
    return np.where(np.isfinite(lengths), lengths, np.nan)


def _encode(
    updates: Updates,
    factors: Doubles,
    grid: Grid,
    share: NoiseShare | None,
    bits: Bits | Sequence[Bits],
    out: Int64s | None = None,
) -> Int64s:
    """Round each row·factor and add its noise share; a factor of 0 means a zero vector."""
    if updates.shape[1] != grid.dim:
        raise ValueError(f"updates have {updates.shape[1]} coordinates, the grid {grid.dim}")
    vectors = np.empty(updates.shape, dtype=np.int64) if out is None else out
    if vectors.shape != updates.shape or vectors.dtype != np.int64:
        raise ValueError(f"out must be int64{updates.shape}, got {vectors.dtype}{vectors.shape}")
    encoder = _Encoder(grid, share, past_caches=vectors.nbytes > _CACHED)
    for k, source in enumerate(sources_of(bits, len(updates))):
        encoder.write(updates[k], float(factors[k]), source, vectors[k])
    return vectors


class _Encoder:
    """Rounds one row after the other and adds noise to it, while its blocks are in the cache."""

    def __init__(self, grid: Grid, share: NoiseShare | None, past_caches: bool) -> None:
        self._grid, self._share, self._past_caches = grid, share, past_caches
        self._table: Table | None = None
        if share is not None and share.variance > 0:
            self._table = one_table(share.kind, share.variance)
        self._alias = None if self._table is None else self._table.alias

    def write(self, row: Updates, factor: float, bits: Bits, out: Int64s) -> None:
        """Round row·factor within the norm bound if that succeeds, else towards zero; add noise.

        A refused rounding discards its noise unseen: the refusal depends on the rounding alone.
        """
        factor *= self._grid.scale
        for _ in range(_TRIES if factor != 0.0 else 0):
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
            if int(np.dot(out, out)) > self._grid.norm_bound_squared:
                out[:] = 0
        self._add_noise(out, bits)

    def _add_noise(self, out: Int64s, bits: Bits) -> None:
        if self._share is not None:
            add_noise(self._share.kind, self._share.variance, out, bits)
