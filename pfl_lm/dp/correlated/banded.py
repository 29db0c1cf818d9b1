"""Banded strategies: Toeplitz matrices C or C⁻¹ with few diagonals.

Source: Choquette-Choo et al. 2023, "(Amplified) Banded Matrix Factorization" (arXiv:2306.08153);
Kalinin, McKenna, Upadhyay, Lampert 2025, "Back to Square Roots: An Optimal Bound on the Matrix
Factorization Error for Multi-Epoch Differentially Private SGD" (arXiv:2505.12128) for the banded
inverse square root.
"""

from __future__ import annotations

import math

import numpy as np

from pfl_lm.dp.correlated.blt import error_and_slope
from pfl_lm.dp.sampler.arrays import Doubles


def square_root(n: int) -> Doubles:
    """Return the coefficients of (1 − x)^(−½), the optimal strategy for the worst prefix sum of a
    user in one round: float64[n].

    Source: Fichtenberger, Henzinger, Upadhyay 2022 (arXiv:2202.11205).
    """
    return np.cumprod(np.concatenate([[1.0], 1 - 0.5 / np.arange(1, n)]))


def inverse_square_root(bands: int) -> Doubles:
    """Return the first ``bands`` coefficients of (1 − x)^½, the first column of C⁻¹."""
    return np.cumprod(np.concatenate([[1.0], 1 - 1.5 / np.arange(1, bands)]))


def optimise(n: int, bands: int) -> Doubles:
    """Return the first column of C, of norm 1, whose mean error of prefix sums is least.

    Args:
        n: rounds.
        bands: coefficients that differ from 0; at most the separation of a user's rounds, so that
            his participations meet in no row and k of them cost √k times one.

    Guarantees:
        Deterministic. Every coefficient is above 0.
    """
    from scipy.optimize import minimize

    weights = (n - np.arange(n)) / n

    def loss(point: Doubles) -> tuple[float, Doubles]:
        column = np.exp(point)
        error, slope = error_and_slope(column, n, weights)
        squared = float((column**2).sum())
        return math.log(error * squared), column * (slope / error + 2 * column / squared)

    result = minimize(
        loss,
        np.log(square_root(bands)),
        jac=True,
        method="L-BFGS-B",
        options={"maxiter": 3000, "maxfun": 4000, "maxcor": 30, "ftol": 1e-14, "gtol": 1e-10},
    )
    column = np.exp(result.x)
    return np.asarray(column / math.sqrt((column**2).sum()), dtype=np.float64)
