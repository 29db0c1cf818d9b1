"""What one user moves of a stream of correlated noise: from the recorded numbers, computed again.

Nothing here is taken from ``pfl_lm.dp``. The audit answers ∞ where it knows no proof.

Legend: n rounds, c_0 … c_(n−1) the first column of the stream's matrix C.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping
from functools import lru_cache
from itertools import accumulate
from typing import Any

import numpy as np

STREAMS = ("blt", "banded", "banded_inverse_root", "tree")
_MOST_STATES = 250_000  # of the search for the worst rounds in a tree; seconds


def coefficients(stream: Mapping[str, Any]) -> np.ndarray:
    """Return c of a stream that is no tree: float64[n].

    Raises:
        ValueError: an unknown family.
    """
    rounds, weights, decays = (stream[name] for name in ("rounds", "weights", "decays"))
    kind = stream["kind"]
    column = [1.0]
    for t in range(1, rounds):
        if kind == "blt":
            column.append(sum(w * d ** (t - 1) for w, d in zip(weights, decays, strict=True)))
        elif kind == "banded":
            column.append(weights[t - 1] if t <= len(weights) else 0.0)
        elif kind == "banded_inverse_root":  # C⁻¹ has the column 1, −w_1, −w_2, …
            column.append(sum(w * column[t - 1 - j] for j, w in enumerate(weights[:t])))
        elif kind == "identity":
            column.append(0.0)
        else:
            raise ValueError(f"{kind!r} is no family of strategies that the audit knows")
    return np.array(column)


def noise_covariance(stream: Mapping[str, Any], first: int, rounds: int) -> np.ndarray:
    """Return the covariance of what a stream that begins at round ``first`` releases, [r, r].

    For noise of 1. C⁻¹C⁻ᵀ, wherever it begins; a tree releases the difference of two prefix sums,
    each of which has the noise of its own intervals.
    """
    if stream["kind"] != "tree":
        inverse = np.linalg.inv(toeplitz(coefficients(stream)[:rounds]))
        return np.asarray(inverse @ inverse.T)
    prefixes = [set[tuple[int, int]](), *(_intervals(first + r + 1) for r in range(rounds))]
    known = sorted(set().union(*prefixes))
    noises = np.array([[interval in prefix for interval in known] for prefix in prefixes], float)
    released = np.diff(noises, axis=0)
    return np.asarray(released @ released.T)


def _intervals(rounds: int) -> set[tuple[int, int]]:
    """Return the dyadic intervals that the first rounds are made of, by start and length."""
    lengths = [1 << bit for bit in reversed(range(rounds.bit_length())) if rounds >> bit & 1]
    return set(zip(accumulate(lengths, initial=0), lengths, strict=False))


def inner_products(stream: Mapping[str, Any]) -> np.ndarray:
    """Return CᵀC, float64[n, n]; the rows of a tree's C are its complete dyadic intervals."""
    n = int(stream["rounds"])
    if stream["kind"] != "tree":
        lower = toeplitz(coefficients(stream))
        return np.asarray(lower.T @ lower)
    products, number = np.zeros((n, n)), np.arange(n)
    for level in range(n.bit_length()):
        place = number >> level
        complete = (place + 1) << level <= n
        products += (place[:, None] == place) & complete
    return products


def toeplitz(column: np.ndarray) -> np.ndarray:
    """Return the lower triangular matrix C of a first column, float64[n, n]."""
    n = len(column)
    lower = np.zeros((n, n))
    for j in range(n):
        lower[j:, j] = column[: n - j]
    return lower


def sensitivity(stream: Mapping[str, Any], min_separation: int, participations: int) -> float:
    """Return (a bound of) how far a user moves Cx, in clip norms; ∞ where nothing is proven.

    | case | squared |
    |---|---|
    | one participation | Σ c² |
    | c ≥ 0 and non-increasing | of rounds 0, b, 2b, …: the worst |
    | fewer coefficients than the separation | k·Σ c²: no two participations meet |
    | a tree | the worst rounds, by a search over all of them |

    Source: Kalinin and Lampert 2024 (arXiv 2405.13763), theorem 2; Kairouz et al. 2021
    (arXiv 2103.00039), appendix D.
    """
    rounds = int(stream["rounds"])
    times = min(participations, 1 + (rounds - 1) // min_separation)
    if stream["kind"] == "tree":
        return math.sqrt(tree_squared(rounds, min_separation, times))
    try:
        column = coefficients(stream)
    except (ValueError, TypeError):
        return math.inf
    if not np.isfinite(column).all():
        return math.inf
    squared = float(column @ column)
    if times == 1:
        return math.sqrt(squared)
    if (column >= 0).all() and (np.diff(column) <= 0).all():
        return math.sqrt(_of_pattern(column, [j * min_separation for j in range(times)]))
    if not column[min_separation:].any():
        return math.sqrt(times * squared)
    return math.inf


def _of_pattern(column: np.ndarray, pattern: list[int]) -> float:
    """Return ‖Σ_j C[:, r_j]‖² by the inner products of all pairs of columns."""
    rounds = len(column)
    total = 0.0
    for first in pattern:
        for second in pattern:
            late, lag = max(first, second), abs(first - second)
            total += float(column[: rounds - late] @ column[lag : rounds - late + lag])
    return total


@lru_cache(maxsize=64)
def tree_squared(rounds: int, min_separation: int, participations: int) -> float:
    """Return Σ over the complete dyadic intervals of (the user's rounds in it)², at the worst.

    Rounds are followed from the first to the last; two choices that leave the same counts in the
    intervals that are open go on as one. No choice is worse than one in which every round is as
    early as the separation allows, or the first of an interval longer than that: a round that is
    moved there stays in all its intervals that can hold another one, and leaves none for nothing.
    The bound by levels answers where there are more than 250,000 such choices.
    """
    levels = [level for level in range(rounds.bit_length()) if 1 << level <= rounds]
    long = [level for level in levels if 1 << level > min_separation]
    apart = 1 << min_separation.bit_length()
    best: dict[int, dict[tuple[int, ...], float]] = defaultdict(dict)
    best[0][(participations, *(0 for _ in long))] = 0.0
    worst, seen = 0.0, 0
    for number in range(rounds):
        states = best.pop(number, {})
        seen += len(states)
        if seen > _MOST_STATES:
            return _by_levels(rounds, min_separation, participations)
        short = sum(_complete(number, level, rounds) for level in levels if level not in long)
        inside = [_complete(number, level, rounds) for level in long]
        for (left, *counts), value in states.items():
            gain = short + sum(2 * c + 1 for c, i in zip(counts, inside, strict=True) if i)
            worst = max(worst, value + gain)
            _reach(best, (number // apart + 1) * apart, number, (left, *counts), long, value)
            if left > 1:
                taken = (left - 1, *(c + i for c, i in zip(counts, inside, strict=True)))
                _reach(best, number + min_separation, number, taken, long, value + gain)
    return worst


def _complete(number: int, level: int, rounds: int) -> int:
    return int((number >> level) + 1 << level <= rounds)


def _reach(
    best: dict[int, dict[tuple[int, ...], float]],
    after: int,
    before: int,
    state: tuple[int, ...],
    long: list[int],
    value: float,
) -> None:
    """Note a state at round ``after``: intervals that ended since round ``before`` count anew."""
    left, *counts = state
    kept = (c if after >> l == before >> l else 0 for c, l in zip(counts, long, strict=True))
    key = (left, *kept)
    best[after][key] = max(value, best[after].get(key, 0.0))


def _by_levels(rounds: int, min_separation: int, participations: int) -> float:
    """Bound the same level by level."""
    total = 0
    for level in range(rounds.bit_length()):
        length, nodes = 1 << level, rounds >> level
        most = min(participations, -(-length // min_separation))
        full, rest = divmod(min(participations, nodes * most), most) if nodes else (0, 0)
        total += full * most**2 + rest**2
    return float(total)
