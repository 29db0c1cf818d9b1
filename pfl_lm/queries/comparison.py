"""Is one model better than another for people? What a phone reports, and what its sum proves.

Each phone scores both models on its own text. For each measure it forms the difference of the two,
candidate less current, so that more is better; it clips it to a public range and reports it with
its square. One more cell counts the phones that have text:

    cell                     entry of a device, x = clip(difference ÷ range) in [−1, 1]
    phones with text         w₀
    measure i, difference    wᵢ · xᵢ
    measure i, square        vᵢ · xᵢ²

The weights' squares sum to 1, so no answer is longer than 1 and nothing is ever clipped again.
From the noisy sums follow mean differences over users, with intervals that count the noise and the
spread of users both. Where figures by public group are asked for, these cells stand once for all
devices and once for each group (see ``groups``).

Legend: n users asked, σ deviation of the noise on a cell, M measures.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from scipy.special import ndtri

from pfl_lm.dp.sampler.arrays import Doubles
from pfl_lm.queries.groups import blocks, in_group, noise_factor, split
from pfl_lm.queries.query import NOTHING, Answer, Query

# measure → its public range: what one user's difference is clipped to
RANGES: dict[str, float] = {
    "log-loss": 0.5,  # nats a prediction
    "top-1": 0.25,  # share of words
    "top-3": 0.25,
    "keystrokes saved": 0.25,  # share of keystrokes
}
PRIMARY = "log-loss"
_COUNT, _PRIMARY, _PRIMARY_SQUARE = (
    0.10,
    0.45,
    0.15,
)  # of the squared norm; the others share the rest
_SAFETY = 2.0  # deviations by which the spread of users is estimated too wide


@dataclass(frozen=True)
class Estimate:
    """A mean difference over users, in the measure's own unit; more is better.

    Attributes:
        value: the estimate.
        error: its standard error, which counts the noise and the spread of users; erring upward.
        spread: estimated standard deviation of users' differences, erring upward.
    """

    value: float
    error: float
    spread: float

    def bound(self, chance: float) -> float:
        """Return the one-sided bound below which the mean lies with this chance."""
        return self.value + float(ndtri(chance)) * self.error

    def interval(self, confidence: float) -> tuple[float, float]:
        """Return the two-sided interval."""
        return self.bound(0.5 - confidence / 2), self.bound(0.5 + confidence / 2)


def weights() -> tuple[float, dict[str, tuple[float, float]]]:
    """Return w₀ and, by measure, (wᵢ, vᵢ): their squares sum to 1."""
    rest = (1 - _COUNT - _PRIMARY - _PRIMARY_SQUARE) / (len(RANGES) - 1)
    pairs = {
        name: (_PRIMARY, _PRIMARY_SQUARE) if name == PRIMARY else (0.75 * rest, 0.25 * rest)
        for name in RANGES
    }
    roots = {name: (math.sqrt(w), math.sqrt(v)) for name, (w, v) in pairs.items()}
    return math.sqrt(_COUNT), roots


CELLS = 1 + 2 * len(RANGES)


def comparison_query(least_dim: int, groups: Sequence[str] = ()) -> Query:
    """Return the query of a comparison: 1 + 2M cells, and as many for each group; norm 1."""
    labels = ["phones with text"]
    for name in RANGES:
        labels += [f"{name}, difference", f"{name}, square"]
    of_groups = [f"{group}: {label}" for group in groups for label in labels]
    return Query(
        "candidate less current",
        labels + of_groups,
        2 * CELLS if groups else CELLS,
        least_dim=least_dim,
        groups=blocks(CELLS, len(groups)),
    )


def answer(differences: Mapping[str, float] | None, group: int | None = None) -> Answer:
    """Return a device's answer.

    Args:
        differences: by measure, candidate less current, more is better; None: it has no text. One
            that is no number counts as 0.
        group: place of the device's own group; None where the question has none.

    Guarantees:
        Its norm is at most 1, up to float32's rounding: |x| ≤ 1, so x² and x⁴ are too, and the
        weights' squares sum to 1.
    """
    if differences is None:
        return NOTHING
    count, by_measure = weights()
    values = [count]
    for name, limit in RANGES.items():
        ratio = differences[name] / limit
        x = min(1.0, max(-1.0, ratio)) if math.isfinite(ratio) else 0.0
        w, v = by_measure[name]
        values += [w * x, v * x * x]
    given = Answer(np.arange(len(values)), np.array(values, dtype=np.float32))
    return given if group is None else in_group(given, CELLS, group)


@dataclass(frozen=True)
class Measured:
    """What a comparison found.

    Attributes:
        whole: by measure, the mean difference over all users; None: too few phones have text.
        groups: the same by group.
    """

    whole: dict[str, Estimate] | None
    groups: dict[str, dict[str, Estimate] | None] = field(default_factory=dict)

    @property
    def confidence(self) -> float:
        """That of a group's interval, so that 95% holds for all groups of a measure at once."""
        return 1 - 0.05 / max(1, len(self.groups))


def measure(sums: Doubles, deviation: float, groups: Sequence[str] = ()) -> Measured:
    """Return the mean differences over all users and over each group.

    Args:
        sums: float64[(1 + 2M)(1 + G)], the noisy answer.
        deviation: of the noise on a cell.
    """
    whole, of_groups = split(sums, len(groups))
    deviation *= noise_factor(len(groups))
    rows = zip(groups, of_groups, strict=True)
    return Measured(
        estimates(whole, deviation), {name: estimates(row, deviation) for name, row in rows}
    )


def estimates(sums: Doubles, deviation: float) -> dict[str, Estimate] | None:
    """Return the mean difference of each measure; None where too few phones have text to tell.

    Args:
        sums: float64[1 + 2M], the noisy answer.
        deviation: σ, known from the policy.

    The mean of users who have text is a ratio of two noisy sums; its error follows by the delta
    method. The spread of users comes from the noisy sum of squares, taken two deviations of its
    noise too high, so that intervals are rather too wide.
    """
    count, by_measure = weights()
    users = sums[0] / count
    if users < least_phones(deviation):
        return None
    found = {}
    for place, (name, limit) in enumerate(RANGES.items()):
        w, v = by_measure[name]
        mean = sums[1 + 2 * place] / w / users
        squares = (sums[2 + 2 * place] + _SAFETY * deviation) / v / users
        spread = math.sqrt(min(1.0, max(0.0, squares - mean * mean)))
        noise = math.hypot(deviation / w, mean * deviation / count) / users
        error = math.hypot(noise, spread / math.sqrt(users))
        found[name] = Estimate(float(limit * mean), float(limit * error), limit * spread)
    return found


def least_phones(deviation: float) -> int:
    """Return how many phones with text it takes to form a mean: their count is known to a tenth."""
    return math.ceil(10 * deviation / weights()[0])


def error_of(spread: float, users: float, deviation: float, name: str = PRIMARY) -> float:
    """Return the standard error to expect of a measure's mean difference.

    Args:
        spread: standard deviation of users' differences, in the measure's unit.
        users: who have text.
    """
    noise = RANGES[name] * deviation / weights()[1][name][0] / users
    return math.hypot(noise, spread / math.sqrt(users))


def users_needed(spread: float, effect: float, deviation: float, deviations: float) -> int:
    """Return how many users make ``effect`` stand out by so many standard errors.

    Solves effect = deviations · error_of(spread, users, deviation) for users. It takes at least as
    many as form a mean (:func:`least_phones`), by three deviations of their noisy count more.

    Args:
        effect: mean difference of the primary measure, above 0.
    """
    noise = RANGES[PRIMARY] * deviation / weights()[1][PRIMARY][0]
    k = (deviations / effect) ** 2
    users = (k * spread**2 + math.sqrt((k * spread**2) ** 2 + 4 * k * noise**2)) / 2
    count = deviation / weights()[0]  # deviation of the noisy count of users
    return math.ceil(max(users, least_phones(deviation) + 3 * count))
