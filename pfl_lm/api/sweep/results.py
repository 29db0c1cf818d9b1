"""What a sweep found: its combinations, best first, with intervals over seeds."""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import fmean, stdev

from pfl_lm.api.sweep.run import Sweep
from pfl_lm.numbers import significant

# Student's t, two-sided 95%, by degrees of freedom; beyond them the normal's 1.96.
_T = (12.71, 4.30, 3.18, 2.78, 2.57, 2.45, 2.36, 2.31, 2.26)


@dataclass(frozen=True)
class Combination:
    """The trials that differ in the seed alone.

    Attributes:
        label: their settings.
        trials: names of those that ended with a finite perplexity.
        perplexity: mean over them, on validation users; infinite where none ended.
        half_width: of the 95% interval of that mean over seeds; None with one.
        problem: why one of them has no figures; empty where all have.
    """

    label: str
    trials: tuple[str, ...]
    perplexity: float
    half_width: float | None
    top3: float
    keystrokes_saved: float
    problem: str


def combinations(sweep: Sweep) -> list[Combination]:
    """Return the combinations of a sweep, the lowest perplexity first."""
    return sorted(in_order(sweep), key=lambda combination: combination.perplexity)


def in_order(sweep: Sweep) -> list[Combination]:
    """Return the combinations of a sweep in the order in which they were tried."""
    labels = dict.fromkeys(trial.label for trial in sweep.trials)
    return [_combination(sweep, label) for label in labels]


def verdict(ranked: list[Combination]) -> str:
    """Say which combination is best, and whether that is more than the luck of seeds."""
    ended = [combination for combination in ranked if combination.trials]
    if not ended:
        return "No trial has ended."
    best = ended[0]
    lead = f"Best on validation users: {best.label} (perplexity {significant(best.perplexity)})."
    if len(ended) == 1:
        return lead
    if all(combination.half_width is None for combination in ended):
        return f"{lead} One seed each: --seeds 3 says how much of it is luck."
    if best.half_width is None:
        return f"{lead} Only one of its seeds ended: how much of it is luck is unknown."
    rivals = [combination for combination in ended[1:] if _overlap(best, combination)]
    if not rivals:
        return f"{lead} Its interval over seeds lies apart from all others."
    names = "; ".join(rival.label for rival in rivals[:3])
    return f"{lead} Not told apart from it by these seeds: {names}."


def _combination(sweep: Sweep, label: str) -> Combination:
    names = [trial.name for trial in sweep.trials if trial.label == label]
    ended = [name for name in names if _has_figures(sweep, name)]
    problem = next((sweep.failed[name] for name in names if name in sweep.failed), "")
    values = {
        key: [sweep.scores[name][key] for name in ended]
        for key in ("perplexity", "top3", "keystrokes_saved")
    }
    means = {key: fmean(numbers) if numbers else math.inf for key, numbers in values.items()}
    return Combination(
        label, tuple(ended), half_width=_half_width(values["perplexity"]), problem=problem, **means
    )


def _has_figures(sweep: Sweep, name: str) -> bool:
    return name in sweep.scores and math.isfinite(sweep.scores[name]["perplexity"])


def _half_width(values: list[float]) -> float | None:
    if len(values) < 2:
        return None
    freedom = len(values) - 1
    student = _T[freedom - 1] if freedom <= len(_T) else 1.96
    return student * stdev(values) / math.sqrt(len(values))


def _overlap(one: Combination, other: Combination) -> bool:
    """Whether two intervals overlap; where one is unknown, nothing says that they do not."""
    if one.half_width is None or other.half_width is None:
        return True
    return abs(one.perplexity - other.perplexity) <= one.half_width + other.half_width
