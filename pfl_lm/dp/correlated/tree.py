"""The binary tree: the oldest strategy, kept as a reference.

A node for every dyadic interval [i·2^l, (i+1)·2^l) that lies in the run holds the sum of its rounds
with fresh noise; a prefix sum adds at most log₂ n nodes. One tree serves all rounds ("without
restart").

Source: Dwork, Naor, Pitassi, Rothblum 2010; Chan, Shi, Song 2011; Kairouz et al. 2021
(arXiv:2103.00039), Appendix D, for rounds of one user that lie apart.
"""

from __future__ import annotations

import math

import numpy as np

from pfl_lm.dp.sampler.arrays import Doubles

_MOST_SEARCHED = 200_000  # patterns; beyond, the bound by levels


def prefix_errors(n: int) -> Doubles:
    """Return the variance of the noise on each prefix sum, for z = 1: the ones of its length."""
    return np.array([float((t + 1).bit_count()) for t in range(n)])


def squared_sensitivity(n: int, min_separation: int, participations: int) -> float:
    """Return Σ over nodes of (the user's rounds in it)², at the worst pattern.

    Args:
        min_separation: smallest r₂ − r₁ between two rounds of the user, at least 1.
        participations: the most rounds the user may be in.

    Guarantees:
        Exact where the search ends; else :func:`by_levels`, which is never below. The search may
        assume that each round is as early as its predecessor allows, or the first of a node longer
        than ``min_separation``: to move a round earlier within such a node leaves it there, and the
        shorter nodes it is in hold no other round and are in the run if they were before.
    """
    times = min(participations, 1 + (n - 1) // min_separation)
    long = 1 << min_separation.bit_length()  # the shortest node that can hold two rounds
    search = _Search(n, min_separation, times, long)
    worst = search.worst()
    return float(worst if worst is not None else by_levels(n, min_separation, times))


def by_levels(n: int, min_separation: int, participations: int) -> int:
    """Bound the squared sensitivity level by level: a node holds so many rounds and no more."""
    total, length = 0, 1
    while length <= n:
        most = min(participations, -(-length // min_separation))
        left = min(participations, (n // length) * most)
        total += (left // most) * most**2 + (left % most) ** 2
        length *= 2
    return total


class _Search:
    """All patterns that may be the worst, each built round by round."""

    def __init__(self, n: int, step: int, times: int, long: int) -> None:
        self._n, self._step, self._times, self._long = n, step, times, long
        self._levels = [1 << level for level in range(n.bit_length()) if 1 << level <= n]
        self._seen = 0

    def worst(self) -> int | None:
        """Return the largest sum of squares; None if there are too many patterns."""
        try:
            return self._extend([])
        except OverflowError:
            return None

    def _extend(self, rounds: list[int]) -> int:
        self._seen += 1
        if self._seen > _MOST_SEARCHED:
            raise OverflowError
        best = self._value(rounds)
        if len(rounds) == self._times:
            return best
        earliest = rounds[-1] + self._step if rounds else 0
        places = [earliest] if earliest < self._n else []
        boundary = -(-earliest // self._long) * self._long
        places += [b for b in range(boundary, self._n, self._long) if b != earliest]
        return max([best, *(self._extend([*rounds, place]) for place in places)])

    def _value(self, rounds: list[int]) -> int:
        total = 0
        for length in self._levels:
            whole = self._n // length
            nodes = [r // length for r in rounds if r // length < whole]
            total += sum(nodes.count(node) ** 2 for node in set(nodes))
        return total


def nodes_of(prefix: int) -> list[tuple[int, int]]:
    """Return the dyadic intervals [start, end) that make up rounds 0 … prefix − 1."""
    nodes, start = [], 0
    for level in reversed(range(prefix.bit_length())):
        if prefix >> level & 1:
            nodes.append((start, start + (1 << level)))
            start += 1 << level
    return nodes


def rho(noise_multiplier: float, n: int, min_separation: int, participations: int) -> float:
    """Return the zCDP parameter of a tree without restart: sensitivity² ÷ 2z²."""
    squared = squared_sensitivity(n, min_separation, participations)
    return math.inf if noise_multiplier == 0 else squared / (2 * noise_multiplier**2)
