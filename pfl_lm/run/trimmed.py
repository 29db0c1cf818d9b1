"""The trimmed mean over groups, coordinate by coordinate, and the noise that it has.

Source: Yin, Chen, Kannan, Bartlett 2018, "Byzantine-robust distributed learning: towards optimal
statistical rates" (arXiv:1803.01498).

Legend: g groups, d coordinates.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

_DRAWS = 100_000  # a ratio is within 0.3%


def trimmed_mean(means: NDArray[np.float32], trimmed: int) -> NDArray[np.float32]:
    """Return the mean over groups less the ``trimmed`` largest and smallest: float32[g, d] → [d].

    Raises:
        ValueError: nothing would be left.
    """
    if not 0 <= 2 * trimmed < len(means):
        raise ValueError(f"{trimmed} of {len(means)} groups cannot be left out at either end")
    ordered = np.sort(means.astype(np.float64), axis=0)
    return ordered[trimmed : len(means) - trimmed].mean(axis=0).astype(np.float32)


@lru_cache(maxsize=64)
def noise_ratio(groups: int, trimmed: int) -> float:
    """Return by how much the noise of the trimmed mean deviates more than that of the plain one.

    For normal noise of equal size in every group, estimated from draws that never change:

    ======  =======  =====
    groups  trimmed  ratio
    ======  =======  =====
    4       1        1.09
    8       1        1.03
    8       2        1.09
    ======  =======  =====
    """
    if not trimmed:
        return 1.0
    draws = np.sort(np.random.default_rng(groups).standard_normal((_DRAWS, groups)), axis=1)
    means = draws[:, trimmed : groups - trimmed].mean(axis=1)
    return float(means.std() * math.sqrt(groups))
