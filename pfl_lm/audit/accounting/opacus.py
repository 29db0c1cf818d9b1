"""ε by Opacus' accountants, each as its authors compute it."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np

from pfl_lm.opacus_modules import load


def rdp_epsilon(schedule: list[tuple[float, float, int]], delta: float) -> float:
    """Return the ε of ``opacus.accountants.RDPAccountant``; schedule of (z, rate, rounds)."""
    return _epsilon(load("rdp").RDPAccountant(), schedule, delta)


def prv_epsilon(schedule: list[tuple[float, float, int]], delta: float) -> float:
    """Return the upper ε of ``opacus.accountants.PRVAccountant``, its error of 0.01 included.

    Raises:
        ValueError: Opacus cannot discretise (tiny noise, tiny δ, a rate of 1).
    """
    return _epsilon(load("prv").PRVAccountant(), schedule, delta)


def gdp_epsilon(noise_multiplier: float, rate: float, rounds: int, delta: float) -> float:
    """Return the ε of Opacus' Gaussian-DP formula. NOT a bound: a central limit, often below.

    Raises:
        ValueError: the formula over- or underflows.
    """
    with np.errstate(all="ignore"):
        epsilon = load("analysis.gdp").compute_eps_poisson(
            steps=rounds, noise_multiplier=noise_multiplier, sample_rate=rate, delta=delta
        )
    return float(epsilon)


def _epsilon(accountant: Any, schedule: list[tuple[float, float, int]], delta: float) -> float:
    accountant.history = list(schedule)
    try:
        # Opacus warns where its best order is its last; its answer is an upper bound all the same.
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            epsilon = float(accountant.get_epsilon(delta=delta))
    except (RuntimeError, OverflowError, MemoryError) as error:
        raise ValueError(f"Opacus gave up: {error}") from error
    if not np.isfinite(epsilon):
        raise ValueError("Opacus returned no finite ε")
    return epsilon
