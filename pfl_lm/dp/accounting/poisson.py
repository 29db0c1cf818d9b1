"""The Poisson-sampled Gaussian mechanism by the accountants of Opacus: tight, or Rényi.

A schedule lists (noise_multiplier, rate, rounds). Opacus' Gaussian-DP accountant is no upper
bound and is not used.

Source: Gopi, Lee & Wutschitz 2021, "Numerical composition of differential privacy",
arXiv:2106.02848v3; Mironov, Talwar & Zhang 2019, "Rényi differential privacy of the sampled
Gaussian mechanism", arXiv:1908.10530v1.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from functools import cache, lru_cache
from typing import Any, TypeAlias

import numpy as np
from scipy.special import ndtr

from pfl_lm import opacus_modules
from pfl_lm.dp.accounting import renyi
from pfl_lm.dp.accounting.renyi import Curve

Schedule: TypeAlias = tuple[tuple[float, float, int], ...]

_ERROR = 0.004  # of ε, relative above 1 and absolute below; the reported ε contains it
_DELTA_ERROR = 1e-3  # of δ, relative
_LARGEST_GRID = 2**22  # points; a finer discretisation costs minutes and gigabytes
_SMALLEST_DELTA = 1e-11  # below it the rounding of the Fourier transform would matter
_MOST_PHASES = 16
_LOW_ORDERS = (1.02, 1.05, 1.1, 1.15, 1.2, 1.3, 1.4, 1.5, 1.6, 1.8, 2.0, 2.5, 3.5)


@lru_cache(maxsize=4096)
def _curve(noise_multiplier: float, rate: float) -> tuple[float, ...]:
    orders = [int(order) for order in renyi.ORDERS if order <= renyi.LARGEST_AMPLIFIED_ORDER]
    with np.errstate(all="ignore"):
        head = opacus_modules.load("analysis.rdp").compute_rdp(
            q=rate, noise_multiplier=noise_multiplier, steps=1, orders=orders
        )
    plain = renyi.ORDERS / (2 * noise_multiplier**2)
    plain[: len(orders)] = np.fmin(np.maximum(head, 0.0), plain[: len(orders)])
    return tuple(plain)


def curve(noise_multiplier: float, rate: float) -> Curve:
    """Return the Rényi curve of one round, 0 < rate < 1 and noise_multiplier > 0.

    Guarantees:
        Exact at integer orders and valid for adding as for removing a user (Mironov et al. 2019,
        Theorems 4 and 5); never above the round without sampling.
    """
    return np.array(_curve(noise_multiplier, rate))


@lru_cache(maxsize=4096)
def _low_curve(noise_multiplier: float, rate: float) -> tuple[float, ...]:
    compute = opacus_modules.load("analysis.rdp").compute_rdp
    deltas = []
    for order in _LOW_ORDERS:
        try:
            with np.errstate(all="ignore"):
                once = compute(q=rate, noise_multiplier=noise_multiplier, steps=1, orders=order)
        except (ValueError, OverflowError):
            once = math.inf  # the series of a fractional order did not converge
        deltas.append(once if once >= 0 else math.inf)
    return tuple(deltas)


def renyi_epsilon(schedule: Schedule, delta: float) -> float:
    """Return an upper bound on ε from Rényi divergences, of orders below 2 as well.

    Low orders matter where noise is so small that ε is in the tens and above.
    """
    nothing, no_low = np.zeros(len(renyi.ORDERS)), np.zeros(len(_LOW_ORDERS))
    total = sum((n * curve(z, q) for z, q, n in schedule), nothing)
    low = sum((n * np.array(_low_curve(z, q)) for z, q, n in schedule), no_low)
    return min(renyi.epsilon(total, delta), renyi.epsilon(low, delta, np.array(_LOW_ORDERS)))


def epsilon(schedule: Schedule, delta: float) -> float | None:
    """Return a tight upper bound on ε by composing privacy loss distributions, or None.

    None says that no trustworthy figure is to be had in bounded time and memory (tiny noise
    multiplier, δ below 1e-11, too many phases or rounds); the caller falls back on ``curve``.

    Guarantees:
        The upper end of the accountant's error interval, at both directions of the neighbouring
        relation: the loss distribution of Opacus is that of removing a user, and which direction
        is worse after composition is proven for neither.
    """
    if delta < _SMALLEST_DELTA or len(schedule) > _MOST_PHASES:
        return None
    rounds = sum(phase[2] for phase in schedule)
    whole = renyi_epsilon(schedule, delta * _DELTA_ERROR / 4)
    single = max(
        renyi_epsilon(((z, q, 1),), delta * _DELTA_ERROR / (8 * rounds)) for z, q, _ in schedule
    )
    error = _ERROR * max(1.0, min(whole, 100.0))
    half = max(whole, single, error) + 3  # losses beyond ±half are rarer than the error in δ
    mesh = error / math.sqrt(rounds * math.log(12 / (delta * _DELTA_ERROR)) / 2)
    if not 2 * half / mesh <= _LARGEST_GRID:
        return None
    try:
        with np.errstate(all="ignore"), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            both = [_compose(schedule, delta, error, half, mesh, way) for way in (True, False)]
    except (RuntimeError, ValueError, OverflowError):
        return None  # Opacus says that it could not discretise
    return max(0.0, *both) if all(math.isfinite(value) for value in both) else None


def _compose(
    schedule: Schedule, delta: float, error: float, half: float, mesh: float, removing: bool
) -> float:
    """Compose the phases' loss distributions of one direction; return the upper ε.

    Source: Gopi et al. 2021, Theorem 5.5 for the mesh and Remark 5.6 for the domain.
    """
    prv = opacus_modules.load("analysis.prv")
    domain = prv.Domain.create_aligned(-half, half, mesh)
    losses = [_loss(removing)(rate, z) for z, rate, _ in schedule]
    parts = [
        prv.discretize(prv.TruncatedPrivacyRandomVariable(loss, domain.t_min, domain.t_max), domain)
        for loss in losses
    ]
    composed = prv.compose_heterogeneous(parts, [rounds for *_, rounds in schedule])
    return float(composed.compute_epsilon(delta, delta * _DELTA_ERROR, error)[2])


@cache
def _loss(removing: bool) -> Any:
    """Return the class of the privacy loss ln P/Q under P, P with the user or (adding) without."""
    removing_loss = opacus_modules.load("analysis.prv").PoissonSubsampledGaussianPRV
    if removing:
        return removing_loss

    class Adding(removing_loss):  # type: ignore[misc, valid-type]
        """ln Q/P(x) for x ~ Q = N(0, z²) and P = (1−q) Q + q N(1, z²)."""

        def cdf(self, t: Any) -> Any:
            """Return Pr[loss ≤ t] = Pr[x ≥ the x at which ln P/Q is −t]."""
            q, z = self.sample_rate, self.noise_multiplier
            lift = np.expm1(-np.asarray(t, dtype=np.float64)) / q  # (e^−t − 1)/q = e^{…} − 1
            reached = lift > -1  # a loss is never above −ln(1 − q)
            x = z**2 * np.log1p(np.where(reached, lift, 0.0)) + 0.5
            return np.where(reached, ndtr(-x / z), 1.0)

        def pdf(self, t: Any) -> Any:
            raise NotImplementedError("discretisation needs the cdf only")

    return Adding


def phases(schedule: Sequence[tuple[float, float, int]]) -> Schedule:
    """Merge equal phases and sort, so that one history has one form."""
    merged: dict[tuple[float, float], int] = {}
    for z, rate, rounds in schedule:
        merged[z, rate] = merged.get((z, rate), 0) + rounds
    return tuple(sorted((z, rate, rounds) for (z, rate), rounds in merged.items()))
