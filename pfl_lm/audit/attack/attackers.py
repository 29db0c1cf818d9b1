"""Three attackers who look for the canaries: what each proves of ε, and what each suggests."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from pfl_lm.audit.accounting.methods import quick_epsilon
from pfl_lm.audit.accounting.stated import StatedGuarantee
from pfl_lm.audit.accounting.streams import coefficients, toeplitz
from pfl_lm.audit.attack import canaries
from pfl_lm.audit.attack.estimators import one_run_bound, one_run_bound_fdp
from pfl_lm.audit.attack.scores import Scores, bound_at_counts, gaussian_bound
from pfl_lm.audit.gaussians import gaussian_epsilon
from pfl_lm.run.context import RunContext

SIGNIFICANCE = 0.05
_DEVIATIONS = 5.0  # how far a fitted distance is pulled back before it may accuse


@dataclass(frozen=True)
class AttackResult:
    """One attacker's result.

    Attributes:
        who: in words; ``guaranteed``: the ε that must not be exceeded in the audited rounds.
        bound, sharpened: one-run lower bounds, the second against a Gaussian trade-off.
        assuming_gaussian: a lower bound if scores are Gaussian.
        fitted: ε of the fitted distance of scores: an estimate; ``least``: pulled back by 5σ.
    """

    who: str
    scores: Scores
    guaranteed: float
    bound: float
    sharpened: float
    assuming_gaussian: float
    fitted: float
    least: float

    @property
    def holds(self) -> bool:
        proven = max(self.bound, self.sharpened, self.least)
        return proven <= self.guaranteed * (1 + 1e-9)


def attack_all(
    context: RunContext,
    guarantee: StatedGuarantee | None,
    placed: canaries.Canaries,
    seen: canaries.Seen,
    delta: float,
) -> list[AttackResult]:
    """Let each attacker guess which canaries took part, and bound ε by what they found.

    Args:
        placed: the canaries of every round.
        seen: what each attacker sees of them.
        delta: at which ε is bounded.
    """
    rounds = placed.invited.shape[0]
    rate = _rate(context, guarantee)
    noise = np.array(0.0 if guarantee is None else guarantee.noise_multiplier)
    if guarantee is not None and guarantee.stream is not None:
        seen, noise = gathered(guarantee.stream, seen, float(noise))
    server, released = math.inf, math.inf
    if guarantee is not None:
        server = quick_epsilon(guarantee.round_group(1).seen_by_server(), delta)
        sampled = placed.invited[:, ~placed.scheduled].sum(axis=0)
        touched = rounds if guarantee.participation != "rotation" else int(sampled.max())
        released = quick_epsilon(guarantee.round_group(touched), delta)
    return [
        attack_result(
            "one who knows who took part",
            canaries.server_scores(placed, seen),
            server,
            delta,
        ),
        attack_result(
            "one who sees every model",
            canaries.released_scores(placed, seen, rate, noise),
            released,
            delta,
        ),
        attack_result(
            "one who sees the last model", canaries.final_scores(placed, seen), released, delta
        ),
    ]


def gathered(
    stream: Mapping[str, Any], seen: canaries.Seen, noise: float
) -> tuple[canaries.Seen, np.ndarray]:
    """Gather what a round left in all later ones, where noise is correlated between rounds.

    The released sums x̂ tell Cx̂ = Cx + z, whose noise is independent: the best that is known of
    round r is the product with the column of r, (CᵀCx̂)_r ÷ ‖C[:, r]‖².

    Returns:
        The same with the responses gathered, and the noise on each, float64[R, 1].
    """
    rounds = len(seen.responses)
    if stream["kind"] == "tree":  # its matrix has a row for every interval; rounds by themselves
        return seen, np.full((rounds, 1), noise)
    lower = toeplitz(coefficients(stream)[:rounds])
    products = lower.T @ lower
    squares = np.diag(products)[:, None]
    responses = products @ seen.responses / squares
    return replace(seen, responses=responses), noise / np.sqrt(squares)


def _rate(context: RunContext, guarantee: StatedGuarantee | None) -> float:
    """Return how likely a user is to be in a round, for one who does not know who is."""
    if guarantee is None:
        return min(1.0, context.privacy.rule.size_or_rate)
    return 1 / guarantee.min_separation if guarantee.participation == "rotation" else guarantee.rate


def attack_result(who: str, scores: Scores, guaranteed: float, delta: float) -> AttackResult:
    """Bound ε by these scores; how many guesses the attacker makes is fixed beforehand."""
    counts = [max(1, int(scores.canaries * share)) for share in (0.025, 0.1, 0.25, 0.45)]
    bound, sharpened = (
        bound_at_counts(scores, counts, delta, SIGNIFICANCE, method)
        for method in (one_run_bound, one_run_bound_fdp)
    )
    distance, error = _distance(scores)
    return AttackResult(
        who,
        scores,
        guaranteed,
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
