"""From canaries' scores to guesses: where the attacker draws the line, and what looking costs.

A bound holds for ONE line drawn before the scores were seen. Three honest ways to draw it: count
the guesses beforehand (``bound_at_counts``, a few numbers and a Bonferroni correction for their
number), draw it on half of the canaries and test it on the other half (``split``), or look at
every line (``over_thresholds``, corrected for the corners of the ROC curve; that number is itself
a statistic of the data, as in the literature, so the audit's verdicts do not rest on it).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from scipy import special

from pfl_lm.audit.estimators import (
    clopper_pearson_upper,
    one_run_bound,
    one_run_p_value,
)
from pfl_lm.audit.gaussians import best_epsilon, gaussian_epsilon, jeffreys_upper


class CountBound(Protocol):
    """``one_run_bound`` or ``one_run_bound_fdp``."""

    def __call__(
        self, canaries: int, guesses: int, correct: int, delta: float, significance: float
    ) -> float: ...


@dataclass(frozen=True)
class Scores:
    """Attack scores; a higher one says "this canary took part".

    Attributes:
        included: float64[m₁], of the canaries that took part.
        excluded: float64[m₀], of the canaries that did not.
    """

    included: np.ndarray
    excluded: np.ndarray

    def __post_init__(self) -> None:
        for name in ("included", "excluded"):
            values = np.asarray(getattr(self, name), dtype=np.float64)
            if values.ndim != 1 or not values.size or not np.isfinite(values).all():
                raise ValueError(f"{name} must be a list of finite scores, and not empty")
            object.__setattr__(self, name, values)

    @property
    def canaries(self) -> int:
        return len(self.included) + len(self.excluded)

    def at(self, threshold: float) -> tuple[int, int]:
        """Return (canaries called included, how many of these were)."""
        right = int(np.sum(self.included >= threshold))
        return right + int(np.sum(self.excluded >= threshold)), right


@dataclass(frozen=True)
class Corners:
    """The corners of the ROC curve's concave hull; no other threshold can do better.

    Attributes:
        thresholds: float64[n], the last one +inf.
        missed: int64[n], included canaries below the threshold.
        rejected: int64[n], excluded canaries below the threshold.
    """

    thresholds: np.ndarray
    missed: np.ndarray
    rejected: np.ndarray


def corners(scores: Scores) -> Corners:
    """Find the hull's corners by a monotone chain, O(m log m)."""
    thresholds = np.append(np.union1d(scores.included, scores.excluded), np.inf)
    missed = np.searchsorted(np.sort(scores.included), thresholds, side="left")
    rejected = np.searchsorted(np.sort(scores.excluded), thresholds, side="left")
    hull: list[int] = []
    for point in range(len(thresholds)):
        while len(hull) >= 2 and not _turns_right(missed, rejected, hull[-2], hull[-1], point):
            hull.pop()
        hull.append(point)
    return Corners(thresholds[hull], missed[hull], rejected[hull])


def _turns_right(x: np.ndarray, y: np.ndarray, first: int, second: int, third: int) -> bool:
    rise = (y[second] - y[first]) * (x[third] - x[second])
    return bool(rise > (y[third] - y[second]) * (x[second] - x[first]))


def bound_at_counts(
    scores: Scores,
    counts: Sequence[int],
    delta: float,
    significance: float = 0.05,
    bound: CountBound = one_run_bound,
) -> float:
    """Return the best bound when the attacker calls the k highest scores "included".

    Args:
        counts: the numbers k, chosen before the scores were seen; ``significance`` is divided
            by how many there are.

    Guarantees:
        A valid lower bound at confidence 1 − significance, for fair independent coins.
    """
    truth = np.concatenate([np.ones(len(scores.included)), np.zeros(len(scores.excluded))])
    order = np.argsort(-np.concatenate([scores.included, scores.excluded]), kind="stable")
    right = np.cumsum(truth[order]).astype(int)
    tried = [k for k in counts if 1 <= k <= scores.canaries]
    level = significance / max(1, len(counts))
    return max(
        (bound(scores.canaries, k, int(right[k - 1]), delta, level) for k in tried), default=0.0
    )


def over_thresholds(
    scores: Scores, delta: float, significance: float, bound: CountBound = one_run_bound
) -> float:
    """Return the one-run bound at the best corner of the ROC curve, Bonferroni-corrected."""
    level = significance / len(corners(scores).thresholds)
    return _best_corner(scores, delta, level, bound)[0]


def split(
    scores: Scores,
    delta: float,
    significance: float,
    generator: np.random.Generator,
    bound: CountBound = one_run_bound,
) -> float:
    """Draw the line on one random half of the canaries and bound ε on the other."""
    halves = [np.array_split(generator.permutation(v), [len(v) // 2]) for v in
              (scores.included, scores.excluded)]  # fmt: skip
    first, second = (Scores(halves[0][i], halves[1][i]) for i in (0, 1))
    threshold = _best_corner(first, delta, significance, bound)[1]
    guesses, right = second.at(threshold)
    return bound(second.canaries, guesses, right, delta, significance)


def _best_corner(
    scores: Scores, delta: float, significance: float, bound: CountBound
) -> tuple[float, float]:
    """Return (ε, threshold) of the best corner; corners that cannot win are not evaluated."""
    found = corners(scores)
    right = len(scores.included) - found.missed
    wrong = len(scores.excluded) - found.rejected
    precision = 1 - clopper_pearson_upper(wrong, right + wrong, significance)
    best, threshold = 0.0, float("inf")
    for i in np.argsort(-precision, kind="stable"):
        guesses, correct = int(right[i] + wrong[i]), int(right[i])
        if not guesses or correct / guesses <= special.expit(best):
            continue
        # Not even at δ = 0 is the best ε so far refuted here: spares the search for the root.
        pure = one_run_p_value(scores.canaries, guesses, correct, best, 0.0)
        if bound is one_run_bound and pure > significance:
            continue
        epsilon = bound(scores.canaries, guesses, correct, delta, significance)
        if epsilon > best:
            best, threshold = epsilon, float(found.thresholds[i])
    return best, threshold


def clopper_pearson_over_thresholds(scores: Scores, delta: float, significance: float) -> float:
    """Return the Clopper–Pearson bound at the best corner, Bonferroni-corrected."""
    miss, alarm = _upper_rates(scores, significance)
    with np.errstate(divide="ignore", invalid="ignore"):
        values = np.log((1 - miss - delta) / alarm)
    return float(max(0.0, np.max(values[np.isfinite(values)], initial=0.0)))


def gaussian_bound(scores: Scores, delta: float, significance: float) -> float:
    """Bound ε ASSUMING that the two score distributions trade off like two unit Gaussians.

    Powerful where the assumption holds (a full-batch Gaussian mechanism), worthless as proof
    where it does not. Needs fewer canaries than any assumption-free bound.

    Source: Nasr et al. 2023, arXiv 2302.07956v1, section 5.
    """
    miss, alarm = _upper_rates(scores, significance)
    usable = np.maximum(miss, alarm) < 1 - delta
    # Both rates are upper limits, so only their sum being small is evidence; a negative
    # difference is no evidence for the reverse. ε rises with the distance: the largest decides.
    distances = -special.ndtri(alarm[usable]) - special.ndtri(miss[usable])
    return gaussian_epsilon(float(np.max(distances, initial=0.0)), delta)


def _upper_rates(scores: Scores, significance: float) -> tuple[np.ndarray, np.ndarray]:
    """Return upper limits of the rates of misses and of false alarms, at every corner at once."""
    found = corners(scores)
    level = significance / (2 * len(found.missed))
    included, excluded = len(scores.included), len(scores.excluded)
    miss = clopper_pearson_upper(found.missed, included, level)
    return miss, clopper_pearson_upper(excluded - found.rejected, excluded, level)


def jeffreys_over_thresholds(scores: Scores, delta: float, significance: float) -> float:
    """Bound ε by Jeffreys limits at the best of ALL lines, uncorrected: an optimistic bound.

    Source: Jagielski, Ullman & Oprea 2020, arXiv 2006.07709, with Bayesian credible limits.
    """
    lines = np.append(np.union1d(scores.included, scores.excluded), np.inf)
    missed = np.searchsorted(np.sort(scores.included), lines)
    alarms = len(scores.excluded) - np.searchsorted(np.sort(scores.excluded), lines)
    return best_epsilon(
        np.log(jeffreys_upper(alarms, len(scores.excluded), significance)),
        jeffreys_upper(missed, len(scores.included), significance),
        delta,
    )


def raw_count_estimate(scores: Scores, delta: float, least_false_alarms: int = 50) -> float:
    """Estimate ε as log((hit rate − δ)/false-alarm rate), with no confidence attached.

    Only lines with at least ``least_false_alarms`` false alarms count, one of them between two
    corners (by chance). An ESTIMATE.
    """
    found = corners(scores)
    hits = (len(scores.included) - found.missed)[::-1] / len(scores.included)
    alarms = (len(scores.excluded) - found.rejected)[::-1] / len(scores.excluded)
    least = least_false_alarms / len(scores.excluded)
    if least >= 1:
        return 0.0
    # The hull may be vertical at a false-alarm rate; its upper end is what the rate allows.
    upper = {float(x): float(y) for x, y in zip(alarms, hits, strict=True)}
    at_least = float(np.interp(least, list(upper), list(upper.values())))
    kept = np.append(hits[alarms >= least], at_least) - delta
    rates = np.append(alarms[alarms >= least], least)
    return float(np.max(np.log(np.maximum(kept, 1e-300) / rates), initial=0.0))
