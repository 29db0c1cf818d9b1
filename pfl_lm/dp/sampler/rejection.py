"""Exact samples of a discrete Gaussian too wide for a table, by rejection.

What is here in numpy is the definition; ``native/rejection.c`` proposes the same.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from pfl_lm import native
from pfl_lm.dp.sampler.alias import room_for_places
from pfl_lm.dp.sampler.arrays import Flags, Int64s, Integers, Longs, Room, Words
from pfl_lm.dp.sampler.pmf import UNIT
from pfl_lm.dp.sampler.random_bits import RandomBits

BLOCK = 1 << 16  # samples at a time; part of what a reproducible stream means
_COIN_BITS, _COIN_SHIFT = 16, 47  # of a word of 64, below its sign
_UNIT_BITS = 31  # probabilities that a coin is compared with are multiples of 2^-31
_steps, _samples = Room(np.int64), Room(np.int64)


def low_bits_of(variance: float) -> int:
    """Return how many low bits of a sample are uniform: w = 2^this is near σ/1000.

    Raises:
        ValueError: a variance above 2^88, where samples might not fit 63 bits.
    """
    if variance > 2.0**88:
        raise ValueError(f"variance must be at most 2^88, got {variance}")
    return max(0, math.frexp(math.sqrt(variance))[1] - 10)


def add_wide_gaussian(
    variance: float,
    add_steps: Callable[[Int64s, RandomBits], None],
    out: Integers,
    bits: RandomBits,
) -> None:
    """Add independent discrete Gaussian samples of a large σ to int32[n] or int64[n], in place.

    Write |k| = w·j + l with 0 ≤ l < w, w = 2^low_bits. Then exp(−k²/2σ²) = exp(−j²/2(σ/w)²) ·
    exp(−l(2wj + l)/2σ²): draw j from a table of the first factor, l uniformly, accept with the
    second factor (0.999 on average), give it a fair sign and refuse −0, which would count 0 twice.
    The table holds −0 as well as +0, so ±j are alike for all j ≥ 0, and every accepted k has its
    exact weight.

    A word of 64 bits is, from its highest bit down: the sign; a coin of 16 bits, the first of the
    uniform number that accepts; bits that nobody reads; l. There is room for all of them: σ ≤ 2^44
    means at most 35 bits of l.

    Args:
        variance: σ², at most 2^88.
        add_steps: adds independent samples ±j to a vector of integers.

    Source: Karney 2016, "Sampling exactly from the normal distribution" (the decomposition).
    """
    for begin in range(0, len(out), BLOCK):
        part = out[begin : begin + BLOCK]
        done = 0
        while done < len(part):
            missing = len(part) - done
            steps = _steps.of(missing + missing // 128 + 16)
            steps[:] = 0
            add_steps(steps, bits)
            words = bits.octets(8 * len(steps)).view(np.uint64)
            samples, doubtful = _propose(steps, words, variance)
            refused = ~_accept(steps[doubtful], words[doubtful], variance, bits)
            samples = np.delete(samples, doubtful[refused])[:missing]
            part[done : done + len(samples)] += samples
            done += len(samples)


def _coins(words: Longs) -> Longs:
    return words >> np.uint64(_COIN_SHIFT) & np.uint64((1 << _COIN_BITS) - 1)


def _low(words: Longs, low_bits: int) -> Int64s:
    return (words & np.uint64((1 << low_bits) - 1)).view(np.int64)


def _propose(steps: Int64s, words: Longs, variance: float) -> tuple[Int64s, Words]:
    """Return a sample for each word, and the places of those that may have to be refused.

    Accepted without doubt is a coin c with (c + 1)/2^16 ≤ 1 − (2j + 1)w²/2σ², the fraction rounded
    up: the exponent of every l < w is at most that fraction, and e^(−x) ≥ 1 − x. −0 is in doubt.

    Returns:
        int64[n] and uint32[≤ n], both in memory that this thread's next call writes over.
    """
    low_bits = low_bits_of(variance)
    fraction = math.ldexp(0.5 / variance, 2 * low_bits + _UNIT_BITS)  # w²/2σ², in 2^-31
    per_odd = math.ceil(fraction * (1 + 2.0**-40))
    compiled = native.load("rejection")
    if compiled is not None:
        samples, doubtful = _samples.of(len(steps)), room_for_places(len(steps))
        count = compiled.propose(
            *(len(steps), steps.ctypes.data, words.ctypes.data, low_bits, per_odd),
            *(samples.ctypes.data, doubtful.ctypes.data),
        )
        return samples, doubtful[:count]
    high = np.abs(steps)
    samples = (high << low_bits) + _low(words, low_bits)
    chance = (_coins(words).view(np.int64) + 1) << (_UNIT_BITS - _COIN_BITS)
    doubt = chance + (2 * high + 1) * per_odd > 1 << _UNIT_BITS
    negative = words >> np.uint64(63) != 0
    doubt |= negative & (samples == 0)
    np.negative(samples, out=samples, where=negative)
    return samples, np.flatnonzero(doubt).astype(np.uint32)


def _accept(steps: Int64s, words: Longs, variance: float, bits: RandomBits) -> Flags:
    """Decide, bool[n], each true with probability exp(−l(2wj + l)/2σ²) to within 2^-190; −0 is not.

    48 more bits than the coins' are compared with e^(−x) in floating point, whose error is below
    2^-48, and where they come within 2^-40 of it 192 more bits in 256-bit arithmetic.
    """
    low_bits = low_bits_of(variance)
    high, low = np.abs(steps), _low(words, low_bits)
    exponent = (high * 2.0 ** (low_bits + 1) + low) * low * (0.5 / variance)
    uniform = _coins(words) << np.uint64(64 - _COIN_BITS)
    uniform |= bits.uint64(len(words)) >> np.uint64(_COIN_BITS)
    margin = np.exp(-exponent) - uniform.astype(np.float64) * 2.0**-64
    accepted = margin > 0
    for i in np.flatnonzero(np.abs(margin) < 2.0**-40):
        numerator = int(low[i]) * ((int(high[i]) << (low_bits + 1)) + int(low[i]))
        accepted[i] = _accept_exactly(
            numerator, variance, int(uniform[i]) << 192 | bits.integer(192)
        )
    accepted &= (high > 0) | (low > 0) | (words >> np.uint64(63) == 0)
    return accepted


def _accept_exactly(numerator: int, variance: float, uniform: int) -> bool:
    """Decide whether a uniform 256-bit number lies below exp(−numerator / 2σ²)."""
    from mpmath import mp, mpf

    with mp.workprec(320):
        return bool(uniform < mp.exp(-mpf(numerator) / (2 * mpf(variance))) * mpf(2) ** UNIT)
