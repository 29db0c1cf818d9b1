"""One-shot estimates of ε: by cosines with the last model, and with every model on the way.

ESTIMATES, not bounds: the scores of canaries are replaced by Gaussians of the same moments.

Source: Andrew, Kairouz, Oh, Oprea, McMahan & Suriyakumar 2023, arXiv 2302.03098v5, section 4
(final model, known null distribution) and section 5 (all iterates, null from unobserved canaries).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from pfl_lm.audit.attack.canaries import Canaries, Seen
from pfl_lm.audit.gaussians import GAUSSIAN_DIM, one_shot_estimate, two_gaussians_epsilon
from pfl_lm.numbers import format_epsilon


@dataclass(frozen=True)
class OneShot:
    """ε as estimated for attackers who see one model, or all; nan where it cannot be.

    Attributes:
        final: from the last model.
        iterates: from every model, each canary scored by its best round.
        floor: what ``iterates`` would be if nothing leaked: two halves of the unobserved canaries
            against each other. Fitting spreads alone makes it positive.
    """

    final: float
    iterates: float
    floor: float

    def in_words(self) -> str:
        if math.isnan(self.final):
            return "One-shot estimates are not available at so few coordinates."
        final, iterates, floor = map(format_epsilon, (self.final, self.iterates, self.floor))
        return (
            "One-shot estimates (Andrew et al. 2023; estimates, not bounds), by cosines with the "
            f"last model: {final}; with every model: {iterates} (where nothing leaks this many "
            f"canaries give {floor})."
        )


def one_shot(placed: Canaries, seen: Seen, delta: float) -> OneShot:
    """Estimate ε from the canaries that took part in one round, unknown to the attacker."""
    dim = placed.directions.shape[1]
    took_part = placed.scheduled & placed.coins
    best = seen.cosines.max(axis=0)
    present, absent = best[took_part], best[placed.scheduled & ~placed.coins]
    if dim < GAUSSIAN_DIM or min(len(present), len(absent)) < 20 or not np.any(seen.final):
        return OneShot(math.nan, math.nan, math.nan)
    return OneShot(
        one_shot_estimate(seen.final[took_part], dim, delta),
        _between(absent, present, delta),
        _between(absent[::2], absent[1::2], delta),
    )


def _between(absent: np.ndarray, present: np.ndarray, delta: float) -> float:
    """Return ε between the Gaussians of the same moments."""
    moments = absent.mean(), absent.std(), present.mean(), present.std()
    mean_a, std_a, mean_b, std_b = (float(value) for value in moments)
    if min(std_a, std_b) <= 0:
        return math.inf if mean_a != mean_b else 0.0
    return two_gaussians_epsilon(mean_a, std_a, mean_b, std_b, delta)
