"""Certified cumulative probabilities of the integer noise distributions, in integer arithmetic.

Both are symmetric about 0 and are described by their variance parameter v:

    Skellam             P(k) = e^(−v) I_k(v)            (Poisson(v/2) − Poisson(v/2); variance v)
    discrete Gaussian   P(k) ∝ exp(−k² / 2v)            (variance ≤ v, equal to it but for
                                                         e^(−2π²v) once v is above 1)

Floating point is used nowhere that matters: ``scipy.stats.skellam`` loses its tails at large
variance, and a table is only as private as its tails.

Source: Canonne, Kamath, Steinke 2020 (arXiv:2004.00010); Agarwal, Kairouz, Liu 2021
(arXiv:2110.04995); Gautschi 1967, "Computational aspects of three-term recurrence relations".
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Literal

Kind = Literal["skellam", "discrete_gaussian"]
# A discrete Gaussian in which 0 has twice its weight, for +0 and −0: what rejection draws from.
TableKind = Literal["skellam", "discrete_gaussian", "two_zero_gaussian"]

UNIT = 256  # probabilities are integers in units of 2^-256
_TAIL = 262  # the mass beyond the radius is at most 2^-261
_PRECISION = 320  # bits carried by every weight
_LOG_2 = math.log(2)


def chernoff_exponent(kind: TableKind, variance: float, distance: float) -> float:
    """Return x such that P(X ≥ distance) ≤ e^(−x), for distance ≥ 0.

    Skellam: sup over λ of λt − v(cosh λ − 1), attained at λ = asinh(t/v). Discrete Gaussian:
    t²/2v, since it is v-subgaussian (Canonne et al. 2020, Proposition 25 and its proof); a sum of
    independent ones obeys the same bound at the summed v.
    """
    if kind != "skellam":
        return distance * distance / (2 * variance)
    # √(t² + v²) − v, without its cancellation.
    rise = distance * distance / (math.hypot(distance, variance) + variance)
    return distance * math.asinh(distance / variance) - rise


def parameter_of(kind: TableKind, variance: float) -> float:
    """Return the variance parameter at which noise of a kind has this very variance.

    That of a discrete Gaussian is larger where the noise is narrower than a step, which only the
    shares of a simulation are: a policy refuses them.
    """
    if kind == "skellam" or variance >= 1 or variance <= 0:
        return variance
    low, high = variance, 1.0
    while high - low > 1e-9 * high:
        middle = (low + high) / 2
        if _gaussian_variance(middle) < variance:
            low = middle
        else:
            high = middle
    return high


def _gaussian_variance(parameter: float) -> float:
    """Return the variance of a discrete Gaussian, for parameters of at most 1."""
    weights = [math.exp(-k * k / (2 * parameter)) for k in range(1, 40)]
    moment = sum(k * k * weight for k, weight in enumerate(weights, start=1))
    return 2 * moment / (1 + 2 * sum(weights))


def tail_radius(kind: TableKind, variance: float, bits: float) -> int:
    """Return the least t (to within one part in 2^20) with P(|X| ≥ t) ≤ 2^(1 − bits)."""
    target = bits * _LOG_2
    high = 1
    while chernoff_exponent(kind, variance, high) < target:
        high *= 2
    low = high // 2
    while high - low > max(1, high >> 20):
        middle = (low + high) // 2
        if chernoff_exponent(kind, variance, middle) < target:
            low = middle
        else:
            high = middle
    return high


def joint_radius(kind: Kind, proxy: float, variance: float, bits: float) -> int:
    """Return t with P(|S + N| ≥ t) ≤ 2^(1 − bits), S subgaussian and N independent noise.

    The Chernoff exponent at λ is λt − λ²·proxy/2 − K(λ), K the noise's cumulant function; it is
    largest where t = λ·proxy + K'(λ), and grows with λ there.

    Args:
        proxy: variance proxy of S, > 0.
        variance: of the noise N; 0 for none.
    """

    def at(rate: float) -> tuple[float, float]:
        if kind != "skellam":
            total = proxy + variance
            return rate * total, rate * rate * total / 2
        drift = variance * math.sinh(rate)
        rise = rate * drift - 2 * variance * math.sinh(rate / 2) ** 2
        return rate * proxy + drift, rate * rate * proxy / 2 + rise

    target, low, high = bits * _LOG_2, 0.0, 1.0
    while at(high)[1] < target:
        high *= 2
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if at(middle)[1] < target else (low, middle)
    return math.ceil(at(high)[0])


def survival(kind: TableKind, variance: float) -> Iterator[tuple[int, int]]:
    """Yield (k, 2^256·P(X > k)) for k from the radius − 1 down to 0, rounded down.

    Guarantees:
        The distribution that the yielded integers define lies within statistical distance 2^-200
        of the exact one, for any variance up to 2^40. Proof, with R < 2^25 the radius: (1) the
        mass beyond R is ≤ 2^-261; (2) for Skellam, the recurrence run down from f(R+1) = 0 gives
        f(k) ∝ I_k ± I_(R+1) K_k / K_(R+1), and K_k increases with k, so each probability is off
        by ≤ P(R+1) ≤ 2^-262; the discrete Gaussian has no such term; (3) all terms are positive,
        so rounding to 320 bits costs a relative R·2^-319 (Skellam) or R²·2^-319 (Gaussian, whose
        ratio is itself a product); (4) rounding down moves each of 2R boundaries by ≤ 2^-255.
        Together ≤ 2^-261 + 2R·2^-262·2 + 2^-268 + 2R·2^-255 < 2^-200.

    Raises:
        ValueError: a variance that is not positive and finite, above 2^40, or, for a Gaussian,
            below 2^-10 (where P(X ≠ 0) < 2^-700: there is no noise).
    """
    if not (0 < variance <= 2.0**40):
        raise ValueError(f"variance must lie in (0, 2^40], got {variance}")
    if kind != "skellam" and variance < 2.0**-10:
        raise ValueError(f"a discrete Gaussian's variance must be at least 2^-10, got {variance}")
    weights = _skellam_weights if kind == "skellam" else _gaussian_weights
    radius = tail_radius(kind, variance, _TAIL)
    centre = tail = 0
    for centre in weights(variance, radius):
        tail += centre
    total = 2 * tail - (0 if kind == "two_zero_gaussian" else centre)
    shift = total.bit_length() + UNIT
    reciprocal = (1 << (shift + UNIT)) // total
    above = 0
    for k, weight in zip(range(radius - 1, -1, -1), weights(variance, radius), strict=False):
        above += weight
        yield k, (above * reciprocal) >> shift


def _skellam_weights(variance: float, radius: int) -> Iterator[int]:
    """Yield integers proportional to I_k(v) for k = radius … 0 (Miller's backward recurrence).

    I_(k−1) = I_(k+1) + (2k/v) I_k; downwards it is stable, upwards it is not.
    """
    numerator, denominator = variance.as_integer_ratio()
    outer, inner = 0, 1 << _PRECISION
    yield inner
    for k in range(radius, 0, -1):
        outer, inner = inner, outer + 2 * k * denominator * inner // numerator
        yield inner


def _gaussian_weights(variance: float, radius: int) -> Iterator[int]:
    """Yield integers proportional to exp(−k²/2v) for k = radius … 0, by products of ratios."""
    from mpmath import mp, mpf

    # exp(−1/v) keeps its leading 320 bits also where it is small.
    precision = _PRECISION + math.ceil(2 / variance)
    with mp.workprec(2 * precision):
        one = mpf(2) ** precision
        ratio = int(mp.exp(mpf(2 * radius - 1) / (2 * mpf(variance))) * one)
        shrink = int(mp.exp(-1 / mpf(variance)) * one)
    weight = 1 << precision
    yield weight
    for _ in range(radius):
        weight = weight * ratio >> precision
        ratio = ratio * shrink >> precision
        yield weight
