"""Three attackers' views of the canaries: what each proves of ε, and what each suggests."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from pfl_lm.audit import canaries as placing
from pfl_lm.audit.estimators import one_run_bound, one_run_bound_fdp
from pfl_lm.audit.gaussians import gaussian_epsilon
from pfl_lm.audit.methods import quick_epsilon
from pfl_lm.audit.promise import Promise
from pfl_lm.audit.scores import Scores, bound_at_counts, gaussian_bound
from pfl_lm.world import World

SIGNIFICANCE = 0.05
_DEVIATIONS = 5.0  # how far a fitted distance is pulled back before it may accuse


@dataclass(frozen=True)
class View:
    """One attacker's result.

    Attributes:
        who: in words; ``promised``: the ε that must not be exceeded in the audited rounds.
        bound, sharpened: one-run lower bounds, the second against a Gaussian trade-off.
        assuming_gaussian: a lower bound if scores are Gaussian.
        fitted: ε of the fitted distance of scores: an estimate; ``least``: pulled back by 5σ.
    """

    who: str
    scores: Scores
    promised: float
    bound: float
    sharpened: float
    assuming_gaussian: float
    fitted: float
    least: float

    @property
    def holds(self) -> bool:
        proven = max(self.bound, self.sharpened, self.least)
        return proven <= self.promised * (1 + 1e-9)


def view_all(
    world: World,
    promise: Promise | None,
    placed: placing.Canaries,
    seen: placing.Seen,
    delta: float,
) -> list[View]:
    rounds = placed.invited.shape[0]
    rate = _rate(world, promise)
    noise = 0.0 if promise is None else promise.noise_multiplier
    server, released = math.inf, math.inf
    if promise is not None:
        server = quick_epsilon(promise.phase(1).seen_by_server(), delta)
        sampled = placed.invited[:, ~placed.scheduled].sum(axis=0)
        touched = rounds if promise.participation != "rotation" else int(sampled.max())
        released = quick_epsilon(promise.phase(touched), delta)
    return [
        view_of(
            "whoever knows who took part",
            placing.server_scores(placed, seen),
            server,
            delta,
        ),
        view_of(
            "whoever sees every model",
            placing.released_scores(placed, seen, rate, noise),
            released,
            delta,
        ),
        view_of("whoever sees the last model", placing.final_scores(placed, seen), released, delta),
    ]


def _rate(world: World, promise: Promise | None) -> float:
    """Return how likely a user is to be in a round, for one who does not know who is."""
    if promise is None:
        return min(1.0, world.protection.rule.size_or_rate)
    return 1 / promise.min_separation if promise.participation == "rotation" else promise.rate


def view_of(who: str, scores: Scores, promised: float, delta: float) -> View:
    """Bound ε by these scores; how many guesses the attacker makes is fixed beforehand."""
    counts = [max(1, int(scores.canaries * share)) for share in (0.025, 0.1, 0.25, 0.45)]
    bound, sharpened = (
        bound_at_counts(scores, counts, delta, SIGNIFICANCE, method)
        for method in (one_run_bound, one_run_bound_fdp)
    )
    distance, error = _distance(scores)
    return View(
        who,
        scores,
        promised,
        bound,
        sharpened,
        gaussian_bound(scores, delta, SIGNIFICANCE),
        gaussian_epsilon(max(0.0, distance), delta),
        gaussian_epsilon(max(0.0, distance - _DEVIATIONS * error), delta),
    )


def _distance(scores: Scores) -> tuple[float, float]:
    """Return how far apart the scores lie, in deviations of the excluded, and its error."""
    spread = float(np.std(scores.excluded)) or 1e-12
    # Beyond 100 deviations ε is in the thousands and says what it says.
    distance = min(100.0, float(scores.included.mean() - scores.excluded.mean()) / spread)
    wide = float(np.std(scores.included)) / spread
    n1, n0 = len(scores.included), len(scores.excluded)
    return distance, min(100.0, math.sqrt(wide**2 / n1 + (1 + distance**2 / 2) / n0))
