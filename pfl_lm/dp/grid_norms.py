"""How long a clipped update can be once it is rounded to the integer grid: its ℓ2 and ℓ1 norm.

Lengths are in grid units. ``dim`` counts coordinates on the grid.

Source: Kairouz, Liu & Steinke 2021, "The distributed discrete Gaussian mechanism for federated
learning with secure aggregation", arXiv:2102.06387v4.
"""

from __future__ import annotations

import math

ROUNDING_BETA = math.exp(-0.5)
"""Rounding is repeated until the norm is within the bound, which one draw meets with at least
probability 1 − β. Conditioning costs bias, never privacy."""


def grid_norm(grid_steps: float, dim: int) -> float:
    """Return the norm g·√d, in grid units, that a clipped update is scaled to.

    A clipped update whose coordinates are all alike then spans ``grid_steps`` steps in each. The
    rounding's relative inflation of the norm falls with ``dim``, so an accounting at the
    smallest payload covers every larger one.
    """
    return grid_steps * math.sqrt(dim)


def rounded_norm(norm: float, dim: int, beta: float = ROUNDING_BETA) -> float:
    """Return the ℓ2 norm, in grid units, that no conditionally rounded vector exceeds.

    Source: Kairouz et al. 2021, Proposition 22 (as in Theorem 1).
    """
    always = norm + math.sqrt(dim)
    if beta == 0:
        return always
    squared = norm**2 + dim / 4 + math.sqrt(2 * math.log(1 / beta)) * (norm + math.sqrt(dim) / 2)
    return min(always, math.sqrt(squared))


def l1_norm(norm: float, dim: int) -> float:
    """Bound the ℓ1 norm of an integer vector by its ℓ2 norm: min(√d·norm, norm²)."""
    return norm * min(math.sqrt(dim), norm)
