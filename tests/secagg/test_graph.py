"""The graph of neighbours: regular, symmetric, uniform, and its windows."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from pfl_lm.secagg.graph import Graph, draw_graph


@given(st.sets(st.integers(0, 10**6), min_size=3, max_size=60), st.integers(1, 20), st.binary())
def test_neighbours_are_mutual_and_as_many_as_asked(members, half, seed):
    graph = draw_graph(seed, sorted(members), 2 * half)
    for device in members:
        mine = graph.neighbours(device)
        assert device not in mine
        assert len(set(mine)) == len(mine) == min(2 * half, len(members) - 1)
        assert all(device in graph.neighbours(other) for other in mine)
        assert graph.holders(device) == (sorted(members) if graph.complete else mine)


def test_the_order_depends_on_the_seed_and_on_nothing_else():
    members = list(range(50))
    assert draw_graph(b"s", members, 6) == draw_graph(b"s", members[::-1], 6)
    assert draw_graph(b"s", members, 6) != draw_graph(b"t", members, 6)


def test_every_pair_is_as_likely_to_be_neighbours():
    counts = np.zeros(9)
    for number in range(3000):
        for other in draw_graph(number.to_bytes(4, "big"), range(10), 4).neighbours(0):
            counts[other - 1] += 1
    assert stats.chisquare(counts).pvalue > 1e-5


@given(st.integers(3, 30), st.integers(1, 6), st.data())
def test_windows_are_counted_as_one_counts_them(size, half, data):
    graph = Graph(tuple(range(size)), 2 * half)
    marked = data.draw(st.sets(st.integers(0, size - 1)))
    width = min(half, size)
    expected = min(
        sum((start + step) % size in marked for step in range(width)) for start in range(size)
    )
    assert graph.least_in_a_window(marked) == expected


@pytest.mark.parametrize("half", [2, 3, 5])
def test_an_honest_survivor_in_every_window_keeps_the_survivors_connected(half):
    """The theorem behind the device's check, by trial: no window empty, no group cut off."""
    rng = np.random.default_rng(half)
    checked = 0
    for _ in range(400):
        graph = Graph(tuple(range(30)), 2 * half)
        alive = set(np.flatnonzero(rng.random(30) < 0.6).tolist())
        if graph.least_in_a_window(alive) < 1:
            continue
        checked += 1
        reached, waiting = set(), [min(alive)]
        while waiting:
            device = waiting.pop()
            reached.add(device)
            waiting += [o for o in graph.neighbours(device) if o in alive and o not in reached]
        assert reached == alive
    assert checked > 10
