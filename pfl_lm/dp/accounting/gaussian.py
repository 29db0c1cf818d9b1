"""The Gaussian mechanism in closed form: exact (ε, δ) curve, composition, zCDP.

Throughout, ``noise_multiplier`` is the standard deviation of the noise divided by the ℓ2
sensitivity. Composing Gaussian releases without sampling loses nothing: a user who takes part in
rounds with multipliers z₁ … z_k is exactly as exposed as by one release with (Σ zᵢ⁻²)^(−1/2).

Source: Balle & Wang 2018, "Improving the Gaussian mechanism for differential privacy",
arXiv:1805.06530v2, Theorem 8; Dong, Roth & Su 2022, "Gaussian differential privacy",
arXiv:1905.02383v3, Corollary 3.3 (composition).
"""

from __future__ import annotations

import math
from collections.abc import Iterable

from scipy import special

_RELATIVE_TOLERANCE = 1e-12
_LEAST = 1e-150  # of a noise multiplier that can be squared


def delta(epsilon: float, noise_multiplier: float) -> float:
    """Return the smallest δ for which one Gaussian release is (ε, δ)-private, exactly.

    δ(ε) = Φ(1/2z − εz) − e^ε Φ(−1/2z − εz), in log space so that no z under- or overflows.
    """
    if noise_multiplier == 0:
        return 1.0
    half, shift = 0.5 / noise_multiplier, epsilon * noise_multiplier
    log_first = float(special.log_ndtr(half - shift))
    log_second = epsilon + float(special.log_ndtr(-half - shift))
    if math.isnan(log_first) or math.isnan(log_second):
        return 1.0  # nothing is proven
    if log_second >= log_first:  # equal but for rounding: δ is below what doubles resolve
        return 0.0
    return math.exp(log_first) * -math.expm1(log_second - log_first)


def epsilon(noise_multiplier: float, delta_: float) -> float:
    """Return the smallest ε for which one Gaussian release is (ε, δ)-private.

    | case | ε |
    |---|---|
    | noise_multiplier = 0, NaN, or below 1e-150, whose square is no double | ∞ |
    | noise_multiplier = ∞ | 0 |
    | δ alone covers the release, δ(0) ≤ δ | 0 |

    Guarantees:
        The upper end of the bisection is returned, so ``delta(ε, noise_multiplier) ≤ δ``.
    """
    if not noise_multiplier > _LEAST:  # nor NaN
        return math.inf
    if math.isinf(noise_multiplier) or delta(0.0, noise_multiplier) <= delta_:
        return 0.0
    low, high = 0.0, 1.0
    while delta(high, noise_multiplier) > delta_:
        low, high = high, 2 * high
    while high - low > _RELATIVE_TOLERANCE * high:
        middle = (low + high) / 2
        if delta(middle, noise_multiplier) > delta_:
            low = middle
        else:
            high = middle
    return high


def composed(noise_multipliers: Iterable[tuple[float, int]]) -> float:
    """Return the multiplier of the one release that equals them all, (Σ count·z⁻²)^(−1/2).

    Args:
        noise_multipliers: pairs (z, how often). No release at all gives ∞.
    """
    total = 0.0
    for noise_multiplier, count in noise_multipliers:
        if count and not noise_multiplier > _LEAST:
            return 0.0
        total += count / min(noise_multiplier, 1 / _LEAST) ** 2 if count else 0.0
    return math.inf if total == 0 else total**-0.5


def rho(noise_multiplier: float) -> float:
    """Return the zCDP parameter ρ = 1/(2z²) of one Gaussian release.

    Source: Bun & Steinke 2016, arXiv:1605.02065v1, Proposition 1.6.
    """
    return 0.5 / noise_multiplier**2 if noise_multiplier > _LEAST else math.inf
