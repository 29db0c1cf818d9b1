"""Which word rows travel in a round, and how likely each was to: a public draw."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from pfl_lm.streams import stream

IDs = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


def draw_rows(
    count: int,
    weights: Floats,
    always: Sequence[int],
    seed: int,
    round: int,
) -> tuple[IDs, Floats]:
    """Return the round's rows, sorted int64[count], with their inclusion probabilities.

    A word of weight w arrives at an Exp(w) time; the earliest words are taken (Gumbel top-k by
    another name). Given the time τ at which the first word NOT taken arrives, each word was
    taken with probability 1 − exp(−w τ): dividing by it gives unbiased sums. Equal weights are a
    uniform draw, whose probability is known.

    Args:
        count: rows in all, at most V − 1, more than there are in ``always``.
        weights: float64[V], positive.
        always: words that travel every round.

    Source: Cohen and Kaplan 2007, "Summarizing data using bottom-k sketches", section 4 (rank
    conditioning).
    """
    fixed = np.unique(np.asarray(always, np.int64))
    others = np.setdiff1d(np.arange(len(weights)), fixed)
    count -= len(fixed)
    weight = weights[others]
    arrival = stream(seed, "rows", round).exponential(size=len(others)) / weight
    order = np.argpartition(arrival, count)
    taken, first_missed = order[:count], arrival[order[count]]
    probability = -np.expm1(-weight[taken] * first_missed)
    if weight.min() == weight.max():
        probability = np.full(count, count / len(others))
    rows = np.concatenate([fixed, others[taken]])
    inclusion = np.concatenate([np.ones(len(fixed)), probability])
    sort = np.argsort(rows)
    return rows[sort], inclusion[sort]
