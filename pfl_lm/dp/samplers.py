"""Exact integer noise from random bits: the inverse of the cumulative table, read lazily."""

from __future__ import annotations

import math
import threading
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from pfl_lm.dp.bits import Bits
from pfl_lm.dp.look_up import (
    STEPS,
    UNDECIDED,
    Guide,
    Halves,
    Int64s,
    Integers,
    Words,
    look_up,
    pass_boundaries,
)
from pfl_lm.dp.pmf import UNIT, Kind, TableKind, survival

Doubles = np.ndarray[Any, np.dtype[np.float64]]
Flags = np.ndarray[Any, np.dtype[np.bool_]]

_BLOCK = 1 << 16  # samples at a time; part of what a reproducible stream means, so never change it
_GUIDE_STD = 2048  # above it 16 bits decide too few samples, and a sample overflows int16
LARGEST_STD = float(1 << 18)  # of one table; beyond it noise is composed


class _Scratch(threading.local):
    """A thread's buffers for one block: fresh memory would cost more than the samples."""

    def __init__(self) -> None:
        self.words: Halves = np.empty(_BLOCK, np.uint16)
        self.places: Halves = np.empty(_BLOCK, np.uint16)


_scratch = _Scratch()


@dataclass(frozen=True)
class Table:
    """The cumulative table of one distribution, ready to turn uniform bits into samples.

    A sample is the inverse of the cumulative function at a uniform number U of 256 bits, of which
    only as many are drawn as the answer needs:

    1. 16 bits choose a cell of width 2^-16; where no boundary lies in it, the guide has the
       answer (99% of samples at a standard deviation of 100).
    2. Otherwise 48 more bits are drawn and compared with the first 64 bits of the boundaries.
    3. Where all 64 agree with a boundary (2^-64 per boundary and sample), the other 192 bits are
       drawn and the boundaries computed anew in integers.

    Guarantees:
        Given uniform bits, each sample is within statistical distance 2^-200 of the exact
        distribution, independent of all others: the three steps compute exactly the inverse of
        the table that :func:`pfl_lm.dp.pmf.survival` certifies, since a boundary that differs
        from U in the first 16 or 64 bits is on the same side of U whatever bits follow.

    What it does not hide: its running time depends slightly on the values drawn.
    """

    kind: TableKind
    variance: float
    lowest: int  # the sample when U lies below every stored boundary
    boundaries: Words  # sorted first 64 bits, padded by 2^64 − 1
    start: np.ndarray[Any, np.dtype[np.int32]]  # boundaries below each cell of the second step
    start_shift: int
    guide: Guide | None  # sample by 16-bit cell, or UNDECIDED

    def add_to(self, out: Integers, bits: Bits) -> None:
        """Add one independent sample to each coordinate of int32[n] or int64[n], in place."""
        for begin in range(0, len(out), _BLOCK):
            part = out[begin : begin + _BLOCK]
            if self.guide is None:
                part += self._resolve(bits.uint64(len(part)), bits)
                continue
            words = _scratch.words[: len(part)]
            bits.fill(words)
            places = look_up(self.guide, words, part, _scratch.places)
            if len(places):
                uniform = words[places].astype(np.uint64) << np.uint64(48)
                uniform |= bits.uint64(len(places)) >> np.uint64(16)
                part[places] += self._resolve(uniform, bits)

    def _resolve(self, uniform: Words, bits: Bits) -> Int64s:
        """Return the samples of the given first 64 bits of U."""
        passed = pass_boundaries(self.boundaries, self.start, self.start_shift, uniform)
        samples = passed + self.lowest
        for tie in np.flatnonzero(self.boundaries[passed] == uniform):
            samples[tie] = self._exact((int(uniform[tie]) << 192) | bits.integer(192))
        return samples

    def _exact(self, uniform: int) -> int:
        """Return the sample of a U given to all 256 bits (an integer below 2^256)."""
        for k, above in survival(self.kind, self.variance):
            if uniform < above:  # U < P(X > k) = P(X ≤ −k − 1)
                return -k - 1
            if (1 << UNIT) - uniform <= above:  # U ≥ P(X ≤ k)
                return k + 1
        return 0


@lru_cache(maxsize=24)
def table(kind: TableKind, variance: float) -> Table:
    """Build, or find, the table of one distribution: about 10 µs per unit of standard deviation.

    Raises:
        ValueError: a standard deviation above 2^18, or a variance that is not positive.
    """
    if not 0 < variance <= LARGEST_STD**2:
        raise ValueError(f"variance must lie in (0, 2^36] for one table, got {variance}")
    tails = np.fromiter((above >> 192 for _, above in survival(kind, variance)), dtype=np.uint64)
    # Boundaries with the same first 64 bits end in the third step; one stands for all of them.
    tails = tails[max(0, int(np.count_nonzero(tails == 0)) - 1) :]
    upper = np.uint64(2**64 - 1) - tails[::-1]
    padding = np.full(STEPS + 1, 2**64 - 1, dtype=np.uint64)
    boundaries = np.concatenate([tails, upper, padding])
    lowest = -len(tails)
    start_bits = min(22, max(16, math.ceil(math.log2(variance) / 2) + 4))
    edges = np.arange(1 << start_bits, dtype=np.uint64) << np.uint64(64 - start_bits)
    start = np.searchsorted(boundaries, edges).astype(np.int32)
    guide = _guide(boundaries, lowest) if variance <= _GUIDE_STD**2 else None
    for array in (boundaries, start):
        array.flags.writeable = False
    return Table(kind, variance, lowest, boundaries, start, 64 - start_bits, guide)


def _guide(boundaries: Words, lowest: int) -> Guide:
    """Return int16[2^16]: the sample of each cell that no boundary cuts, else UNDECIDED."""
    edges = np.arange(1 << 16, dtype=np.uint64) << np.uint64(48)
    below = np.searchsorted(boundaries, edges, side="left")
    within = np.searchsorted(boundaries, edges | np.uint64(2**48 - 1), side="right")
    return np.where(below == within, below + lowest, UNDECIDED).astype(np.int16)


def add_noise(kind: Kind, variance: float, out: Integers, bits: Bits) -> None:
    """Add independent exact noise to each coordinate of an integer vector, in place.

    Args:
        kind: "skellam" (variance ``variance``) or "discrete_gaussian" (parameter σ² =
            ``variance``; its variance is that but for a factor within e^(−2π²σ²)).
        variance: in squared grid units; 0 adds nothing.
        out: int64[n], or int32[n] where variance ≤ 2^36.
        bits: where the randomness comes from.

    Guarantees:
        Each coordinate's noise is within statistical distance 2^-150 of the named distribution
        and independent of everything else, if the bits are uniform (see :class:`Table`).
        A Skellam variance above 2^36 is the sum of 2^m Skellam draws of an equal share each,
        exactly; a discrete Gaussian above it is drawn by exact rejection.

    Raises:
        ValueError: a negative or non-finite variance, Skellam above 2^44, or a discrete Gaussian
            above 2^88.
    """
    if not 0 <= variance < math.inf:
        raise ValueError(f"variance must be finite and not negative, got {variance}")
    if variance == 0:
        return
    if kind == "skellam":
        if variance > 2.0**44:
            raise ValueError(f"variance must be at most 2^44 for Skellam noise, got {variance}")
        parts = 1  # a power of two, so that the division is exact
        while variance / parts > LARGEST_STD**2:
            parts *= 2
        for _ in range(parts):
            table(kind, variance / parts).add_to(out, bits)
    elif variance <= _GUIDE_STD**2:
        table(kind, variance).add_to(out, bits)
    else:
        for begin in range(0, len(out), _BLOCK):
            part = out[begin : begin + _BLOCK]
            part += _wide_gaussian(variance, len(part), bits)


def _wide_gaussian(variance: float, count: int, bits: Bits) -> Int64s:
    """Return int64[count] discrete Gaussian samples of a large σ, by exact rejection.

    Write |k| = w·j + l with 0 ≤ l < w, w a power of two near σ/1000. Then exp(−k²/2σ²) =
    exp(−j²/2(σ/w)²) · exp(−l(2wj + l)/2σ²): draw j from a table of the first factor, l uniformly,
    accept with the second factor (0.999 on average), give it a fair sign and refuse −0, which
    would count 0 twice. The table holds −0 as well as +0, so ±j are alike for all j ≥ 0, and
    every accepted k has its exact weight.

    Source: Karney 2016, "Sampling exactly from the normal distribution" (the decomposition).

    Raises:
        ValueError: a variance above 2^88, where samples might not fit 63 bits.
    """
    if variance > 2.0**88:
        raise ValueError(f"variance must be at most 2^88, got {variance}")
    low_bits = max(0, math.frexp(math.sqrt(variance))[1] - 10)
    steps = table("two_zero_gaussian", math.ldexp(variance, -2 * low_bits))
    kept: list[Int64s] = []
    missing = count
    while missing > 0:
        high = np.zeros(missing + missing // 256 + 16, dtype=np.int64)
        steps.add_to(high, bits)
        np.abs(high, out=high)
        words = bits.uint64(len(high))
        low = (words & np.uint64((1 << low_bits) - 1)).view(np.int64)
        sign = 1 - 2 * (words >> np.uint64(63)).view(np.int64)
        accepted = _accept(high, low, low_bits, variance, bits)
        magnitude = (high << low_bits) + low
        accepted &= (magnitude > 0) | (sign > 0)
        kept.append((sign * magnitude)[accepted][:missing])
        missing -= len(kept[-1])
    return np.concatenate(kept) if kept else np.zeros(0, dtype=np.int64)


def _accept(high: Int64s, low: Int64s, low_bits: int, variance: float, bits: Bits) -> Flags:
    """Draw bool[n], each true with probability exp(−l(2wj + l)/2v) to within 2^-190.

    Since e^(−x) ≥ 1 − x, 16 bits accept nearly all. For the rest 48 more bits are compared with
    e^(−x) in floating point, whose error is below 2^-48, and where they come within 2^-40 of it
    192 more bits in 256-bit arithmetic.
    """
    exponent = (high * 2.0 ** (low_bits + 1) + low) * low * (0.5 / variance)
    words = bits.uint16(len(high))
    accepted = (words + 1.0) * 2.0**-16 <= 1 - 2.0**-40 - exponent
    rest = np.flatnonzero(~accepted)
    uniform = words[rest].astype(np.uint64) << np.uint64(48)
    uniform |= bits.uint64(len(rest)) >> np.uint64(16)
    margin = np.exp(-exponent[rest]) - uniform.astype(np.float64) * 2.0**-64
    accepted[rest] = margin > 0
    for i in np.flatnonzero(np.abs(margin) < 2.0**-40):
        accepted[rest[i]] = _accept_exactly(
            int(low[rest[i]]) * ((int(high[rest[i]]) << (low_bits + 1)) + int(low[rest[i]])),
            variance,
            (int(uniform[i]) << 192) | bits.integer(192),
        )
    return accepted


def _accept_exactly(numerator: int, variance: float, uniform: int) -> bool:
    """Decide whether a uniform 256-bit number lies below exp(−numerator / 2v)."""
    from mpmath import mp, mpf

    with mp.workprec(320):
        return bool(uniform < mp.exp(-mpf(numerator) / (2 * mpf(variance))) * mpf(2) ** UNIT)
