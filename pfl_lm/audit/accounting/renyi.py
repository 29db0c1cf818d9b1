"""Rényi bounds for noise that no library accounts for, written from the theorems once more.

Lengths are in grid units. Divergences are taken at integer orders, because the theorems hold
there.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import lru_cache

import numpy as np
from scipy import special

from pfl_lm.audit.accounting.round_groups import RoundGroup

ORDERS = np.array([*range(2, 200), *range(200, 512, 12), *(2**k for k in range(9, 17))], float)
_LARGEST_SAMPLED = 511
Divergence = Callable[[np.ndarray], np.ndarray]


def epsilon(groups: Sequence[RoundGroup], delta: float) -> float:
    """Compose the groups' divergences and convert to ε(δ)."""
    total = sum((group.rounds * curve(group) for group in groups), np.zeros(len(ORDERS)))
    return converted(total, delta) if total.any() else 0.0


def converted(divergences: np.ndarray, delta: float) -> float:
    """Return ε(δ) of what has these divergences at ``ORDERS``: Canonne et al. 2020, prop. 12."""
    proven = np.where(
        np.isnan(divergences), np.inf, divergences
    )  # what is no number proves nothing
    values = proven + np.log1p(-1 / ORDERS) - (math.log(delta) + np.log(ORDERS)) / (ORDERS - 1)
    return float(max(0.0, values.min()))


def curve(group: RoundGroup) -> np.ndarray:
    """Return the divergence of one round at ``ORDERS``, float64[n]."""
    return _curve(replace(group, rounds=1))


@lru_cache(maxsize=256)
def _curve(group: RoundGroup) -> np.ndarray:
    if group.rate == 0:
        return np.zeros(len(ORDERS))
    once = divergence(group, group.sensitivity)
    plain = once(ORDERS)
    if not group.is_sampled or group.noise_multiplier == 0:
        return plain
    if group.sampling == "poisson" and group.neighboring != "replace_one":
        return np.fmin(plain, amplified(once, group.rate))
    return np.fmin(plain, _fixed_size(divergence(group, 2), group.rate))


def divergence(group: RoundGroup, sensitivity: int) -> Divergence:
    """Return order → divergence of two sums that are ``sensitivity`` clipped updates apart."""
    z = group.noise_multiplier
    if z == 0 or group.mechanism == "none":
        return lambda orders: np.full(orders.shape, np.inf)
    if group.mechanism == "gaussian":
        return lambda orders: orders * (sensitivity / z) ** 2 / 2
    clip = group.grid_steps * math.sqrt(group.dim)
    longest = rounded_norm(clip, group.dim)
    l2, l1 = sensitivity * longest, sensitivity * l1_norm(longest, group.dim)
    variance = (z * clip) ** 2
    if group.mechanism == "skellam":
        return lambda orders: skellam(orders, l1, l2, variance)
    return lambda orders: discrete_gaussian(orders, l1, l2, variance, group.shares, group.dim)


def rounded_norm(norm: float, dim: int) -> float:
    """Return the longest that conditional rounding (β = e^−½) makes a vector.

    Source: Kairouz, Liu & Steinke 2021, arXiv 2102.06387v4, proposition 22.
    """
    careful = math.sqrt(norm**2 + dim / 4 + norm + math.sqrt(dim) / 2)
    return min(norm + math.sqrt(dim), careful)


def l1_norm(l2: float, dim: int) -> float:
    """Return the largest ℓ1 norm of an integer vector of this ℓ2 norm."""
    return l2 * min(math.sqrt(dim), l2)


def skellam(orders: np.ndarray, l1: float, l2: float, variance: float) -> np.ndarray:
    """Agarwal, Kairouz & Liu 2021, arXiv 2110.04995v3, theorem 3.5."""
    gaussian = orders * l2**2 / (2 * variance)
    extra = ((2 * orders - 1) * l2**2 + 6 * l1) / (4 * variance**2)
    return gaussian + np.minimum(extra, 3 * l1 / (2 * variance))


def discrete_gaussian(
    orders: np.ndarray, l1: float, l2: float, variance: float, shares: int, dim: int
) -> np.ndarray:
    """Kairouz, Liu & Steinke 2021, arXiv 2102.06387v4, proposition 14."""
    tau = closure_gap(variance / shares, shares)
    x1, x2 = l1 / math.sqrt(variance), l2 / math.sqrt(variance)
    slopes = (x2**2 + 2 * x1 * tau + tau**2 * dim, (x2 + math.sqrt(dim) * tau) ** 2)
    return np.minimum(orders * x2**2 / 2 + tau * dim, orders * min(slopes) / 2)


def closure_gap(variance: float, shares: int) -> float:
    """Return τ: how far a sum of discrete Gaussian shares is from one of the same variance."""
    k = np.arange(1, shares)
    return 10 * float(np.sum(np.exp(-2 * math.pi**2 * variance * k / (k + 1))))


def amplified(once: Divergence, rate: float) -> np.ndarray:
    """Zhu & Wang 2019, theorem 5: the general bound, with its factor of 3."""

    def log_terms(order: int, powers: np.ndarray, logs: np.ndarray) -> np.ndarray:
        terms = logs + (order - powers) * math.log1p(-rate) + powers * math.log(rate)
        terms[2:] += (powers[2:] - 1) * once(powers[2:])
        terms[3:] += math.log(3)
        # The terms of powers 0 and 1 together: (1 − q)^(α−1)·(αq − q + 1).
        terms[0] = (order - 1) * math.log1p(-rate) + math.log1p((order - 1) * rate)
        terms[1] = -math.inf
        return terms

    return _summed(log_terms)


def _fixed_size(twice: Divergence, rate: float) -> np.ndarray:
    """Wang, Balle & Kasiviswanathan 2019, arXiv 1808.00087v3, theorem 9, at two clip norms."""
    second = float(twice(np.array([2.0]))[0])
    factor = math.log(4) + math.log(math.expm1(second)) if second < math.log(2) else None

    def log_terms(order: int, powers: np.ndarray, logs: np.ndarray) -> np.ndarray:
        terms = logs + powers * math.log(rate) + math.log(2)
        terms[2:] += (powers[2:] - 1) * twice(powers[2:])
        if factor is not None:
            terms[2] = logs[2] + 2 * math.log(rate) + factor
        terms[0], terms[1] = 0.0, -math.inf
        return terms

    return _summed(log_terms)


def _summed(log_terms: Callable[[int, np.ndarray, np.ndarray], np.ndarray]) -> np.ndarray:
    """Sum the theorem's terms at each order; orders beyond the largest get no amplification."""
    values = np.full(len(ORDERS), np.inf)
    for i, order in enumerate(ORDERS.astype(int)):
        if order <= _LARGEST_SAMPLED:
            powers = np.arange(order + 1, dtype=float)
            logs = special.gammaln(order + 1) - special.gammaln(powers + 1)
            logs -= special.gammaln(order - powers + 1)
            with np.errstate(over="ignore", invalid="ignore"):
                terms = log_terms(int(order), powers, logs)
                values[i] = max(0.0, float(special.logsumexp(terms))) / (order - 1)
    return values
