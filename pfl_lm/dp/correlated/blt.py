"""Buffered linear Toeplitz (BLT) strategies: correlated noise from a few numbers a coordinate.

c₀ = 1 and c_t = Σ_j ω_j·θ_j^(t−1): a sum of geometric sequences, so that both Cx and C⁻¹z need one
buffer of the size of the model for every j.

Source: Dvijotham, McMahan, Pillutla, Steinke, Thakurta 2024, "Efficient and Near-Optimal Noise
Generation for Streaming Differential Privacy" (arXiv:2404.16706); McMahan, Xu, Zhang 2024, "A
Hassle-free Algorithm for Strong Differential Privacy in Federated Learning" (arXiv:2408.08868).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np

from pfl_lm.dp.correlated import toeplitz
from pfl_lm.dp.sampler.arrays import Doubles

Error = Literal["max", "mean"]

_SPREADS = (0.35, 0.6, 1.0, 1.4)  # of the first guesses: powers that space the decays
_SLOWEST = 30.0  # largest logit of a decay: 1 − θ ≥ 1e-13, far from what float64 resolves


@dataclass(frozen=True)
class Blt:
    """Parameters of a strategy: ``decays`` θ in [0, 1), ``scales`` ω ≥ 0, one of each a buffer.

    Raises:
        ValueError: unequal lengths, or a number out of range.
    """

    decays: tuple[float, ...]
    scales: tuple[float, ...]

    def __post_init__(self) -> None:
        if len(self.decays) != len(self.scales) or not self.decays:
            raise ValueError("a BLT needs as many decays as scales, at least one of each")
        if not all(0 <= decay < 1 for decay in self.decays):
            raise ValueError(f"decays must lie in [0, 1), got {self.decays}")
        if not all(0 <= scale < math.inf for scale in self.scales):
            raise ValueError(f"scales must be at least 0 and finite, got {self.scales}")

    def coefficients(self, n: int) -> Doubles:
        """Return the first column of C: float64[n]."""
        return _column(np.array(self.decays), np.array(self.scales), n)


def _column(decays: Doubles, scales: Doubles, n: int) -> Doubles:
    column = np.ones(n)
    column[1:] = scales @ decays[:, None] ** np.arange(n - 1)
    return column


def optimise(
    n: int, min_separation: int, participations: int, buffers: int, error: Error = "mean"
) -> Blt:
    """Return the BLT of least error × sensitivity²: some hundred milliseconds.

    Args:
        n: rounds.
        min_separation, participations: which rounds a user may be in.
        buffers: how many geometric sequences, 1 to 4 of use.
        error: of the worst prefix sum (``max``) or the mean of all (``mean``).

    Guarantees:
        Deterministic. The coefficients are non-negative and do not increase, so that
        :func:`toeplitz.squared_sensitivity` is exact for them.
    """
    from scipy.optimize import minimize

    loss = _Loss(n, min_separation, min(participations, 1 + (n - 1) // min_separation), error)
    best, least = None, math.inf
    for spread in _SPREADS:
        result = minimize(
            loss,
            _first_guess(n, buffers, spread),
            jac=True,
            method="L-BFGS-B",
            bounds=[(-_SLOWEST, _SLOWEST)] * (2 * buffers),
            options={"maxiter": 2000, "maxfun": 4000, "ftol": 1e-13, "gtol": 1e-9},
        )
        if result.fun < least:
            best, least = result.x, float(result.fun)
    assert best is not None
    decays, scales = _parameters(best)
    order = np.argsort(-decays)
    return Blt(tuple(decays[order].tolist()), tuple(scales[order].tolist()))


def _parameters(point: Doubles) -> tuple[Doubles, Doubles]:
    """Return decays and scales of a point of the search: their sum is c₁, which stays below 1."""
    half = len(point) // 2
    decays = 1 / (1 + np.exp(-point[:half]))
    weights = np.exp(point[half:])
    return decays, weights / (1 + weights.sum())


def _first_guess(n: int, buffers: int, spread: float) -> Doubles:
    """Return decays spaced from 1/n to 1, with the scales that fit (1 − x)^(−½) best."""
    from scipy.optimize import nnls

    places = (np.arange(buffers) + 0.5) / buffers
    decays = 1 - (1.0 / max(n, 2)) ** (places**spread)
    target = np.cumprod(np.concatenate([[1.0], 1 - 0.5 / np.arange(1, n)]))[1:]
    weight = 1 / np.sqrt(np.arange(1, n))
    scales = nnls((decays[:, None] ** np.arange(n - 1)).T * weight[:, None], target * weight)[0]
    scales = np.maximum(scales, 1e-3)
    scales *= min(1.0, 0.9 / scales.sum())
    weights = scales / (1 - scales.sum())
    return np.concatenate([np.log(decays / (1 - decays)), np.log(weights)])


class _Loss:
    """log(error × sensitivity²) with its gradient, as a function of the search's point."""

    def __init__(self, n: int, min_separation: int, times: int, error: Error) -> None:
        self._n, self._step, self._times = n, min_separation, times
        self._weights = np.ones(n) if error == "max" else (n - np.arange(n)) / n

    def __call__(self, point: Doubles) -> tuple[float, Doubles]:
        decays, scales = _parameters(point)
        column = _column(decays, scales, self._n)
        error, by_column = error_and_slope(column, self._n, self._weights)
        summed = toeplitz.repeated(column, self._n, self._step, self._times)
        squared = float((summed**2).sum())
        slope = by_column / error
        for j in range(self._times):
            shift = j * self._step
            slope[: self._n - shift] += 2 * summed[shift:] / squared
        return math.log(error) + math.log(squared), self._chain(slope, decays, scales, point)

    def _chain(self, slope: Doubles, decays: Doubles, scales: Doubles, point: Doubles) -> Doubles:
        """Return the slope by the search's point from that by the coefficients."""
        times = np.arange(self._n - 1)
        powers = decays[:, None] ** times
        by_scale = powers @ slope[1:]
        lower = np.concatenate([np.zeros((len(decays), 1)), powers[:, :-1]], axis=1)
        by_decay = scales * ((lower * times) @ slope[1:])
        by_weight = scales * (by_scale - scales @ by_scale)
        return np.concatenate([by_decay * decays * (1 - decays), by_weight])


def error_and_slope(column: Doubles, n: int, weights: Doubles) -> tuple[float, Doubles]:
    """Return Σ_s weights[s]·(A·C⁻¹)[s]² and its slope by the coefficients: float64[len(column)]."""
    from scipy.signal import fftconvolve

    rows = toeplitz.divide(np.ones(n), column, n)  # A·C⁻¹ is Toeplitz, too
    pulled = 2 * weights * rows
    again = toeplitz.divide(rows, column, n)
    # d rows/d c_j = −(rows ÷ c) shifted by j: the slope is a correlation.
    slope = -fftconvolve(pulled[::-1], again)[:n][::-1]
    return float((weights * rows**2).sum()), slope[: len(column)]
