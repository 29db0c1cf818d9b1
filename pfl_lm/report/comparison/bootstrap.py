"""Differences between two models on the same users, with intervals over users.

Each figure is a ratio of two sums over users. Users are drawn again with replacement, the same ones
for both models (a paired bootstrap), and the interval holds the middle 95% of the differences.

Source: Efron and Tibshirani 1993, "An introduction to the bootstrap", section 13.3 (percentiles);
Koehn 2004, "Statistical significance tests for machine translation evaluation", section 4 (paired).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from pfl_lm.evaluation.labels import AS_TYPED
from pfl_lm.streams import stream

DRAWS = 2000
TAIL = 0.025
Sums = Mapping[str, np.ndarray]  # float64[users] by the names of ``measures.SUMS``


@dataclass(frozen=True)
class Figure:
    """A figure that models are compared by.

    Attributes:
        over, under: the sums whose ratio it is.
        relative: the ratio is a mean of logarithms; the difference is one of exponentials, as a
            share of the first model's: 0.1 is 10% more.
        higher_is_better: or lower is.
    """

    name: str
    over: str
    under: str
    relative: bool
    higher_is_better: bool


FIGURES = (
    Figure("perplexity", "nats", "predictions", True, False),
    Figure("top-3 recall", "top3", "words", False, True),
    Figure("keystrokes saved", "saved", "keystrokes", False, True),
    Figure(AS_TYPED["marks_top3"], "marks_top3", "marks", False, True),
    Figure(AS_TYPED["emoji_top3"], "emoji_top3", "emoji", False, True),
    Figure(AS_TYPED["keys_saved"], "keys_saved", "keys", False, True),
)


@dataclass(frozen=True)
class Difference:
    """The second model's figure less the first's.

    Attributes:
        first, second: the figure of each.
        value: their difference; of a relative figure, as a share of the first. NaN where one of
            the figures is not finite, and so are low and high.
        low, high: between which it lies for 95% of samples of users like these.
    """

    figure: Figure
    first: float
    second: float
    value: float
    low: float
    high: float

    @property
    def is_clear(self) -> bool:
        """Whether the interval leaves out 0."""
        return self.low > 0 or self.high < 0

    @property
    def is_better(self) -> bool:
        """Whether the second model is the better one, clear or not."""
        return (self.value > 0) is self.figure.higher_is_better


def difference(figure: Figure, first: Sums, second: Sums) -> Difference:
    """Compare two models on the same users.

    Args:
        first, second: sums of each user, in the same order.
    """
    users = len(first[figure.under])
    everybody = np.ones((1, users))
    drawn = stream(0, "bootstrap", users).multinomial(users, np.full(users, 1 / users), size=DRAWS)
    with np.errstate(over="ignore", invalid="ignore"):  # of a model that diverged
        one, two = (_figure(figure, sums, everybody) for sums in (first, second))
        if not (math.isfinite(one) and math.isfinite(two)):
            return Difference(figure, one, two, math.nan, math.nan, math.nan)
        spread = _differences(figure, first, second, drawn.astype(np.float64))
        low, high = np.quantile(spread, (TAIL, 1 - TAIL))
        value = float(_differences(figure, first, second, everybody)[0])
    return Difference(figure, one, two, value, float(low), float(high))


def _figure(figure: Figure, sums: Sums, everybody: np.ndarray) -> float:
    ratio = _ratios(figure, sums, everybody)[0]
    return float(np.exp(ratio) if figure.relative else ratio)


def _differences(figure: Figure, first: Sums, second: Sums, weights: np.ndarray) -> np.ndarray:
    one, two = (_ratios(figure, sums, weights) for sums in (first, second))
    return np.expm1(two - one) if figure.relative else two - one


def _ratios(figure: Figure, sums: Sums, weights: np.ndarray) -> np.ndarray:
    """Return a figure for each way of counting users, weights float64[draws, users]."""
    under = weights @ sums[figure.under]
    ratios: np.ndarray = (weights @ sums[figure.over]) / np.maximum(under, 1e-300)
    return ratios
