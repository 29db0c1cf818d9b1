"""From noisy sums to what was said: thresholds that bound how often noise alone is believed.

A threshold is post-processing of a released sum. It costs no privacy and decides about quality
alone.
"""

from __future__ import annotations

import numpy as np
from scipy.special import ndtri

from pfl_lm.dp.sampler.arrays import Doubles
from pfl_lm.validate import positive

_HEAD = 500.0  # ranks below which a public list's order says little about an unlisted crowd


def thresholds(deviation: float, weights: Doubles, false_positives: float) -> Doubles:
    """Return a threshold for each cell, float64[K].

    Args:
        deviation: of the noise on a cell.
        weights: float64[K], above 0: how the allowance is divided; a likelier cell is given more.
        false_positives: the expected number of cells that nobody filled and that are believed.

    Guarantees:
        Where the noise is normal, Σ over empty cells of P(noise > threshold) ≤ false_positives,
        whichever cells are empty. Skellam noise of deviation σ grid steps has a heavier tail, at
        z deviations by a factor of about exp(z⁴/24σ²): below 1.001 from 200 steps on, which every
        query of a thousand cells has.

    Raises:
        ValueError: a deviation or an allowance that is not positive.
    """
    positive(deviation=deviation, false_positives=false_positives)
    chances = false_positives * weights / weights.sum()
    limits: Doubles = deviation * -ndtri(np.minimum(chances, 0.5))
    return limits


def by_rank(cells: int) -> Doubles:
    """Return weights 1/√(rank + 500) for cells in the order of a public list: float64[K]."""
    weights: Doubles = 1.0 / np.sqrt(np.arange(cells) + _HEAD)
    return weights
