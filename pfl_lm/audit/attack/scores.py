"""From canaries' scores to guesses: where the attacker draws the line, and what looking costs.

A bound holds for ONE line drawn before the scores were seen. So the guesses are counted beforehand:
``bound_at_counts`` takes a few numbers and a Bonferroni correction for how many they are.
``gaussian_bound`` looks at every corner of the ROC curve, corrected for their number; that number
is itself a statistic of the data, as in the literature, so no verdict rests on it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from scipy import special

from pfl_lm.audit.attack.estimators import (
    clopper_pearson_upper,
    one_run_bound,
)
from pfl_lm.audit.gaussians import gaussian_epsilon


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


def gaussian_bound(scores: Scores, delta: float, significance: float) -> float:
    """Bound ε ASSUMING that the two score distributions trade off like two unit Gaussians.

    Powerful where the assumption holds (a full-batch Gaussian mechanism), worthless as proof
    where it does not. Needs fewer canaries than any assumption-free bound.

    Source: Nasr et al. 2023, arXiv 2302.07956v1, section 5.
    """
    miss, alarm = upper_rates(scores, significance)
    usable = np.maximum(miss, alarm) < 1 - delta
    # Both rates are upper limits, so only their sum being small is evidence; a negative
    # difference is no evidence for the reverse. ε rises with the distance: the largest decides.
    distances = -special.ndtri(alarm[usable]) - special.ndtri(miss[usable])
    return gaussian_epsilon(float(np.max(distances, initial=0.0)), delta)


def upper_rates(scores: Scores, significance: float) -> tuple[np.ndarray, np.ndarray]:
    """Return upper limits of the rates of misses and of false alarms, at every corner at once."""
    hull = corners(scores)
    level = significance / (2 * len(hull.missed))
    included, excluded = len(scores.included), len(scores.excluded)
    miss = clopper_pearson_upper(hull.missed, included, level)
    return miss, clopper_pearson_upper(excluded - hull.rejected, excluded, level)
