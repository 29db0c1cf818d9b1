"""Rényi divergences: a curve over fixed orders, its conversion to ε, its amplification.

A curve is float64[len(ORDERS)]: an upper bound on the Rényi divergence, at every order of
``ORDERS``, between what is seen with and without a user. Curves of successive rounds add.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy import special

Curve: TypeAlias = NDArray[np.float64]
CurveFunction: TypeAlias = Callable[[NDArray[np.float64]], Curve]
"""Orders → divergences of one round in which the user takes part."""

LARGEST_AMPLIFIED_ORDER = 512
"""Above this order sampling is taken to help nothing, which is sound and never optimal."""


def _orders() -> NDArray[np.float64]:
    dense = np.arange(2, 129)
    sparse = np.unique(np.round(np.geomspace(129, LARGEST_AMPLIFIED_ORDER, 28)).astype(int))
    large = np.unique(np.round(np.geomspace(LARGEST_AMPLIFIED_ORDER + 1, 65_536, 50)).astype(int))
    return np.concatenate([dense, sparse, large]).astype(np.float64)


ORDERS: NDArray[np.float64] = _orders()
"""Integers, because the amplification theorems and the Skellam bound hold for integers only."""


def epsilon(curve: Curve, delta: float, orders: NDArray[np.float64] = ORDERS) -> float:
    """Return the smallest ε that the curve proves at δ; ∞ where it proves none.

    An order at which the divergence is not a number proves nothing.

    ε = min over α of  D_α + ln(1 − 1/α) − (ln δ + ln α)/(α − 1).

    Source: Canonne, Kamath & Steinke 2020, "The discrete Gaussian for differential privacy",
    arXiv:2004.00010v4, Proposition 12.
    """
    bounds = np.where(np.isnan(curve), np.inf, curve)
    if not np.any(bounds > 0):
        return 0.0
    candidates = bounds + np.log1p(-1 / orders) - (math.log(delta) + np.log(orders)) / (orders - 1)
    return max(0.0, float(np.min(candidates)))


def amplified_by_poisson(divergence: CurveFunction, rate: float) -> Curve:
    """Bound a round in which each user takes part independently with probability ``rate``.

    For integer α ≥ 2 and γ = rate, e^((α−1) D'_α) is at most

        (1−γ)^(α−1) (αγ − γ + 1) + C(α,2) γ² (1−γ)^(α−2) e^D(2)
        + 3 Σ_{l=3}^α C(α,l) (1−γ)^(α−l) γ^l e^((l−1) D(l)).

    The factor 3 can go where the mechanism's odd Pearson-Vajda divergences are nonnegative
    (Theorem 6 there); nobody has shown this for Skellam or discrete Gaussian noise in more than
    one dimension, so it stays.

    Guarantees:
        Holds for any mechanism, in both directions of adding or removing a user, when the noise
        does not depend on who was drawn. Never above the unamplified curve.

    Source: Zhu & Wang 2019, "Poisson subsampled Rényi differential privacy", ICML, Theorem 5.
    """
    orders, powers, log_binomial = _binomials()
    with np.errstate(over="ignore", invalid="ignore"):
        growth = (powers - 1) * divergence(np.maximum(powers, 2.0))  # (l - 1) D(l), l = 0 … 512
        terms = (
            log_binomial
            + (orders[:, None] - powers) * math.log1p(-rate)
            + powers * math.log(rate)
            + growth
        )
    terms[:, 3:] += math.log(3)
    terms[:, 1] = -np.inf
    terms[:, 0] = (orders - 1) * math.log1p(-rate) + np.log1p((orders - 1) * rate)
    return _capped(special.logsumexp(terms, axis=1) / (orders - 1), divergence(ORDERS))


def amplified_by_fixed_size(divergence: CurveFunction, rate: float) -> Curve:
    """Bound a round whose cohort is a uniform subset of fixed size, rate = size / population.

    ``divergence`` must be that of replacing one update by another, sensitivity 2C: the user who
    is drawn takes the place of another user, so the sum moves by up to twice the clip. This is
    what the shipped libraries overlook, and why a fixed-size cohort costs so much more than a
    Poisson one. For integer α ≥ 2, γ = rate and D the divergence at sensitivity 2C,
    e^((α−1) D'_α) is at most

        1 + γ² C(α,2) min{4 (e^D(2) − 1), 2 e^D(2)} + Σ_{j=3}^α 2 γ^j C(α,j) e^((j−1) D(j)).

    Guarantees:
        With B and B' the distributions of the output given that the user is drawn (with either
        update) and A given that he is not, P = (1−γ)A + γB and Q = (1−γ)A + γB'. The proof
        needs only that any two of A, B, B' are D apart, by coupling each subset with the user
        to one without. So the bound also covers: an update replaced by zero (a special case of
        replacing it); a user removed whose place another takes (B' = A); and Poisson sampling
        when one user replaces another (A is then only C away from B and B').

    Source: Wang, Balle & Kasiviswanathan 2019, "Subsampled Rényi differential privacy and
    analytical moments accountant", arXiv:1808.00087v3, Theorem 9 with ε(∞) = ∞.
    """
    orders, powers, log_binomial = _binomials()
    second = float(divergence(np.array([2.0]))[0])
    with np.errstate(over="ignore", invalid="ignore"):
        growth = (powers - 1) * divergence(np.maximum(powers, 2.0)) + math.log(2)
        if 0 < second < math.log(2):
            growth[2] = math.log(4) + math.log(math.expm1(second))
        terms = log_binomial + powers * math.log(rate) + growth
    terms[:, 0], terms[:, 1] = 0.0, -np.inf
    return _capped(special.logsumexp(terms, axis=1) / (orders - 1), divergence(ORDERS))


def _capped(amplified: Curve, unamplified: Curve) -> Curve:
    """Extend to all orders; sampling never hurts, because the divergence is quasi-convex."""
    curve = unamplified.copy()
    head = np.where(np.isnan(amplified), np.inf, np.maximum(amplified, 0.0))
    curve[: len(head)] = np.minimum(head, curve[: len(head)])
    return curve


@cache
def _binomials() -> tuple[Curve, Curve, NDArray[np.float64]]:
    """Return the amplified orders α, the powers l = 0 … 512 and ln C(α, l), −∞ for l > α."""
    orders = ORDERS[ORDERS <= LARGEST_AMPLIFIED_ORDER]
    powers = np.arange(LARGEST_AMPLIFIED_ORDER + 1, dtype=np.float64)
    rest = orders[:, None] - powers
    log_binomial = np.where(
        rest >= 0,
        special.gammaln(orders[:, None] + 1)
        - special.gammaln(powers + 1)
        - special.gammaln(np.maximum(rest, 0) + 1),
        -np.inf,
    )
    return orders, powers, log_binomial
