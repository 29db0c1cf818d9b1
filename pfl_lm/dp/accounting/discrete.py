"""Discrete noise that devices add themselves: Skellam, and sums of discrete Gaussians.

Lengths are in grid units: an update of norm c becomes, after scaling by s, a vector of norm
``s·c`` and then an integer vector. ``dim`` counts coordinates on the grid. ``stddev`` is per
coordinate. The bounds hold for any vector of that length, in any direction.

Source: Kairouz, Liu & Steinke 2021, "The distributed discrete Gaussian mechanism for federated
learning with secure aggregation", arXiv:2102.06387v4; Agarwal, Kairouz & Liu 2021, "The Skellam
mechanism for differentially private federated learning", arXiv:2110.04995v3.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from pfl_lm.dp.accounting.renyi import Curve


def skellam(orders: NDArray[np.float64], l1: float, l2: float, variance: float) -> Curve:
    """Bound the Rényi divergences between integer vectors l1, l2 apart under Skellam noise.

    α l2²/(2μ) + min{((2α−1) l2² + 6 l1)/(4μ²), 3 l1/(2μ)}, for integer α ≥ 2, where μ is the
    variance of the noise in each coordinate of the sum. Skellam noise is closed under addition,
    so only the sum's variance matters.

    Source: Agarwal et al. 2021, Theorem 3.5.
    """
    if variance == 0:
        return np.full(orders.shape, np.inf)
    with np.errstate(over="ignore"):  # a variance whose square is no double
        second_order = ((2 * orders - 1) * l2**2 + 6 * l1) / variance / variance / 4
        correction = np.minimum(second_order, 1.5 * l1 / variance)
    return np.asarray(orders * l2**2 / (2 * variance) + correction, dtype=np.float64)


def discrete_gaussian(
    orders: NDArray[np.float64], l1: float, l2: float, share_stddev: float, shares: int, dim: int
) -> Curve:
    """Bound the Rényi divergences l1, l2 apart under the sum of ``shares`` discrete Gaussians.

    With σ = share_stddev·√shares and τ of ``closure_gap``, the least of α l2²/(2σ²) + τd,
    α (l2²/σ² + 2 l1 τ/σ + τ² d)/2, and α (l2/σ + √d τ)²/2. One share has τ = 0: the discrete
    Gaussian alone is no worse than the continuous one.

    Source: Kairouz et al. 2021, Proposition 14 (Theorem 1 in zCDP).
    """
    sigma = share_stddev * math.sqrt(shares)
    if sigma == 0:
        return np.full(orders.shape, np.inf)
    tau = closure_gap(share_stddev, shares)
    x1, x2 = l1 / sigma, l2 / sigma
    together = x2 + math.sqrt(dim) * tau  # products, since powers of large doubles raise
    linear = min(x2 * x2 + 2 * x1 * tau + tau * tau * dim, together * together)
    return np.minimum(orders * (x2 * x2) / 2 + tau * dim, orders * linear / 2)


def closure_gap(share_stddev: float, shares: int) -> float:
    """Return τ, how far a sum of discrete Gaussians may be from one (max divergence).

    τ = 10 Σ_{k=1}^{n−1} exp(−2π² σ² k/(k+1)), σ in grid units: below 1e-8 from σ = 1.5 on,
    useless under 1.

    Source: Kairouz et al. 2021, Theorem 1.
    """
    k = np.arange(1, shares)
    return float(10 * np.sum(np.exp(-2 * (math.pi * share_stddev) ** 2 * k / (k + 1))))
