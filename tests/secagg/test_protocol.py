"""The protocol against the ideal functionality: the same sum, or a clean abort."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pfl_lm.secagg.config import MessageKind
from pfl_lm.secagg.errors import (
    Refused,
    SecaggError,
    SumLost,
    TooFewReports,
    WrongState,
)
from pfl_lm.secagg.ideal import IdealAggregator
from pfl_lm.secagg.local import ProtocolAggregator
from pfl_lm.secagg.parameters import Adversary, GraphParameters, required
from pfl_lm.secagg.traffic import device_traffic


@settings(max_examples=60)
@given(data=st.data())
def test_any_dropout_in_any_phase_gives_the_exact_sum_or_a_clean_abort(make_config, data):
    cohort = data.draw(st.integers(3, 9), "cohort")
    complete = cohort < 5 or data.draw(st.booleans(), "complete graph")
    config = make_config(
        cohort=cohort,
        neighbours=None if complete else data.draw(st.sampled_from([4, cohort - 1]), "k"),
        adversary=data.draw(st.sampled_from(list(Adversary)), "adversary"),
        dim=data.draw(st.integers(1, 70), "dim"),
        bits=data.draw(st.sampled_from([8, 16, 17, 20, 32, 33, 64]), "bits"),
        min_reports=data.draw(st.integers(2, cohort), "min_reports"),
    )
    devices = st.integers(0, cohort - 1)
    silent = data.draw(st.dictionaries(devices, st.sampled_from(MessageKind), max_size=3), "silent")
    goal = data.draw(st.none() | st.integers(config.min_reports, cohort), "goal")
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32), "seed"))
    reporting = sum(step > MessageKind.INPUT for step in silent.values()) + cohort - len(silent)
    vectors = rng.integers(-(2**62), 2**62, (reporting, config.dim))
    if config.bits <= 32 and data.draw(st.booleans(), "integers of 32 bits"):
        vectors = vectors.astype(np.int32)
    ideal = IdealAggregator(config.dim, config.bits, config.min_reports, goal)
    ideal.submit(vectors)
    try:
        protocol = ProtocolAggregator(config, goal, silent=silent)
        protocol.submit(vectors)
        opened = protocol.close()
    except SecaggError:
        # Only missing devices may do this: silent ones, or ones past the goal.
        assert silent or (goal is not None and goal < cohort)
        return
    expected = ideal.close()
    assert opened.vector.tobytes() == expected.vector.tobytes()
    assert opened.reports == expected.reports == len(opened.survivors)


@pytest.mark.parametrize("complete", [True, False])
def test_tolerated_dropout_in_every_phase_opens_the_sum(make_config, adversary, complete):
    config = make_config(
        cohort=21,
        neighbours=None if complete else 18,
        threshold=None if complete else 10,
        adversary=adversary,
        min_reports=12,
    )
    silent = dict(zip(range(4, 9), MessageKind, strict=True))
    protocol = ProtocolAggregator(config, silent=silent)
    vectors = np.random.default_rng(1).integers(-99, 99, (18, config.dim))
    assert protocol.submit(vectors) == 18
    opened = protocol.close()
    assert np.array_equal(opened.vector, vectors.sum(axis=0))
    assert opened.survivors == frozenset(range(21)) - {4, 5, 6}


def test_both_fail_at_the_same_threshold(make_config, adversary):
    config = make_config(cohort=6, adversary=adversary, min_reports=5)
    for reports in (4, 5):
        protocol = ProtocolAggregator(config)
        ideal = IdealAggregator(config.dim, config.bits, config.min_reports)
        vectors = np.ones((reports, config.dim), dtype=np.int64)
        for aggregator in (protocol, ideal):
            aggregator.submit(vectors)
            if reports < 5:
                with pytest.raises(TooFewReports, match="4 reports"):
                    aggregator.close()
            else:
                assert aggregator.close().reports == 5
            with pytest.raises(WrongState):
                aggregator.close()
            with pytest.raises(WrongState):
                aggregator.submit(vectors)


def test_both_stop_at_the_same_goal(make_config):
    config = make_config(cohort=6, min_reports=3)
    vectors = np.arange(6 * config.dim).reshape(6, -1)
    dropping = ProtocolAggregator(config, goal=4)
    assert dropping.submit(vectors) == 4
    assert np.array_equal(dropping.close().vector, vectors[:4].sum(axis=0))
    refusing = ProtocolAggregator(config, goal=4, past_goal="refuse")
    with pytest.raises(Refused, match="goal"):
        refusing.submit(vectors)


def test_too_few_answers_lose_a_sum_that_is_paid_for(make_config):
    config = make_config(cohort=6, min_reports=3)
    protocol = ProtocolAggregator(config, silent=dict.fromkeys(range(3), MessageKind.ANSWER))
    protocol.submit(np.ones((6, config.dim), dtype=np.int64))
    with pytest.raises(SumLost, match="3 shares") as lost:
        protocol.close()
    assert (lost.value.reports, lost.value.spoiler) == (6, None)


def test_a_device_that_refuses_to_answer_is_named_and_the_sum_is_paid_for(make_config):
    config = make_config(cohort=6, min_reports=3)
    protocol = ProtocolAggregator(config)
    protocol.submit(np.ones((6, config.dim), dtype=np.int64))
    protocol._masked[4]._dealers = frozenset({0, 1})  # it takes the survivor set for another
    with pytest.raises(SumLost, match="device 4 refused to answer: the neighbours") as lost:
        protocol.close()
    assert (lost.value.reports, lost.value.spoiler) == (6, 4)


def test_a_real_graph_of_forty_opens_with_required_parameters(make_config):
    graph = required(40, 0.05, 0.1, Adversary.SEMI_HONEST, sigma=20, eta=20)
    assert not graph.complete
    config = make_config(cohort=40, min_reports=36)
    config = type(config)(**{**_fields(config), "graph": graph})
    protocol = ProtocolAggregator(config, silent=dict.fromkeys(range(4), MessageKind.INPUT))
    vectors = np.random.default_rng(2).integers(-9, 9, (36, config.dim))
    protocol.submit(vectors)
    assert np.array_equal(protocol.close().vector, vectors.sum(axis=0))


def _fields(config):
    return {name: getattr(config, name) for name in config.__dataclass_fields__}


@pytest.mark.parametrize("noise_levels", [0, 3])
@pytest.mark.parametrize("neighbours", [None, 8])
def test_stated_traffic_is_that_of_the_real_messages(
    make_config, adversary, neighbours, noise_levels
):
    config = make_config(
        cohort=12,
        neighbours=neighbours,
        adversary=adversary,
        noise_levels=noise_levels,
        min_reports=9,
        dim=333,
    )
    protocol = ProtocolAggregator(config)
    protocol.submit(np.zeros((12, config.dim), dtype=np.int64))
    protocol.close()
    stated = device_traffic(config)
    assert set(protocol.upload_bytes) == {stated.upload_bytes}
    assert set(protocol.download_bytes) == {stated.download_bytes}
    assert stated.vector_bytes == -(-333 * 20 // 8)


def test_a_graph_as_large_as_the_roster_becomes_complete(make_config):
    """Devices that never advertise may leave fewer others than a device should have neighbours."""
    config = make_config(cohort=12, neighbours=8, threshold=5)
    protocol = ProtocolAggregator(config, silent=dict.fromkeys(range(4), MessageKind.KEYS))
    vectors = np.ones((8, config.dim), dtype=np.int64)
    protocol.submit(vectors)
    assert protocol.close().vector.tolist() == [8] * config.dim


@pytest.mark.parametrize(
    ("wrong", "match"),
    [
        ({"graph": GraphParameters(4, 2, 0)}, "threshold"),
        ({"graph": GraphParameters(4, 1, 0)}, "threshold"),
        ({"graph": GraphParameters(3, 3, 0)}, "neighbours"),
        ({"graph": GraphParameters(4, 5, 0)}, "threshold"),
        ({"graph": GraphParameters(4, 3, 12)}, "corrupt"),
        ({"graph": GraphParameters(4, 3, 0, 3)}, "window"),
        ({"min_reports": 1}, "min_reports"),
        ({"min_reports": 13}, "min_reports"),
        ({"cohort": 2}, "cohort"),
        ({"dim": 0}, "dim"),
        ({"bits": 65}, "bits"),
        ({"model": b""}, "model"),
        ({"round": -1}, "round"),
        ({"noise_levels": 2}, "min_reports"),
    ],
)
def test_contradictory_rounds_are_refused(make_config, wrong, match):
    with pytest.raises(ValueError, match=match):
        make_config(**{"cohort": 12, "neighbours": 4} | wrong)
