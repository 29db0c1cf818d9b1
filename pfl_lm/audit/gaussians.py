"""(ε, δ) between two Gaussians, and the one-shot estimate that rests on it.

A canary that took part gives a cosine distributed about N(mean, std²); one that did not gives
N(0, 1/dim). ε between these two is an estimate of what one participation revealed: it is exact
if the canaries' distribution is Gaussian with the fitted moments, and no bound at all otherwise.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from scipy import optimize, special

# From here on the null distribution of a cosine is Gaussian for every practical purpose.
GAUSSIAN_DIM = 1000


def gaussian_delta(mu: float, epsilon: float) -> float:
    """Return the smallest δ at which N(0, 1) against N(mu, 1) is (ε, δ)-indistinguishable.

    Source: Balle & Wang 2018, arXiv 1805.06530v2, theorem 8 (mu = sensitivity ÷ stddev).
    """
    if mu == 0:
        return 0.0
    first = special.log_ndtr(mu / 2 - epsilon / mu)
    second = epsilon + special.log_ndtr(-mu / 2 - epsilon / mu)
    return float(np.exp(first) * -np.expm1(second - first))


def gaussian_epsilon(mu: float, delta: float) -> float:
    """Return the exact ε(δ) of one Gaussian release whose mean moves by ``mu`` deviations.

    Raises:
        ValueError: mu is negative or δ lies outside (0, 1).
    """
    if not mu >= 0 or not 0 < delta < 1:
        raise ValueError(f"mu = {mu} must be ≥ 0 and delta = {delta} must lie between 0 and 1")
    if math.isinf(mu):
        return math.inf
    return _smallest_epsilon(lambda epsilon: gaussian_delta(mu, epsilon), delta)


def gaussian_mu(epsilon: float, delta: float) -> float:
    """Return the largest mu whose Gaussian release is still (ε, δ)-DP.

    Raises:
        ValueError: ε is negative or δ lies outside (0, 1).
    """
    if not epsilon >= 0 or not 0 < delta < 1:
        raise ValueError(f"epsilon = {epsilon} must be ≥ 0 and 0 < delta = {delta} < 1")
    high = 1.0
    while gaussian_delta(high, epsilon) < delta:
        high *= 2
    return float(
        optimize.brentq(lambda mu: gaussian_delta(mu, epsilon) - delta, 0, high, xtol=1e-14)
    )


def two_gaussians_epsilon(
    mean_a: float, std_a: float, mean_b: float, std_b: float, delta: float
) -> float:
    """Return ε(δ) between N(mean_a, std_a²) and N(mean_b, std_b²), the worse direction of both.

    Identical distributions give 0.

    Raises:
        ValueError: a standard deviation is not positive, or δ lies outside (0, 1).
    """
    if not (std_a > 0 and std_b > 0 and 0 < delta < 1):
        raise ValueError(f"std {std_a}, {std_b} must be positive, and 0 < delta = {delta} < 1")

    def worse_delta(epsilon: float) -> float:
        return max(
            _hockey_stick(mean_a, std_a, mean_b, std_b, epsilon),
            _hockey_stick(mean_b, std_b, mean_a, std_a, epsilon),
        )

    return _smallest_epsilon(worse_delta, delta)


def _hockey_stick(m1: float, s1: float, m2: float, s2: float, epsilon: float) -> float:
    """Return max over events E of P₁(E) − e^ε P₂(E), for Gaussians P₁, P₂.

    The best event is {y : log p₁(y)/p₂(y) > ε}. Measured in P₁'s deviations, x = (y − m1)/s1,
    the log-ratio is the parabola a·x² + b·x + c, so the event is a ray, an interval, or the
    outside of one.
    """
    ratio, shift = s1 / s2, (m1 - m2) / s2
    a, b = (ratio**2 - 1) / 2, ratio * shift
    c = shift**2 / 2 - math.log(ratio) - epsilon
    edges = _roots(a, b, c)
    if not edges:
        return 0.0
    log_p1, log_p2 = (
        _log_mass(scale, offset, edges, outside=a > 0, rising=b > 0)
        for scale, offset in ((1.0, 0.0), (ratio, shift))
    )
    gap = epsilon + log_p2 - log_p1
    return float(np.exp(log_p1) * -np.expm1(gap)) if gap < 0 else 0.0


def _roots(a: float, b: float, c: float) -> tuple[float, ...]:
    """Return the real roots of a·x² + b·x + c in order, without cancellation; () without any."""
    discriminant = b * b - 4 * a * c
    if discriminant <= 0:
        return ()
    q = -(b + math.copysign(math.sqrt(discriminant), b)) / 2
    return (c / q,) if a == 0 else tuple(sorted((q / a, c / q)))


def _log_mass(
    scale: float, offset: float, edges: tuple[float, ...], *, outside: bool, rising: bool
) -> float:
    """Return the log-probability of the event under the Gaussian in which x is scale·x + offset."""
    z = [scale * edge + offset for edge in edges]
    if len(z) == 1:
        return float(special.log_ndtr(-z[0] if rising else z[0]))
    left, right = z
    if outside:
        return float(np.logaddexp(special.log_ndtr(left), special.log_ndtr(-right)))
    # Between the edges; the difference is taken in the tail where both terms are small.
    high, low = (-left, -right) if left > 0 else (right, left)
    first, second = special.log_ndtr(high), special.log_ndtr(low)
    return float(first + np.log1p(-np.exp(second - first))) if second < first else -math.inf


def _smallest_epsilon(delta_of: Callable[[float], float], delta: float) -> float:
    """Invert a decreasing δ(ε)."""
    if delta_of(0.0) <= delta:
        return 0.0
    low, high = 0.0, 1.0
    while delta_of(high) > delta:
        low, high = high, high * 2
    return float(optimize.brentq(lambda e: math.log(max(delta_of(e), 1e-300) / delta), low, high,
                                 xtol=1e-12))  # fmt: skip


def one_shot_estimate(cosines: Sequence[float] | np.ndarray, dim: int, delta: float) -> float:
    """Estimate ε from the cosines between canaries that took part and what was released.

    An ESTIMATE: the cosines' distribution is replaced by a Gaussian of the same moments. With
    ``dim`` not much larger than the number of canaries the spread is overfitted and the estimate
    is biased upward.

    Args:
        cosines: float[k], one for each canary.
        dim: dimension of the space from which the canaries were drawn.

    Source: Andrew et al. 2023, arXiv 2302.03098v5, section 4.
    """
    values = np.asarray(cosines, dtype=np.float64)
    return one_shot_estimate_of_moments(float(values.mean()), float(values.std()), dim, delta)


def one_shot_estimate_of_moments(mean: float, std: float, dim: int, delta: float) -> float:
    """Estimate ε from the moments of the canaries' cosines; see ``one_shot_estimate``.

    Raises:
        ValueError: the null distribution is not Gaussian at so small a dimension.
    """
    if dim < GAUSSIAN_DIM:
        raise ValueError(f"dim = {dim}: the one-shot estimate needs at least {GAUSSIAN_DIM}")
    return two_gaussians_epsilon(0.0, dim**-0.5, mean, std, delta)
