"""What it adds to δ that a server's Gaussian noise is drawn on a lattice.

``noise.add_central_gaussian`` releases s + K, where K is a discrete Gaussian N_Z(0, σ²) of
σ ≥ 2^30 lattice steps and s a lattice point. The exact curves of ``gaussian`` and ``poisson`` are
those of s + R, where R is a continuous Gaussian rounded to the lattice: post-processing of the
Gaussian mechanism. Rényi bounds of unsampled rounds hold for K itself, and so do those of sampled
rounds at integer orders, which are sums of the former's moments (Canonne, Kamath & Steinke 2020,
arXiv:2004.00010v4, Proposition 5); they need no term.

Both are close, and the proof has three steps. X = ln P(R = k)/P(K = k) for a number k.

1. One number. With u uniform on [−½, ½], P(R = k)/P(K = k) = c E[exp(−u²/2σ²) cosh(ku/σ²)] with
   1 ≤ c ≤ 1 + 3e^(−2π²σ²). As 1 ≤ cosh x ≤ exp(x²/2), X lies in [−1/8σ², k²/8σ⁴ + 2^-1000]. By
   e^(−x) ≥ 1 − x and cosh x ≥ 1 + x²/2 the ratio is at least 1 + x for
   x = (k²/σ² − 1)/24σ² − k²/320σ⁶. With ln(1 + x) ≥ x − x² (x ≥ −½), E[k²] ≤ σ² and E[k⁴] ≤ 3σ⁴,
   KL(K ‖ R) is at most (1/144 + 1/320 + 2^-60)/σ⁴ < 2^-126.
2. All n numbers of a deployment. Let Y be X where |k| ≤ Tσ and 0 elsewhere: it has a range of
   w = (T² + 2)/8σ², and given the past its mean under K is within 2^-125 of 0 (by step 1 and,
   beyond Tσ, by Cauchy-Schwarz). By Azuma and Hoeffding |ΣY| ≤ η = n·2^-125 + w√(nx/2), but with
   probability 2e^(−x) under K and at most e^(nw) as much under R; some |k| exceeds Tσ with
   probability at most 2n·e^(−T²/2) under K, and hardly more under R. With γ the sum of these,
   P_K(S) ≤ e^η P_R(S) + γ and P_R(S) ≤ e^η P_K(S) + γ for every event S.
3. Two neighbours. Going from K to R, to the neighbour's R and to its K,

    δ_K(ε + 2η) ≤ e^η δ_R(ε) + (1 + e^(ε + η)) γ.

T = 37 and x = 660 give η < 3·10^-9 and γ < 10^-284 for ten thousand rounds of 2^26 coordinates, so
the term with e^ε is small for every ε below 600.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from pfl_lm.dp.accounting import renyi

MOST_COORDINATES = 1 << 26
"""Of one payload: as many are counted in every round, whatever travels."""

_ORDERS = 1 + np.geomspace(1e-4, 1e6, 4000)
_ROOM = 1.0  # the charge is computed at an ε so much larger
_SIGMA = 2.0**30  # lattice steps in the noise's deviation, at least (``noise.lattice_step``)
_TAIL, _CHANCE = 37.0, 660.0  # T and x
_MOST_SPREAD = 2.0**-10  # of nw: the proof has no more room than that


def closeness(rounds: int) -> tuple[float, float]:
    """Return η and γ of the proof over so many rounds; ∞ beyond what it covers."""
    numbers = rounds * float(MOST_COORDINATES)
    width = (_TAIL**2 + 2) / (8 * _SIGMA**2)
    if numbers * width > _MOST_SPREAD:
        return math.inf, math.inf
    eta = numbers * 2.0**-125 + width * math.sqrt(numbers * _CHANCE / 2)
    gamma = 2 * math.exp(_MOST_SPREAD - _CHANCE) + 2 * numbers * math.exp(1 - _TAIL**2 / 2)
    return eta, gamma


def epsilon(curve: Callable[[float], float], first: float, rounds: int, delta: float) -> float:
    """Return the ε at δ of Gaussian noise on the lattice; ∞ where δ is too small for the proof.

    Args:
        curve: δ → ε of the same noise without a lattice.
        first: at least the curve's ε at ``delta``.
        rounds: released by the server's noise.
    """
    if not rounds:
        return curve(delta)
    (eta, gamma), largest = closeness(rounds), first + _ROOM
    try:
        left = (delta - (1 + math.exp(largest + eta)) * gamma) * math.exp(-eta)
    except OverflowError:
        return math.inf
    if not left > 0:
        return math.inf
    found = curve(left)
    return found + 2 * eta if found <= largest else math.inf


def check_coordinates(dim: int) -> None:
    """Raise ValueError for a payload of more coordinates than are counted."""
    if dim > MOST_COORDINATES:
        raise ValueError(
            f"a payload of {dim:,} coordinates: what the lattice of the server's noise adds to "
            f"delta is counted for {MOST_COORDINATES:,} at most; send fewer rows or layers"
        )


def renyi_epsilon(noise_multiplier: float, delta: float) -> float:
    """Return the ε of unsampled rounds by divergences of all orders, which need no charge."""
    if not noise_multiplier > 0:
        return math.inf
    return renyi.epsilon(_ORDERS / (2 * noise_multiplier**2), delta, _ORDERS)
