"""Lower-triangular Toeplitz matrices as power series: products, inverses, errors, sensitivities.

Legend: n rounds; a matrix is its first column c, float64[n], C[i, j] = c[i − j]; zeros are implied
beyond the end of a shorter array.
"""

from __future__ import annotations

import math

import numpy as np

from pfl_lm.dp.sampler.arrays import Doubles


def divide(numerator: Doubles, denominator: Doubles, n: int) -> Doubles:
    """Return the first ``n`` coefficients of the quotient of two power series: float64[n].

    Args:
        denominator: its constant coefficient must not be 0.
    """
    from scipy.signal import lfilter

    impulse = np.zeros(n)
    head = numerator[:n]
    impulse[: len(head)] = head
    return np.asarray(lfilter([1.0], denominator[:n], impulse), dtype=np.float64)


def inverse(coefficients: Doubles, n: int) -> Doubles:
    """Return the first column of C⁻¹: float64[n]."""
    return divide(np.ones(1), coefficients, n)


def prefix_errors(coefficients: Doubles, n: int) -> Doubles:
    """Return the variance of the noise on each of the ``n`` prefix sums, for z = 1: float64[n].

    Prefix sum t carries the noise of row t of A·C⁻¹, where A is the lower triangle of ones.
    """
    return np.cumsum(divide(np.ones(n), coefficients, n) ** 2)


def squared_sensitivity(
    coefficients: Doubles, n: int, min_separation: int, participations: int
) -> float:
    """Bound ‖C(x − x′)‖² for a user who adds vectors of norm ≤ 1 in some of ``n`` rounds.

    Args:
        coefficients: float64[m], the first column of C; zeros follow after m.
        min_separation: smallest r₂ − r₁ between two rounds of the user, at least 1.
        participations: the most rounds the user may be in, at least 1.

    | case | value |
    |---|---|
    | one participation | ‖c‖², exact |
    | non-negative and non-increasing | participations as early and as close as allowed, exact |
    | at most min_separation coefficients differ from 0 | k·‖c‖² of disjoint columns, exact |
    | any other | the same of the least non-increasing majorant of the absolute values |
    | a coefficient that is not finite | ∞ |

    Guarantees:
        Never below the true value, up to rounding of float64 (relative error < n·2^-52).

    Source: Kalinin and Lampert 2024, "Banded Square Root Matrix Factorization for Differentially
    Private Model Training" (arXiv:2405.13763), Theorem 2, for non-negative non-increasing
    coefficients; Choquette-Choo et al. 2023 (arXiv:2306.08153), Theorem 2, for disjoint bands.
    The last bound: |C| ≤ M entry by entry, so ‖Σ_t C[:, t]·x_tᵀ‖ ≤ ‖Σ_t M[:, t]·‖x_t‖‖.
    """
    if n < 1 or min_separation < 1 or participations < 1:
        raise ValueError(
            "rounds, min_separation and participations must be at least 1, got "
            f"{n}, {min_separation} and {participations}"
        )
    column = np.asarray(coefficients[:n], dtype=np.float64)
    if not len(column) or not np.isfinite(column).all():
        return math.inf
    times = min(participations, 1 + (n - 1) // min_separation)
    bands = int(np.flatnonzero(column)[-1]) + 1 if column.any() else 0
    if times > 1 and bands > min_separation:
        column = majorant(column)
    return float((repeated(column, n, min_separation, times) ** 2).sum())


def repeated(column: Doubles, n: int, min_separation: int, times: int) -> Doubles:
    """Return Σ_j c shifted by j·min_separation, j < times: what participations sum to, [n]."""
    total = np.zeros(n)
    for j in range(times):
        shift = j * min_separation
        total[shift : shift + len(column)] += column[: n - shift]
    return total


def majorant(column: Doubles) -> Doubles:
    """Return the least non-increasing sequence that bounds the absolute values: float64[m]."""
    return np.maximum.accumulate(np.abs(column)[::-1])[::-1]
