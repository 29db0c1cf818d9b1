"""Cohorts: who takes part follows from (rule, seed, round), at any population."""

from __future__ import annotations

import tracemalloc
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from pfl_lm.dp.cohort import CohortRule, Permutation, cohort, slots


@given(
    kind=st.sampled_from(["poisson", "rotation", "fixed"]),
    size=st.integers(1, 20),
    separation=st.integers(1, 9),
    spare=st.integers(0, 500),
    seed=st.integers(0, 2**70),
    round=st.integers(0, 10**6),
)
def test_a_cohort_is_a_set_of_users_that_its_labels_fix(
    kind: Any, size: int, separation: int, spare: int, seed: int, round: int
) -> None:
    population = size * separation + spare
    if kind == "rotation":
        rule = CohortRule(kind, population, size, separation)
    else:
        rule = CohortRule(kind, population, size / population if kind == "poisson" else size)
    users = cohort(rule, seed, round)
    assert users.dtype == np.int64
    assert ((users >= 0) & (users < population)).all()
    assert (np.diff(users) > 0).all(), "sorted, and nobody twice"
    assert (users == cohort(rule, seed, round)).all()
    if kind != "poisson":
        assert len(users) == size


@given(
    size=st.integers(1, 6),
    separation=st.integers(1, 8),
    spare=st.integers(0, 40),
    seed=st.integers(0, 100),
)
def test_rotation_keeps_participations_apart(
    size: int, separation: int, spare: int, seed: int
) -> None:
    rule = CohortRule("rotation", size * separation + spare, size, separation)
    last: dict[int, int] = {}
    for round in range(4 * separation):
        for user in cohort(rule, seed, round).tolist():
            assert round - last.get(user, round - separation) >= separation
            last[user] = round
            assert slots(rule, seed, np.array([user]))[0] == round % separation


def test_rotation_reaches_everybody_at_like_rates() -> None:
    rule = CohortRule("rotation", 1200, 60, 10)
    counts = np.zeros(1200)
    for round in range(2000):
        counts[cohort(rule, 5, round)] += 1
    # Each user is in one round of ten and is then one of 60 in 120: 100 ± 7 in 2000 rounds.
    assert counts.sum() == 2000 * 60
    statistic = float(((counts - 100) ** 2 / (100 * 0.5)).sum())
    assert 1e-5 < stats.chi2.cdf(statistic, 1190) < 1 - 1e-5


def test_slots_hold_equal_numbers_and_differ_by_seed() -> None:
    rule = CohortRule("rotation", 1003, 10, 10)
    everybody = np.arange(1003)
    one, other = slots(rule, 1, everybody), slots(rule, 2, everybody)
    assert set(np.bincount(one)) == {100, 101}
    assert 0.05 < (one == other).mean() < 0.2


def test_poisson_sampling_has_its_rate_and_no_other() -> None:
    rule = CohortRule("poisson", 100_000, 0.002)
    cohorts = [cohort(rule, 3, round) for round in range(500)]
    sizes = np.array([len(users) for users in cohorts])
    # The number of users is binomial: mean 200, variance 199.6.
    assert abs(sizes.mean() - 200) < 5 * (199.6 / 500) ** 0.5
    assert abs(sizes.mean() - 200 * 1.04) > 5 * (199.6 / 500) ** 0.5
    assert 0.75 < sizes.var() / 199.6 < 1.3, "a capped or fixed cohort would have none"
    # Two given rounds share users as two independent samples do.
    shared = [len(np.intersect1d(a, b)) for a, b in pairwise(cohorts)]
    assert 0.2 < np.mean(shared) < 0.6  # 0.4 in expectation


@pytest.mark.parametrize("rate", [0.03, 0.4, 0.75, 1.0])
def test_poisson_sampling_is_fair_to_every_user(rate: float) -> None:
    rule = CohortRule("poisson", 50, rate)
    counts = np.zeros(50)
    for round in range(3000):
        counts[cohort(rule, 9, round)] += 1
    expected, variance = 3000 * rate, 3000 * rate * (1 - rate)
    assert (np.abs(counts - expected) <= 5 * variance**0.5).all()


def test_every_set_of_a_fixed_size_is_equally_likely() -> None:
    rule = CohortRule("fixed", 6, 2)
    found: dict[tuple[int, ...], int] = {}
    for round in range(6000):
        users = tuple(cohort(rule, 1, round).tolist())
        found[users] = found.get(users, 0) + 1
    assert len(found) == 15
    statistic = sum((count - 400) ** 2 / 400 for count in found.values())
    assert 1e-5 < stats.chi2.cdf(statistic, 14) < 1 - 1e-5


@pytest.mark.parametrize("kind", ["poisson", "rotation", "fixed"])
def test_memory_does_not_grow_with_the_population(kind: Any) -> None:
    peaks = []
    for population in (10**6, 10**8, 10**10):
        size = 5000 / population if kind == "poisson" else 5000
        rule = CohortRule(kind, population, size, 100 if kind == "rotation" else 1)
        tracemalloc.start()
        users = cohort(rule, 2, 17)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert 4500 < len(users) < 5500
    assert max(peaks) < 2_000_000
    assert max(peaks) < 1.5 * min(peaks)


@given(size=st.integers(1, 5000), secret=st.binary(min_size=1, max_size=40))
def test_permutations_permute_and_invert(size: int, secret: bytes) -> None:
    permutation = Permutation(size, secret)
    everything = np.arange(size)
    places = permutation.apply(everything)
    assert (np.sort(places) == everything).all()
    assert (permutation.invert(places) == everything).all()


def test_permutations_look_random() -> None:
    """Each element lands anywhere; neighbours part; other keys give other orders."""
    orders = np.array(
        [Permutation(10, n.to_bytes(2, "big")).apply(np.arange(10)) for n in range(2000)]
    )
    for element in range(10):
        counts = np.bincount(orders[:, element], minlength=10)
        statistic = float(((counts - 200) ** 2 / 200).sum())
        assert stats.chi2.cdf(statistic, 9) < 1 - 1e-5
    places = Permutation(10**9, b"key").apply(np.arange(20_000))
    assert abs(np.corrcoef(places[1:], places[:-1])[0, 1]) < 0.05
    assert stats.kstest(places / 1e9, "uniform").pvalue > 1e-4


def test_permutations_refuse_what_they_do_not_hold() -> None:
    for elements in ([-1], [10]):
        with pytest.raises(ValueError, match="must lie in"):
            Permutation(10, b"k").apply(np.array(elements))


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("rotation", 4999, 50, 100), "population = 4999 is too small.* need 5000 users"),
        (("fixed", 10, 11), "too small"),
        (("fixed", 10, 2.5), "whole number"),
        (("fixed", 10, 0), "whole number"),
        (("fixed", 10, float("nan")), "whole number"),
        (("poisson", 10, 0.0), "rate"),
        (("poisson", 10, 1.5), "rate"),
        (("poisson", 10, float("nan")), "rate"),
        (("poisson", 0, 0.5), "population"),
        (("poisson", 10, 0.5, 7), "min_separation belongs"),
        (("rotation", 10, 1, 0), "min_separation = 0 must"),
        (("shuffle", 10, 1), "kind = .shuffle. must be"),
    ],
)
def test_impossible_rules_are_refused(arguments: tuple[Any, ...], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        CohortRule(*arguments)


def test_a_negative_round_is_refused() -> None:
    with pytest.raises(ValueError, match="round"):
        cohort(CohortRule("fixed", 10, 2), 0, -1)
