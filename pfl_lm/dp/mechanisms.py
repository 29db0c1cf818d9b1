"""What happens to an update between training and the sum: clip, encode, noise; and decode after.

Shapes: K devices at once (K = 1 is one device), d coordinates of the payload.
Units: an update is in the model's units; a vector on the grid is in integers, ``grid.scale`` of
them to one model unit. Everything after the clip is integers, whose sums are exact in any order.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pfl_lm.dp.bits import Bits
from pfl_lm.dp.grid import Grid
from pfl_lm.dp.pmf import Kind
from pfl_lm.dp.samplers import Integers, add_noise

Updates = np.ndarray[Any, np.dtype[np.float32]]
Doubles = np.ndarray[Any, np.dtype[np.float64]]
Flags = np.ndarray[Any, np.dtype[np.bool_]]

_BLOCK = 1 << 15  # coordinates at a time: what one block needs stays in the L2 cache
_TRIES = 64  # of conditional rounding; each fails with probability ≤ e^(−1/2), all with < 2^-46
_MARGIN = 2.0**-22  # room below the clip norm for the rounding errors of float32


@dataclass(frozen=True)
class Clipped:
    """What clipping did: the norms before it (nan where a row was not finite), and who changed."""

    values: Updates  # (K, d)
    norms: Doubles  # (K,) before clipping, in model units
    clipped: Flags  # (K,) true where the row was scaled down or zeroed


@dataclass(frozen=True)
class NoiseShare:
    """The noise one device adds to its vector: a distribution and a variance in grid units²."""

    kind: Kind
    variance: float


def norms(updates: Updates) -> Doubles:
    """Return float64[K], the ℓ2 norm of each row, summed in float64; not finite if the row is not.

    Squares of float32 cannot overflow float64, so a norm is inf or nan only if a coordinate is.
    """
    _check(updates)
    squares = np.empty(len(updates))
    wide = np.empty(min(_BLOCK, updates.shape[1]))
    for k, row in enumerate(updates):
        total = 0.0
        for begin in range(0, len(row), _BLOCK):
            part = row[begin : begin + _BLOCK]
            block = wide[: len(part)]
            np.copyto(block, part)
            total += float(np.dot(block, block))
        squares[k] = total
    return np.sqrt(squares)


def clip(updates: Updates, clip_norm: float, in_place: bool = False) -> Clipped:
    """Scale each row of float32[K, d] down to ℓ2 norm ≤ clip_norm.

    Args:
        updates: (K, d), C-contiguous float32.
        clip_norm: in model units, at least 1e-30.
        in_place: write the result into ``updates``.

    Guarantees:
        Every returned row, as the real numbers its float32 coordinates are, has ℓ2 norm ≤
        clip_norm: rows above clip_norm·(1 − 2^-22) are scaled to it, and rounding to float32
        moves a norm by less than 2^-23 of it.

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
            _scale(values[k], float(factors[k]), values[k])
    return Clipped(values, np.where(np.isfinite(before), before, np.nan), factors != 1.0)


def encode(updates: Updates, grid: Grid, bits: Bits | Sequence[Bits]) -> Integers:
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

    The expectation is the update to within 2^-17 of a grid step per coordinate (16 random bits
    decide), 2^-23 of its size (float32), and the conditioning: a refusal shortens long roundings,
    a bias of at most β/(1 − β) times the noise of rounding (Kairouz et al. 2021, Lemma 6); for
    d ≥ 10,000 refusals are too rare to be seen.

    Source: Kairouz, Liu, Steinke 2021 (arXiv:2102.06387), Algorithm 1 and Proposition 22.

    Raises:
        ValueError: a row that is not finite or longer than grid.clip_norm; wrong shapes.
    """
    lengths = norms(updates)
    if not (lengths <= grid.clip_norm * (1 + 1e-9)).all():
        raise ValueError("updates must have norm ≤ clip_norm; clip them before encoding")
    return _encode(updates, np.ones(len(updates)), grid, _sources(bits, len(updates)))


def protect(
    updates: Updates, grid: Grid, share: NoiseShare | None, bits: Bits | Sequence[Bits]
) -> tuple[Integers, Clipped]:
    """Clip, encode and add each device's own noise share: float32[K, d] → int64[K, d].

    The same guarantees and edge cases as :func:`clip`, :func:`encode` and :func:`add_shares` in
    turn, in two passes over memory and without touching ``updates`` (the ``values`` returned in
    ``Clipped`` are the unclipped input).
    """
    before = norms(updates)
    factors = _factors(before, grid.clip_norm)
    sources = _sources(bits, len(updates))
    vectors = _encode(updates, factors, grid, sources)
    if share is not None:
        add_shares(vectors, share, sources)
    finite = np.where(np.isfinite(before), before, np.nan)
    return vectors, Clipped(updates, finite, factors != 1.0)


def noise_share(kind: Kind, grid: Grid, noise_multiplier: float, noise_reports: int) -> NoiseShare:
    """Return each device's share such that ``noise_reports`` of them carry the whole noise.

    Args:
        noise_multiplier: stddev of the noise on the SUM ÷ clip_norm.
        noise_reports: the public least count of reports (report goal less tolerated dropout);
            a sum of more reports carries more noise, never less.

    Raises:
        ValueError: a count below 1, or a discrete Gaussian share so narrow (σ < 1 grid step)
            that the sum of shares is not close to a discrete Gaussian.
    """
    if noise_reports < 1:
        raise ValueError(f"noise_reports must be at least 1, got {noise_reports}")
    variance = grid.noise_variance(noise_multiplier) / noise_reports
    if kind == "discrete_gaussian" and 0 < variance < 1:
        raise ValueError(
            f"a discrete Gaussian share has σ = {math.sqrt(variance):.3g} grid steps, needs ≥ 1; "
            "raise grid_steps, or use Skellam noise, which has no such limit"
        )
    return NoiseShare(kind, variance)


def add_shares(vectors: Integers, share: NoiseShare, bits: Bits | Sequence[Bits]) -> None:
    """Add an independent noise share to every row of int64[K, d], in place.

    Guarantees:
        See :func:`pfl_lm.dp.samplers.add_noise`: exact to statistical distance 2^-150 per
        coordinate, independent across coordinates and rows.
    """
    if isinstance(bits, Bits):
        add_noise(share.kind, share.variance, vectors.reshape(-1), bits)
        return
    for row, source in zip(vectors, _sources(bits, len(vectors)), strict=True):
        add_noise(share.kind, share.variance, row, source)


def cohort_noise(share: NoiseShare, reports: int, dim: int, bits: Bits) -> Integers:
    """Draw at once the sum of the noise shares of ``reports`` devices: int64[d].

    For simulation: the sum has exactly the distribution it has when every device draws its own.
    In a deployment nobody may hold the whole noise, so nobody may call this.

    Raises:
        ValueError: a discrete Gaussian, whose sums are not discrete Gaussian.
    """
    if share.kind != "skellam":
        raise ValueError(
            "only Skellam noise is closed under addition; with kind = "
            f'"{share.kind}" every device draws its own share'
        )
    noise = np.zeros(dim, dtype=np.int64)
    add_noise("skellam", share.variance * reports, noise, bits)
    return noise


def add_central_gaussian(
    total: Doubles, clip_norm: float, noise_multiplier: float, bits: Bits
) -> Doubles:
    """Add a trusted server's Gaussian noise to a sum of clipped updates: float64[d].

    The sum is rounded to a lattice 2^-30 of the noise wide and a discrete Gaussian on that lattice
    is added: a floating-point Gaussian leaks its input through the low bits of the output.

    Args:
        total: (d,) sum of rows of ℓ2 norm ≤ clip_norm, in model units.
        noise_multiplier: stddev of the noise ÷ clip_norm; 0 returns the sum as it is.

    Guarantees:
        The Rényi divergence of every order is at most that of the continuous Gaussian mechanism
        at ``noise_multiplier``, rounding included: coordinates move by ≤ half a lattice step, so
        the lattice sensitivity is ≤ clip_norm + step·√d, and the noise is widened by that ratio.
        Each coordinate is within 2^-64 of the rounded continuous Gaussian, so an exact (ε, δ)
        curve holds with d·2^-64·(1 + e^ε) added to δ.

    Rounding while the float64 sum of n rows was formed can move its sensitivity by
    n·2^-52·clip_norm; sums of vectors on a grid have no such term.

    Source: Mironov 2012, "On significance of the least significant bits for differential
    privacy"; Canonne, Kamath, Steinke 2020, Theorem 7.

    Raises:
        ValueError: a sum that is not finite, or 2^30 standard deviations from zero.
    """
    if noise_multiplier == 0:
        return total.copy()
    if not (0 < noise_multiplier < math.inf and 1e-30 <= clip_norm < math.inf):
        raise ValueError("noise_multiplier and clip_norm must be positive and finite")
    step = math.ldexp(1.0, math.frexp(noise_multiplier * clip_norm)[1] - 31)
    deviation = noise_multiplier * (clip_norm + step * math.sqrt(len(total))) / step
    cells = np.rint(total / step)
    if not (np.abs(cells) < 2.0**61).all():
        raise ValueError("total must be finite and below 2^30 standard deviations of the noise")
    lattice = cells.astype(np.int64)
    add_noise("discrete_gaussian", deviation * deviation, lattice, bits)
    return lattice.astype(np.float64) * step


def decode(total: Integers, grid: Grid, report_goal: int) -> Updates:
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


def _sources(bits: Bits | Sequence[Bits], count: int) -> Sequence[Bits]:
    sources = [bits] * count if isinstance(bits, Bits) else bits
    if len(sources) != count:
        raise ValueError(f"bits must be one source or one for each of {count} rows")
    return sources


def _factors(lengths: Doubles, clip_norm: float) -> Doubles:
    """Return float64[K]: 1 for a row to leave alone, 0 for one to erase, else what to scale by."""
    limit = clip_norm * (1 - _MARGIN)
    # No negation of "norm > limit": that is false for nan, which must be erased.
    with np.errstate(invalid="ignore", divide="ignore"):
        scaled = np.where(lengths <= limit, 1.0, limit / lengths)
    return np.where(np.isfinite(lengths), scaled, 0.0)


def _scale(row: Updates, factor: float, out: Updates) -> None:
    """Write row·factor; in float64 where the factor would lose bits as a float32."""
    if factor < 2.0**-64:
        np.multiply(row, np.float64(factor), out=out, casting="same_kind")
    else:
        np.multiply(row, np.float32(factor), out=out)


def _encode(updates: Updates, factors: Doubles, grid: Grid, sources: Sequence[Bits]) -> Integers:
    if updates.shape[1] != grid.dim:
        raise ValueError(f"updates have {updates.shape[1]} coordinates, the grid {grid.dim}")
    vectors = np.zeros(updates.shape, dtype=np.int64)
    for k, source in enumerate(sources):
        if factors[k] != 0.0:
            factor = float(factors[k]) * grid.scale
            _round_row(updates[k], factor, grid.norm_bound_squared, source, vectors[k])
    return vectors


def _round_row(row: Updates, factor: float, bound: int, bits: Bits, out: Integers) -> None:
    """Round row·factor to integers of squared norm ≤ bound, at random if that succeeds."""
    for _ in range(_TRIES):
        if _round_once(row, factor, bits, out) <= bound:
            return
    if _round_once(row, factor, None, out) > bound:
        out[:] = 0


def _round_once(row: Updates, factor: float, bits: Bits | None, out: Integers) -> float:
    """Round once, towards zero without bits; return the squared norm (exact below 2^53)."""
    size = min(_BLOCK, len(row))
    scaled, dither = np.empty(size, np.float32), np.empty(size, np.float32)
    wide, words = np.empty(size), np.empty(size, np.uint16)
    squares = 0.0
    for begin in range(0, len(row), _BLOCK):
        part = row[begin : begin + _BLOCK]
        block, exact = scaled[: len(part)], wide[: len(part)]
        _scale(part, factor, block)
        if bits is None:
            np.trunc(block, out=block)
        else:
            bits.fill(words[: len(part)])
            np.multiply(words[: len(part)], np.float32(2.0**-16), out=dither[: len(part)])
            block += dither[: len(part)]
            block += np.float32(2.0**-17)
            np.floor(block, out=block)
        np.copyto(exact, block)
        # Integers below 2^53 add exactly in float64, in any order.
        squares += float(np.dot(exact, exact))
        np.copyto(out[begin : begin + _BLOCK], block, casting="unsafe")
    return squares
