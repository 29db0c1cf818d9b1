"""What one round tells of a user who is known to be in it: Rényi divergences by mechanism.

A mechanism without an entry in ``DIVERGENCES`` has no proof here, and the accountant refuses it.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from pfl_lm.dp.accounting import discrete, renyi
from pfl_lm.dp.events import RoundEvent
from pfl_lm.dp.grid_norms import grid_norm, l1_norm, rounded_norm


def sensitivity(event: RoundEvent) -> int:
    """Return by how many clip norms one user moves the sum of a round that he is known to be in.

    A user who leaves a cohort of fixed size makes room for another one.
    """
    moved = event.sampling == "fixed" and event.neighboring == "add_remove"
    return 2 if event.neighboring == "replace_one" or moved else 1


def known_divergence(event: RoundEvent) -> renyi.CurveFunction:
    """Return the divergences of a round in which the user is known to take part."""
    return divergence(event, sensitivity(event))


def divergence(event: RoundEvent, moved: int) -> renyi.CurveFunction:
    """Return orders → Rényi divergence of sums that differ by ``moved`` clip norms."""
    if event.noise_multiplier == 0:
        return lambda orders: np.full(orders.shape, np.inf)
    return DIVERGENCES[event.mechanism](event, moved)


def gaussian_divergence(event: RoundEvent, moved: int) -> renyi.CurveFunction:
    """Return α → α moved² ÷ (2 z²) (Mironov 2017, arXiv:1702.07476, proposition 7)."""
    scaled = moved / event.noise_multiplier
    return lambda orders: orders * (scaled * scaled) / 2


def skellam_divergence(event: RoundEvent, moved: int) -> renyi.CurveFunction:
    """Return the bound of :func:`pfl_lm.dp.accounting.discrete.skellam` on the event's grid."""
    norm, l1, l2 = _on_grid(event, moved)
    deviation = event.noise_multiplier * norm
    return lambda orders: discrete.skellam(orders, l1, l2, deviation * deviation)


def discrete_gaussian_divergence(event: RoundEvent, moved: int) -> renyi.CurveFunction:
    """Return the bound of :func:`pfl_lm.dp.accounting.discrete.discrete_gaussian`."""
    norm, l1, l2 = _on_grid(event, moved)
    share = event.noise_multiplier * norm / math.sqrt(event.reports)
    return lambda orders: discrete.discrete_gaussian(
        orders, l1, l2, share, event.reports, event.dim
    )


def _on_grid(event: RoundEvent, moved: int) -> tuple[float, float, float]:
    """Return the clip norm in grid steps, and by how much the rounded sum moves in ℓ1 and ℓ2."""
    norm = grid_norm(event.grid_steps, event.dim)
    rounded = rounded_norm(norm, event.dim)
    return norm, moved * l1_norm(rounded, event.dim), moved * rounded


DIVERGENCES: dict[str, Callable[[RoundEvent, int], renyi.CurveFunction]] = {
    "gaussian": gaussian_divergence,
    "skellam": skellam_divergence,
    "discrete_gaussian": discrete_gaussian_divergence,
}


def is_gaussian(event: RoundEvent) -> bool:
    """Whether a round's noise is Gaussian, which the closed form and loss distributions need."""
    return DIVERGENCES.get(event.mechanism) is gaussian_divergence
