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

_MOST_SEARCHED = 200_000  # states; beyond, the bound by levels


def prefix_errors(n: int) -> Doubles:
    """Return the variance of the noise on each prefix sum, for z = 1: the ones of its length."""
    return np.array([float((t + 1).bit_count()) for t in range(n)])


def squared_sensitivity(n: int, min_separation: int, participations: int) -> float:
    """Return Σ over nodes of (the user's rounds in it)², at the worst pattern.

    Args:
        min_separation: smallest r₂ − r₁ between two rounds of the user, at least 1.
        participations: the most rounds the user may be in.

    Guarantees:
        Exact where the search ends, after at most 200,000 states (seconds); else
        :func:`by_levels`, which is never below. The search may assume that each round is as early
        as its predecessor allows, or the first of a node longer than ``min_separation``: to move a
        round earlier within such a node leaves it there, and the shorter nodes it is in hold no
        other round and are in the run if they were before.
    """
    times = min(participations, 1 + (n - 1) // min_separation)
    worst = _worst(n, min_separation, times)
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


def _worst(n: int, step: int, times: int) -> int | None:
    """Return the largest sum of squares of any pattern; None if the search takes too long.

    Patterns are followed from round to round. Those that may go on alike, with as many rounds left
    and as many in every node that is open, go on as one: as the one of the largest sum.
    """
    nodes = _Nodes(n, step)
    waiting = {0: {(times, *(0 for _ in nodes.shared)): 0}}
    best = seen = 0
    for place in range(n):
        for (left, *counts), value in waiting.pop(place, {}).items():
            seen += 1
            if seen > _MOST_SEARCHED:
                return None
            gain, after = nodes.add(place, counts)
            best = max(best, value + gain)
            # The user is in this round, or in none before the next node that two rounds can share.
            moves = ((place + step, left - 1, after, value + gain),
                     (nodes.next_shared(place), left, counts, value))  # fmt: skip
            for where, more, kept, total in moves:
                if where < n and more:
                    states = waiting.setdefault(where, {})
                    state = (more, *nodes.still_open(place, where, kept))
                    states[state] = max(total, states.get(state, 0))
    return best


class _Nodes:
    """The complete nodes of a run: those of a length that two rounds can share, and the others."""

    def __init__(self, n: int, step: int) -> None:
        self._n, self._shortest = n, 1 << step.bit_length()
        lengths = [1 << level for level in range(n.bit_length())]
        self.shared = [length for length in lengths if length >= self._shortest]
        self._alone = [length for length in lengths if length < self._shortest]

    def add(self, place: int, counts: list[int]) -> tuple[int, list[int]]:
        """Return what one round more adds to the sum of squares, and the counts after it.

        Args:
            counts: of the user's rounds in each shared node that ``place`` lies in.
        """
        inside = [self._is_complete(place, length) for length in self.shared]
        gain = sum(self._is_complete(place, length) for length in self._alone)
        gain += sum(2 * count + 1 for count, is_in in zip(counts, inside, strict=True) if is_in)
        return gain, [count + is_in for count, is_in in zip(counts, inside, strict=True)]

    def still_open(self, place: int, where: int, counts: list[int]) -> list[int]:
        """Return the counts at a later round: 0 in the nodes that it does not lie in as well."""
        pairs = zip(self.shared, counts, strict=True)
        return [count if place // length == where // length else 0 for length, count in pairs]

    def next_shared(self, place: int) -> int:
        """Return the first round of the next node of the shortest length that is shared."""
        return (place // self._shortest + 1) * self._shortest

    def _is_complete(self, place: int, length: int) -> bool:
        return (place // length + 1) * length <= self._n


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
