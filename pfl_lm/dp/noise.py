"""The noise that pays for a guarantee: each device's share, a simulated cohort's, a server's.

Units: grid steps for devices' noise, model units for a server's.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pfl_lm.dp.sampler.arrays import Doubles, Int64s
from pfl_lm.dp.sampler.discrete_noise import add_noise
from pfl_lm.dp.sampler.pmf import Kind
from pfl_lm.dp.sampler.random_bits import RandomBits, reproducible_bits
from pfl_lm.dp.sampler.rejection import BLOCK


@dataclass(frozen=True)
class NoiseShare:
    """The noise one device adds to its vector: a distribution and a variance in grid units².

    Of a discrete Gaussian it is the variance parameter: see ``sampler.pmf.parameter_of``.
    """

    kind: Kind
    variance: float


def cohort_noise(share: NoiseShare, reports: int, dim: int, bits: RandomBits) -> Int64s:
    """Draw at once the sum of the noise shares of ``reports`` devices: int64[d].

    For simulation: the sum has exactly the distribution it has when every device draws its own.
    In a deployment no party may know the whole noise, so no part of it may call this.

    Under Poisson sampling ``reports`` differs from round to round, and a new table for each would
    cost more than the noise: m·a + b reports are drawn as m·a and b, with m near 2√reports, so
    that few different tables serve a whole run.

    Raises:
        ValueError: a discrete Gaussian, whose sums are not discrete Gaussian.
    """
    if share.kind != "skellam":
        raise ValueError(
            "only Skellam noise is closed under addition; with kind = "
            f'"{share.kind}" every device draws its own share'
        )
    noise = np.zeros(dim, dtype=np.int64)
    batch = 1 << math.ceil(math.log2(2 * math.sqrt(max(reports, 1))))
    for part in (reports - reports % batch, reports % batch):
        add_noise("skellam", share.variance * part, noise, bits)
    return noise


def skellam_from_seed(seed: bytes, variance: float, dim: int) -> Int64s:
    """Draw the Skellam noise int64[d] that a 32-byte seed names: the same in every process.

    For noise that is removed again after dropouts: its seed comes from the operating system, and
    only the components that must go are revealed.
    """
    noise = np.zeros(dim, dtype=np.int64)
    add_noise("skellam", variance, noise, reproducible_bits(seed))
    return noise


def add_central_gaussian(
    total: Doubles, clip_norm: float, noise_multiplier: float, bits: RandomBits
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
        The Gaussian mechanism's exact (ε, δ) curve holds with what ``accounting.lattice`` adds
        to δ, with σ ≥ 2^30 lattice steps; the accountant counts it.

    Rounding while the float64 sum of n rows was formed can move its sensitivity by
    n·2^-52·clip_norm; sums of vectors on a grid have no such term.

    Source: Mironov 2012, "On significance of the least significant bits for differential
    privacy"; Canonne, Kamath, Steinke 2020, Theorem 7.

    Raises:
        ValueError: a sum that is not finite, or 2^29 standard deviations from zero.
    """
    if noise_multiplier == 0:
        return total.copy()
    if not (0 < noise_multiplier < math.inf and 1e-30 <= clip_norm < math.inf):
        raise ValueError("noise_multiplier and clip_norm must be positive and finite")
    step = lattice_step(clip_norm, noise_multiplier)
    deviation = noise_multiplier * (clip_norm / step + math.sqrt(len(total))) * (1 + 2.0**-48)
    return add_on_lattice(total, step, deviation, bits)


def lattice_step(clip_norm: float, noise_multiplier: float) -> float:
    """Return the power of two that is 2^-31 to 2^-30 of the noise's deviation, in model units."""
    return math.ldexp(1.0, math.frexp(noise_multiplier * clip_norm)[1] - 31)


def add_on_lattice(total: Doubles, step: float, deviation: float, bits: RandomBits) -> Doubles:
    """Round float64[d] to multiples of ``step`` and add a discrete Gaussian: float64[d].

    Args:
        deviation: of the noise, in steps.

    Raises:
        ValueError: a sum that is not finite, or 2^29 standard deviations from zero.
    """
    largest = max(total.max(), -total.min()) if len(total) else 0.0
    if not largest < step * 2.0**60:  # nan is not
        raise ValueError("total must be finite and below 2^29 standard deviations of the noise")
    noisy = np.empty_like(total)
    for begin in range(0, len(total), BLOCK):  # the sampler's, which stay in a cache
        lattice = np.rint(total[begin : begin + BLOCK] / step).astype(np.int64)
        add_noise("discrete_gaussian", deviation * deviation, lattice, bits)
        np.multiply(lattice, step, out=noisy[begin : begin + BLOCK])
    return noisy


def sources_of(bits: RandomBits | Sequence[RandomBits], count: int) -> Sequence[RandomBits]:
    """Return one source for each of ``count`` rows: the given ones, or one for all in turn."""
    sources = [bits] * count if isinstance(bits, RandomBits) else bits
    if len(sources) != count:
        raise ValueError(f"bits must be one source or one for each of {count} rows")
    return sources
