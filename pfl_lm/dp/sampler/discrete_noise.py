"""Exact integer noise from random bits: a small alias table, and the inverse of what it leaves."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

import numpy as np

from pfl_lm.dp.sampler import rejection
from pfl_lm.dp.sampler.alias import REST, SHARE_BITS, SIGN, Alias
from pfl_lm.dp.sampler.arrays import Integers, Words
from pfl_lm.dp.sampler.inversion import CdfTable
from pfl_lm.dp.sampler.pmf import UNIT, Kind, TableKind, survival
from pfl_lm.dp.sampler.random_bits import RandomBits

_TABLE_STD = 2048  # of a discrete Gaussian's own table; above it rejection needs a smaller one
LARGEST_STD = float(1 << 16)  # of one table; beyond it noise is composed


@dataclass(frozen=True)
class Table:
    """One symmetric distribution, ready to turn uniform bits into samples.

    Let w(k) = P(|X| = k), and cut the magnitudes from 0 on into 1,023 stretches of 2^low_bits,
    which reach to 4 standard deviations at least. Write w = a + r: a(k) is the least w of k's
    stretch, rounded down to a multiple of 2^-(20 + low_bits), and r(k) ≥ 0 what is left, Σ r = ρ
    in all.

    1. A word of 32 bits chooses, by an alias table, a stretch and a place in it, so that every
       magnitude k comes with probability exactly a(k), or the rest, with probability exactly ρ.
       The rest has 0.06% of samples up to a standard deviation of 255, at most 0.7% above.
    2. The rest is drawn from r/ρ by inversion: 64 more bits are compared with the first 64 bits of
       its cumulative probabilities.
    3. Where all 64 agree with one of them (2^-64 per boundary and sample), 192 more are drawn and
       the cumulative probabilities computed anew in integers.

    The sign is the word's lowest bit, independent of all this.

    Guarantees:
        Given uniform bits, each sample is within statistical distance 2^-199 of the exact
        distribution, independent of all others. Proof: a magnitude k comes with probability a(k) +
        ρ·r(k)/ρ = w(k), w being what :func:`pmf.survival` certifies to 2^-200. The first step
        is exact in integers (:class:`alias.Alias`), and so is the decision of the others, since a
        boundary that differs from a number in the first 64 bits is on the same side of it
        whatever bits follow. Rounding down moves each of less than 2^21 boundaries by 2^-256
        of ρ.

    What it does not hide: its running time depends slightly on the values drawn.

    Source: mixtures as in Marsaglia 1963, "Generating discrete random variables in a computer".
    """

    kind: TableKind
    variance: float
    alias: Alias
    rest: CdfTable  # first 64 bits of P(|X| > k) in the rest, ascending: k falls to 0

    def add_to(self, out: Integers, bits: RandomBits) -> None:
        """Add one independent sample to each coordinate of int32[n] or int64[n].

        Reads a word for every coordinate first, then what the rest needs.
        """
        self.add_rest(self.alias.add(bits.octets(4 * len(out)), out), out, bits)

    def add_rest(self, left: Words, out: Integers, bits: RandomBits) -> None:
        """Add to a vector the samples that its alias table left to the rest, as it noted them."""
        if not len(left):
            return
        uniform = bits.uint64(len(left))
        for tie in self.rest.add(uniform, left, out).tolist():
            magnitude = self._exact(int(uniform[tie]) << 192 | bits.integer(192))
            place = int(left[tie]) % SIGN
            out[place : place + 1] += -magnitude if left[tie] >= SIGN else magnitude

    def _exact(self, uniform: int) -> int:
        """Return the magnitude of a number given to all 256 bits (an integer below 2^256)."""
        above, shares, low_bits = _split(self.kind, self.variance)
        for i, boundary in enumerate(_boundaries(above, shares, low_bits)):
            if uniform < boundary:
                return len(above) - 1 - i
        return 0


@lru_cache(maxsize=24)
def table(kind: TableKind, variance: float) -> Table:
    """Build, or find, the table of one distribution: about 50 µs per unit of standard deviation.

    Raises:
        ValueError: a standard deviation above 2^16, or a variance that is not positive.
    """
    if not 0 < variance <= LARGEST_STD**2:
        raise ValueError(f"variance must lie in (0, 2^32] for one table, got {variance}")
    above, shares, low_bits = _split(kind, variance)
    exact = _boundaries(above, shares, low_bits)
    first = np.fromiter((boundary >> (UNIT - 64) for boundary in exact), dtype=np.uint64)
    # CdfTable with the same first 64 bits end in the third step; one stands for all of them.
    first = first[max(0, int(np.count_nonzero(first == 0)) - 1) :]
    rest = CdfTable.of(first, cells=max(10, len(first).bit_length()))
    return Table(kind, variance, Alias.of(shares, low_bits), rest)


def _split(kind: TableKind, variance: float) -> tuple[list[int], list[int], int]:
    """Return what a table is made of.

    Returns:
        2^256·P(X > k) for k = 0, 1, … until it is 0; the alias table's shares, the rest's last; and
        the bits of a place in a stretch.
    """
    above = [*reversed([tail for _, tail in survival(kind, variance)]), 0]
    low_bits = 0
    while (REST << low_bits) ** 2 < 16 * variance:
        low_bits += 1
    weights = [(1 << UNIT) - 2 * above[0]]  # 2^256·P(|X| = k)
    weights += [2 * (outer - inner) for outer, inner in pairwise(above[: REST << low_bits])]
    least = np.zeros(REST << low_bits, dtype=np.int64)
    least[: len(weights)] = [weight >> (UNIT - SHARE_BITS - low_bits) for weight in weights]
    shares = least.reshape(REST, -1).min(axis=1).tolist()
    shares[0] = min(shares[0], (1 << SHARE_BITS) - 1)  # the rest is never nothing
    return above, [*shares, (1 << SHARE_BITS) - sum(shares)], low_bits


def _boundaries(above: list[int], shares: list[int], low_bits: int) -> Iterator[int]:
    """Yield ⌊2^256·P(|X| > k) in the rest⌋ for k falling to 0, the first k with P(|X| > k) > 0."""
    covered = 0  # 2^(20 + low_bits)·P(|X| > k) in the alias table
    for k in range(len(above) - 2, -1, -1):
        covered += shares[k + 1 >> low_bits] if k + 1 < REST << low_bits else 0
        beyond = 2 * above[k] - (covered << (UNIT - SHARE_BITS - low_bits))
        yield min((beyond << SHARE_BITS) // shares[REST], (1 << UNIT) - 1)


def one_table(kind: Kind, variance: float) -> Table | None:
    """Return the table that draws this noise, or None where more is needed than one."""
    largest = LARGEST_STD if kind == "skellam" else _TABLE_STD
    return table(kind, variance) if variance <= largest**2 else None


def add_noise(kind: Kind, variance: float, out: Integers, bits: RandomBits) -> None:
    """Add independent exact noise to each coordinate of an integer vector, in place.

    Args:
        kind: "skellam" (variance ``variance``) or "discrete_gaussian" (parameter σ² =
            ``variance``; its variance is that but for a factor within e^(−2π²σ²)).
        variance: in squared grid units; 0 adds nothing.
        out: int32[n] or int64[n]; wraps at its width.
        bits: where the randomness comes from.

    Guarantees:
        Each coordinate's noise is within statistical distance 2^-150 of the named distribution
        and independent of everything else, if the bits are uniform (see :class:`Table`).
        A Skellam variance above 2^32 is the sum of 2^m Skellam draws of an equal share each,
        exactly; a discrete Gaussian above it is drawn by exact rejection.

    Raises:
        ValueError: a negative or non-finite variance, Skellam above 2^44, or a discrete Gaussian
            above 2^88.
    """
    if not 0 <= variance < math.inf:
        raise ValueError(f"variance must be finite and not negative, got {variance}")
    if variance == 0:
        return
    one = one_table(kind, variance)
    if one is not None:
        one.add_to(out, bits)
    elif kind == "skellam":
        if variance > 2.0**44:
            raise ValueError(f"variance must be at most 2^44 for Skellam noise, got {variance}")
        parts = 1  # a power of two, so that the division is exact
        while variance / parts > LARGEST_STD**2:
            parts *= 2
        for _ in range(parts):
            table(kind, variance / parts).add_to(out, bits)
    else:
        low_bits = rejection.low_bits_of(variance)
        steps = table("two_zero_gaussian", math.ldexp(variance, -2 * low_bits))
        rejection.add_wide_gaussian(variance, steps.add_to, out, bits)
