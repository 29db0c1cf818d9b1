"""What one user can do to a whole stream: the sensitivity of its plan, by which ε is computed."""

from __future__ import annotations

import math
from functools import lru_cache

from pfl_lm.dp.correlated import tree
from pfl_lm.dp.correlated.strategy import KINDS, Strategy
from pfl_lm.dp.events import StreamPlan

TREE = "tree"


def strategy_of(plan: StreamPlan) -> Strategy:
    """Return the matrix of a plan that is no tree.

    Raises:
        ValueError: the numbers describe none.
    """
    return Strategy(plan.kind, plan.weights, plan.decays)  # type: ignore[arg-type]


@lru_cache(maxsize=256)
def sensitivity(plan: StreamPlan, min_separation: int, participations: int | None = None) -> float:
    """Return (an upper bound of) ‖C(x − x′)‖ at clip norm 1; ∞ where nothing is proven.

    Args:
        min_separation: smallest r₂ − r₁ between two rounds of a user.
        participations: the most rounds of a user; None: as many as that leaves.

    Guarantees:
        Never below the true value; the errors of float64 are added.
    """
    times = 1 + (plan.rounds - 1) // min_separation
    times = times if participations is None else min(times, participations)
    if plan.kind == TREE:
        squared = tree.squared_sensitivity(plan.rounds, min_separation, times)
    elif plan.kind in KINDS:
        try:
            strategy = strategy_of(plan)
        except ValueError:
            return math.inf
        squared = strategy.squared_sensitivity(plan.rounds, min_separation, times)
    else:
        return math.inf
    return math.sqrt(squared) * (1 + plan.rounds * 2.0**-51)
