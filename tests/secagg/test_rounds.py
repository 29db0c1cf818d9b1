"""The ideal round and the protocol: the same sums, the same failures, the same bytes stated."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pfl_lm.secagg.config import MessageKind
from pfl_lm.secagg.errors import SecaggError
from pfl_lm.secagg.parameters import Adversary, GraphParameters, at_best, bounds, required
from pfl_lm.secagg.rounds import open_aggregator


def outcome(kind, config, silent, vectors, entropy) -> tuple[bytes, int] | None:
    """What was opened, or None after a clean abort."""
    try:
        aggregator = open_aggregator(kind, config, None, silent, entropy)
        waiting = aggregator.waiting
        aggregator.submit(vectors[waiting], waiting)
        opened = aggregator.close()
    except SecaggError:
        return None
    return opened.vector.tobytes(), opened.reports


@settings(max_examples=60)
@given(data=st.data())
def test_in_the_complete_graph_both_open_or_abandon_the_same_rounds(make_config, data):
    cohort = data.draw(st.integers(3, 9), "cohort")
    adversary = data.draw(st.sampled_from(list(Adversary)), "adversary")
    least = data.draw(st.integers(2, cohort), "min_reports")
    config = make_config(cohort=cohort, adversary=adversary, min_reports=least)
    devices = st.integers(0, cohort - 1)
    silent = data.draw(st.dictionaries(devices, st.sampled_from(MessageKind)), "silent")
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32), "seed"))
    vectors = rng.integers(-(2**40), 2**40, (cohort, config.dim))
    ideal = outcome("ideal", config, silent, vectors, rng.bytes)
    assert ideal == outcome("protocol", config, silent, vectors, rng.bytes)


def test_devices_report_in_any_order_under_their_own_names(make_config):
    config = make_config(cohort=6, min_reports=3)
    vectors = np.arange(6 * config.dim).reshape(6, -1)
    silent = {1: MessageKind.SHARES, 4: MessageKind.ANSWER}
    for kind in ("ideal", "protocol"):
        aggregator = open_aggregator(kind, config, None, silent, np.random.default_rng(1).bytes)
        assert aggregator.waiting == [0, 2, 3, 4, 5]
        assert aggregator.submit(vectors[[5, 2]], [5, 2]) == 2
        for wrong in ([5, 0], [1, 0], [0, 0]):
            with pytest.raises(ValueError, match="yet to report"):
                aggregator.submit(vectors[wrong], wrong)
        aggregator.submit(vectors[[4, 0, 3]], [4, 0, 3])
        assert np.array_equal(aggregator.close().vector, vectors[[0, 2, 3, 4, 5]].sum(axis=0))


def test_stated_bytes_are_those_sent(make_config, adversary):
    config = make_config(cohort=12, neighbours=8, adversary=adversary, dim=333)
    found = []
    for kind in ("ideal", "protocol"):
        aggregator = open_aggregator(kind, config, None, {}, np.random.default_rng(1).bytes)
        aggregator.submit(np.zeros((12, 333), dtype=np.int64), range(12))
        aggregator.close()
        found.append(aggregator.traffic())
    assert found[0] == found[1]


@pytest.mark.parametrize("cohort", [100, 1000, 20_000])
def test_bounds_are_what_the_parameters_were_chosen_for(cohort, adversary):
    graph = required(cohort, 0.05, 0.1, adversary)
    found = bounds(graph, cohort, 0.1, adversary)
    hardened = 48 if adversary is Adversary.ACTIVE else 0
    assert found.secret >= 40 + hardened
    assert found.connected >= 40 + hardened
    assert found.correct >= 30
    if not graph.complete:
        fewer = GraphParameters(graph.neighbours - 2, graph.threshold - 1, graph.corrupt)
        worse = bounds(fewer, cohort, 0.1, adversary)
        short = (worse.secret - hardened < 40, worse.connected - hardened < 40, worse.correct < 30)
        assert any(short) or graph.threshold - 1 <= fewer.neighbours // 2 or hardened


def test_a_cohort_too_small_for_its_dropout_keeps_the_secrets():
    with pytest.raises(ValueError, match="too few shares"):
        required(4, 0.25, 0.5, Adversary.SEMI_HONEST)
    graph = at_best(4, 0.25, 0.5, Adversary.SEMI_HONEST)
    assert (graph.complete, graph.neighbours, graph.threshold) == (True, 3, 3)
    found = bounds(graph, 4, 0.5, Adversary.SEMI_HONEST)
    assert found.secret == math.inf
    assert found.correct == 0
    assert at_best(100, 0.05, 0.1, Adversary.ACTIVE) == required(100, 0.05, 0.1, Adversary.ACTIVE)
