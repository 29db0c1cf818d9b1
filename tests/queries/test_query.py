"""What a device may put into a query: the rule, the norm, the threshold."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from pfl_lm.queries.query import NOTHING, Answer, Query, equal_weights
from pfl_lm.queries.thresholds import by_rank, thresholds

CELLS = tuple("abcdefghij")


def answer(cells: list[int], values: list[float] | None = None) -> Answer:
    filled = np.array(values or [0.5] * len(cells), dtype=np.float32)
    return Answer(np.array(cells, dtype=np.int64), filled)


class TestRule:
    query = Query("letters", CELLS, entries=3, norm=1.0)

    @pytest.mark.parametrize(
        ("given", "why"),
        [
            (answer([0, 1, 2, 3]), "4 entries; the query allows 3"),
            (answer([1, 2, 1]), "cell 1 is filled twice"),
            (answer([10]), "cell 10 is outside of the query's 10"),
            (answer([-1]), "cell -1 is outside"),
            (answer([0], [1.5]), "an entry is above 1"),
            (answer([0], [float("nan")]), "an entry is above 1"),
            (answer([0, 1], [1.0]), "2 cells and 1 values"),
        ],
    )
    def test_a_refused_answer_says_why_and_becomes_zeros(self, given: Answer, why: str) -> None:
        assert why in str(self.query.refusal(given))
        assert not self.query.vectors([given]).any()

    def test_an_answer_lies_in_its_cells_and_cells_beyond_stay_empty(self) -> None:
        query = Query("letters", CELLS, entries=3, least_dim=16)
        rows = query.vectors([answer([2, 0], [0.25, -1.0]), NOTHING])
        assert rows.shape == (2, 16)
        assert rows[0].nonzero()[0].tolist() == [0, 2]
        assert rows[0, 0] == -1.0
        assert not rows[1].any()

    @given(st.sets(st.integers(0, 9), max_size=3))
    def test_equal_weights_are_as_long_as_the_norm(self, cells: set[int]) -> None:
        row = self.query.vectors([equal_weights(sorted(cells))])[0]
        assert np.linalg.norm(row) == pytest.approx(1.0 if cells else 0.0, abs=1e-6)

    @pytest.mark.parametrize(
        ("change", "field"),
        [
            ({"entries": 0}, "entries"),
            ({"entries": 11}, "entries"),
            ({"norm": 2.0}, "norm"),
            ({"norm": float("nan")}, "norm"),
            ({"labels": ("a", "a", "b")}, "labels"),
        ],
    )
    def test_an_impossible_query_is_refused(self, change: dict, field: str) -> None:
        with pytest.raises(ValueError, match=field):
            Query(**({"name": "q", "labels": CELLS, "entries": 3} | change))

    def test_the_digest_names_the_whole_question(self) -> None:
        base = Query("letters", CELLS, 3)
        others = [
            Query("others", CELLS, 3),
            Query("letters", CELLS[::-1], 3),
            Query("letters", CELLS, 2),
            Query("letters", CELLS, 3, norm=0.5),
            Query("letters", CELLS, 3, least_dim=11),
        ]
        assert base.digest == Query("letters", CELLS, 3).digest
        assert len({base.digest, *(q.digest for q in others)}) == 6


class TestThresholds:
    @pytest.mark.parametrize("weights", [np.ones(1000), by_rank(1000)])
    def test_noise_alone_passes_as_often_as_is_allowed(self, weights: np.ndarray) -> None:
        limits = thresholds(3.0, weights, 0.05)
        assert stats.norm.sf(limits / 3.0).sum() == pytest.approx(0.05, rel=1e-9)

    def test_skellam_noise_passes_hardly_more_often(self) -> None:
        deviation = 300.0  # grid steps, as coarse as a query's noise ever is
        limits = thresholds(deviation, np.ones(100_000), 0.05)
        exact = stats.skellam.sf(np.floor(limits[0]), deviation**2 / 2, deviation**2 / 2)
        assert 100_000 * exact <= 0.05 * 1.02

    def test_a_likelier_word_has_a_lower_threshold(self) -> None:
        limits = thresholds(1.0, by_rank(100), 0.05)
        assert (np.diff(limits) > 0).all()

    def test_no_noise_is_refused(self) -> None:
        with pytest.raises(ValueError, match="deviation"):
            thresholds(0.0, np.ones(3), 0.05)
