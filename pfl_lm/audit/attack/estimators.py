"""What an attacker's guesses about canaries prove about ε, or suggest.

A canary is an invented user who takes part, or not, by a fair coin. The attacker sees what was
released and guesses the coins. Guessing better than ε allows is proof, at a stated confidence,
that the mechanism is not (ε, δ)-DP.

    one_run_bound        proof for every mechanism, from one training run
    one_run_bound_fdp    proof that no Gaussian mechanism with this ε, δ is as private; sharper
    exposure             how well the model ranks a secret; no ε at all
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from scipy import optimize, special, stats

from pfl_lm.audit.gaussians import gaussian_mu

# ε beyond which "there is no privacy" says it better than a figure.
HUGE_EPSILON = 200.0


def one_run_p_value(
    canaries: int, guesses: int, correct: int, epsilon: float, delta: float
) -> float:
    """Return the chance that an (ε, δ)-DP run lets ``correct`` or more of the guesses be right.

    Args:
        canaries: users whose taking part was a fair coin, m.
        guesses: how many of the coins the attacker guessed, r ≤ m; a number fixed beforehand.
        correct: how many of these were right, v ≤ r.

    Raises:
        ValueError: not 0 ≤ correct ≤ guesses ≤ canaries.

    Source: Steinke, Nasr & Jagielski 2023, arXiv 2305.08846v1, theorem 5.2 and appendix D:
    β + 2mδα with β = P[Bin(r, q) ≥ v], q = e^ε/(1+e^ε), α = max_i P[v−i ≤ Bin(r, q) < v]/i.
    """
    if not 0 <= correct <= guesses <= canaries:
        raise ValueError(f"needs 0 ≤ correct {correct} ≤ guesses {guesses} ≤ canaries {canaries}")
    chance = special.expit(epsilon)
    tail = float(stats.binom.sf(correct - 1, guesses, chance))
    if delta == 0 or correct == 0:
        return tail
    near = min(correct, 64 + 16 * int(guesses**0.5))
    alpha = _steepest(guesses, correct, chance, near)
    if alpha < 1 / near:  # a value further away could still be larger
        alpha = _steepest(guesses, correct, chance, correct)
    return min(1.0, tail + 2 * canaries * delta * alpha)


def _steepest(guesses: int, correct: int, chance: float, reach: int) -> float:
    """Return max over 1 ≤ i ≤ reach of P[correct − i ≤ Bin(guesses, chance) < correct]/i."""
    steps = np.arange(1, reach + 1)
    tails = stats.binom.sf(correct - 1 - np.arange(reach + 1), guesses, chance)
    return float(np.max((tails[1:] - tails[0]) / steps))


def one_run_bound(
    canaries: int, guesses: int, correct: int, delta: float, significance: float = 0.05
) -> float:
    """Return the largest ε that the guesses of one run refute, at confidence 1 − significance.

    Guarantees:
        If the run is (ε, δ)-DP for adding or removing one user, the returned value exceeds ε
        with probability at most ``significance``, whatever the mechanism and the attack,
        provided that the coins were fair and independent and ``guesses`` was fixed beforehand.

    Source: Steinke, Nasr & Jagielski 2023, arXiv 2305.08846v1.
    """
    _check_levels(delta, significance)
    return _largest_refuted(
        lambda e: significance - one_run_p_value(canaries, guesses, correct, e, delta)
    )


def one_run_bound_fdp(
    canaries: int, guesses: int, correct: int, delta: float, significance: float = 0.05
) -> float:
    """Return the largest ε such that the guesses refute the Gaussian mechanism with (ε, δ).

    Sharper than ``one_run_bound`` because the whole trade-off curve of a Gaussian is tested, not
    one point of it; a proof only about mechanisms at least as private as that Gaussian.

    Source: Mahloujifar, Melis & Chaudhuri 2024, arXiv 2410.22235, algorithm 3.
    """
    _check_levels(delta, significance)
    return _largest_refuted(
        lambda e: _fdp_excess(canaries, guesses, correct, gaussian_mu(e, delta), significance)
    )


def _fdp_excess(canaries: int, guesses: int, correct: int, mu: float, significance: float) -> float:
    """Return how far the guesses overshoot what the trade-off curve of N(0,1)/N(mu,1) allows.

    Walks from "``correct`` guesses right" down to none. ``right`` and ``wrong`` bound the mass
    of right and wrong guesses; the curve ties each step's wrong mass to the right mass before.
    """
    right = significance * correct / canaries
    wrong = significance * (guesses - correct) / canaries
    for remaining in range(correct - 1, -1, -1):
        needed = float(special.ndtr(special.ndtri(right) - mu))
        if needed <= wrong:
            break  # neither mass can change any more
        right = min(1.0, right + remaining / (guesses - remaining) * (needed - wrong))
        wrong = needed
    return right + wrong - guesses / canaries


def _largest_refuted(excess: Callable[[float], float]) -> float:
    """Return the root of a decreasing function that is positive where ε is refuted."""
    if excess(0.0) <= 0:
        return 0.0
    low, high = 0.0, 1.0
    while excess(high) > 0:
        low, high = high, 2 * high
        if low > HUGE_EPSILON:
            return low
    return float(optimize.brentq(excess, low, high, xtol=1e-10))


def clopper_pearson_upper(
    successes: int | np.ndarray, trials: int | np.ndarray, significance: float
) -> np.ndarray:
    """Return the exact one-sided upper confidence limit of a binomial proportion."""
    successes, trials = np.asarray(successes), np.asarray(trials)
    misses = np.maximum(trials - successes, 1e-9)
    limit = stats.beta.ppf(1 - significance, successes + 1, misses)
    return np.where(successes < trials, limit, 1.0)


def exposure(rank: int, candidates: int) -> float:
    """Return the exposure in bits of a secret that the model ranks ``rank``-th of the candidates.

    log₂(candidates) − log₂(rank): 0 bits for the least likely, log₂(candidates) for the first;
    about 1.44 on average where the model knows nothing of the secret.

    Source: Carlini et al. 2019, arXiv 1802.08232v3, definition 5.
    """
    if not 1 <= rank <= candidates:
        raise ValueError(f"rank = {rank} must lie between 1 and candidates = {candidates}")
    return float(np.log2(candidates) - np.log2(rank))


def _check_levels(delta: float, significance: float) -> None:
    if not 0 <= delta < 1 or not 0 < significance < 1:
        raise ValueError(f"needs 0 ≤ delta = {delta} < 1 and 0 < significance = {significance} < 1")
