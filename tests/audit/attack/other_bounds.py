"""Bounds and estimates of other audits, which the oracle table holds and no verdict rests on.

A line between "took part" and "did not" is drawn on half of the canaries and tested on the other
(``split``), or the best of all lines is taken, with a correction or without.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import special, stats

from pfl_lm.audit.attack.estimators import (
    clopper_pearson_upper,
    one_run_bound,
    one_run_p_value,
)
from pfl_lm.audit.attack.scores import CountBound, Scores, corners, upper_rates


def clopper_pearson_bound(
    missed: int, included: int, false_alarms: int, excluded: int, delta: float, significance: float
) -> float:
    """Return the ε that error rates refute, each with a Clopper–Pearson limit at significance/2.

    Args:
        missed: included canaries that the attacker called excluded, of ``included``.
        false_alarms: excluded canaries that the attacker called included, of ``excluded``.

    Guarantees:
        Holds where each canary is an independent repetition and the attacker's threshold was
        fixed beforehand. Canaries of one run are not quite independent; ``one_run_bound`` is.

    Source: Nasr et al. 2021, arXiv 2101.04535v1, section 4.
    """
    hit = 1 - float(clopper_pearson_upper(missed, included, significance / 2))
    alarm = float(clopper_pearson_upper(false_alarms, excluded, significance / 2))
    return max(0.0, float(np.log((hit - delta) / alarm))) if hit > delta else 0.0


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
    hull = corners(scores)
    right = len(scores.included) - hull.missed
    wrong = len(scores.excluded) - hull.rejected
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
            best, threshold = epsilon, float(hull.thresholds[i])
    return best, threshold


def clopper_pearson_over_thresholds(scores: Scores, delta: float, significance: float) -> float:
    """Return the Clopper–Pearson bound at the best corner, Bonferroni-corrected."""
    miss, alarm = upper_rates(scores, significance)
    with np.errstate(divide="ignore", invalid="ignore"):
        values = np.log((1 - miss - delta) / alarm)
    return float(max(0.0, np.max(values[np.isfinite(values)], initial=0.0)))


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
    hull = corners(scores)
    hits = (len(scores.included) - hull.missed)[::-1] / len(scores.included)
    alarms = (len(scores.excluded) - hull.rejected)[::-1] / len(scores.excluded)
    least = least_false_alarms / len(scores.excluded)
    if least >= 1:
        return 0.0
    # The hull may be vertical at a false-alarm rate; its upper end is what the rate allows.
    upper = {float(x): float(y) for x, y in zip(alarms, hits, strict=True)}
    at_least = float(np.interp(least, list(upper), list(upper.values())))
    kept = np.append(hits[alarms >= least], at_least) - delta
    rates = np.append(alarms[alarms >= least], least)
    return float(np.max(np.log(np.maximum(kept, 1e-300) / rates), initial=0.0))


def closed_form_null_bound(
    cosines: Sequence[float] | np.ndarray, dim: int, delta: float, significance: float
) -> float:
    """Bound ε from below by canaries' cosines against the known null distribution N(0, 1/dim).

    False positives are known exactly, false negatives get a Jeffreys interval, the best
    threshold is taken WITHOUT a correction for having looked at all of them: read it as an
    optimistic bound.

    Source: Andrew et al. 2023, arXiv 2302.03098v5, section 4; Jagielski et al. 2020.
    """
    thresholds = np.sort(np.asarray(cosines, dtype=np.float64))
    log_false_positive = stats.norm.logcdf(-thresholds, scale=dim**-0.5)
    # Just below the i-th smallest cosine, exactly i canaries are missed.
    missed = jeffreys_upper(np.arange(len(thresholds)), len(thresholds), significance)
    return best_epsilon(log_false_positive, missed, delta)


def jeffreys_upper(successes: np.ndarray, trials: int, significance: float) -> np.ndarray:
    """Return the Jeffreys (Bayesian credible) upper limit of a binomial proportion, one-sided."""
    return stats.beta.ppf(1 - significance, successes + 0.5, trials - successes + 0.5)


def best_epsilon(log_false_positive: np.ndarray, false_negative: np.ndarray, delta: float) -> float:
    """Return the largest ε that error rates contradict, over thresholds and both directions.

    (ε, δ)-DP demands 1 − δ ≤ FNR + e^ε FPR and 1 − δ ≤ FPR + e^ε FNR (Kairouz et al. 2015).
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        forward = np.log(1 - delta - false_negative) - log_false_positive
        backward = np.log(1 - delta - np.exp(log_false_positive)) - np.log(false_negative)
    values = np.concatenate([forward, backward])
    return float(max(0.0, np.max(values[np.isfinite(values)], initial=0.0)))
