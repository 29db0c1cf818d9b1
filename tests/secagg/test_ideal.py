"""The ideal functionality: exact sums, opened once, at the threshold only."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pfl_lm.secagg.errors import Refused, TooFewReports, WrongState
from pfl_lm.secagg.ideal import IdealAggregator


@given(st.integers(8, 64), st.integers(2, 20), st.integers(1, 50), st.data())
def test_the_sum_is_the_same_bytes_in_any_order_and_partition(bits, reports, dim, data):
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    vectors = rng.integers(-(2**62), 2**62, (reports, dim))
    opened = []
    for _ in range(2):
        aggregator = IdealAggregator(dim, bits, threshold=2)
        cuts = sorted(data.draw(st.lists(st.integers(0, reports), max_size=4)))
        for batch in np.split(rng.permutation(vectors), cuts):
            aggregator.submit(batch)
        opened.append(aggregator.close())
    assert opened[0].vector.tobytes() == opened[1].vector.tobytes()
    modulus = 2**bits
    for entry, column in zip(opened[0].vector, vectors.T, strict=True):
        total = sum(int(value) for value in column)
        assert int(entry) == (total + modulus // 2) % modulus - modulus // 2
    assert opened[0].reports == reports


@given(st.integers(8, 32), st.integers(2, 20), st.integers(1, 50), st.integers(0, 2**32))
def test_integers_of_32_bits_are_summed_modulo_the_ring(bits, reports, dim, seed):
    """At their ends too, where every sum wraps: beside integers of 64 bits, and in Python's own."""
    rng = np.random.default_rng(seed)
    vectors = rng.integers(-(2**31), 2**31, (reports, dim), dtype=np.int32)
    vectors[:, 0], vectors[0] = -(2**31), 2**31 - 1
    aggregator = IdealAggregator(dim, bits, threshold=2)
    aggregator.submit(vectors[1:])
    aggregator.submit(vectors[:1].astype(np.int64))
    opened, modulus = aggregator.close().vector, 2**bits
    assert opened.dtype == np.int64
    for entry, column in zip(opened, vectors.T, strict=True):
        total = sum(int(value) for value in column)
        assert int(entry) == (total + modulus // 2) % modulus - modulus // 2


def test_a_long_vector_is_summed_whole():
    vectors = np.arange(3 * 50_001).reshape(3, -1) - 70_000
    for integer in (np.int32, np.int64):
        aggregator = IdealAggregator(50_001, 32, threshold=3)
        assert aggregator.submit(vectors.astype(integer)) == 3
        assert np.array_equal(aggregator.close().vector, vectors.sum(axis=0))


def test_below_the_threshold_the_sum_stays_closed():
    aggregator = IdealAggregator(4, 16, threshold=3)
    aggregator.submit(np.ones((2, 4), dtype=np.int64))
    with pytest.raises(TooFewReports, match="2 reports") as caught:
        aggregator.close()
    assert (caught.value.reports, caught.value.threshold) == (2, 3)
    with pytest.raises(WrongState):
        aggregator.close()


def test_late_reports_and_a_second_opening_are_refused():
    aggregator = IdealAggregator(4, 16, threshold=2)
    aggregator.submit(np.ones((2, 4), dtype=np.int64))
    aggregator.close()
    with pytest.raises(WrongState, match="late"):
        aggregator.submit(np.ones((1, 4), dtype=np.int64))
    with pytest.raises(WrongState, match="once"):
        aggregator.close()


def test_reports_past_the_goal_are_dropped_or_refused():
    vectors = np.arange(5 * 3).reshape(5, 3)
    dropping = IdealAggregator(3, 16, threshold=2, goal=4)
    assert [dropping.submit(vectors[:3]), dropping.submit(vectors[3:])] == [3, 1]
    assert dropping.submit(vectors[:1]) == 0
    opened = dropping.close()
    assert np.array_equal(opened.vector, vectors[:4].sum(axis=0))
    assert opened.reports == 4

    refusing = IdealAggregator(3, 16, threshold=2, goal=4, past_goal="refuse")
    refusing.submit(vectors[:3])
    with pytest.raises(Refused, match="room for 1"):
        refusing.submit(vectors[3:])
    assert refusing.reports == 3


@pytest.mark.parametrize(
    ("vectors", "match"),
    [
        (np.zeros((1, 3), dtype=np.int64), "shape"),
        (np.zeros(4, dtype=np.int64), "shape"),
        (np.zeros((1, 4)), "int64"),
        (np.zeros((1, 4), dtype=np.int16), "int64"),
        (np.zeros((1, 4), dtype=bool), "int64"),
    ],
)
def test_wrong_shapes_and_types_are_refused(vectors, match):
    with pytest.raises(ValueError, match=match):
        IdealAggregator(4, 16, threshold=2).submit(vectors)


def test_integers_that_may_have_wrapped_are_refused_in_a_wider_ring():
    with pytest.raises(ValueError, match="int64 in a ring of 33 bits: int32"):
        IdealAggregator(4, 33, threshold=2).submit(np.zeros((1, 4), dtype=np.int32))


@pytest.mark.parametrize(
    "wrong",
    [{"dim": 0}, {"bits": 7}, {"threshold": 1}, {"goal": 1}, {"past_goal": "keep"}],
)
def test_impossible_rounds_are_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        IdealAggregator(**({"dim": 4, "bits": 76, "threshold": 2} | wrong))
