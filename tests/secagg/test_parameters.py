"""Neighbours and thresholds: the oracle's table, exact tails, and what devices insist on."""

from __future__ import annotations

import csv
import math
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pfl_lm.secagg.parameters import (
    Adversary,
    Demand,
    GraphParameters,
    at_best,
    bounds,
    least_graph,
    log_tail,
    required,
)


def published(
    cohort: int,
    corrupt: float,
    dropout: float,
    adversary: Adversary,
    sigma: float = 40,
    eta: float = 30,
) -> GraphParameters:
    """The least even k, and for it the least t, that meet the published conditions.

    Args:
        cohort: devices in the round, n >= 3.
        corrupt: largest fraction of corrupt devices, γ, in [0, 1).
        dropout: largest fraction of devices that drop out, δ, in [0, 1).
        adversary: the server's powers.
        sigma: secrecy fails with probability at most ``2^-sigma``.
        eta: a round with tolerated dropout fails with probability at most ``2^-eta``.

    Returns:
        The complete graph where no k up to 1,000 and below ``n - 1`` will do.

    Raises:
        ValueError: a number outside its range.
    """
    return least_graph(Demand(cohort, corrupt, dropout, adversary, sigma, eta))


def test_every_row_of_the_oracle(shared):
    with (shared / "oracles" / "secagg_params.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) > 50
    for row in rows:
        n = int(row["n"])
        corrupt = 1 / 3 if row["corrupt_frac"] == "0.333" else float(row["corrupt_frac"])
        found = published(
            n,
            corrupt,
            float(row["dropout_frac"]),
            Adversary(row["model"]),
            float(row["sigma"]),
            float(row["eta"]),
        )
        if row["k_secagg+"].isdigit():
            expected = (int(row["k_secagg+"]), int(row["t"]))
            assert (found.neighbours, found.threshold) == expected, row
        else:
            assert found.complete, row
            assert found.threshold == int(row["complete_graph_t(bonawitz)"]), row


@given(st.integers(2, 40), st.data())
def test_the_tail_is_the_exact_hypergeometric_one(population, data):
    marked = data.draw(st.integers(0, population))
    draws = data.draw(st.integers(0, population))
    least = data.draw(st.integers(0, draws + 1))
    exact = sum(
        Fraction(
            math.comb(marked, i) * math.comb(population - marked, draws - i),
            math.comb(population, draws),
        )
        for i in range(least, draws + 1)
    )
    found = math.exp(log_tail(population, marked, draws, least))
    assert found == pytest.approx(float(exact), rel=1e-9, abs=1e-300)


@pytest.mark.parametrize("adversary", list(Adversary))
@pytest.mark.parametrize("cohort", [20, 100, 1000, 10_000])
def test_devices_get_a_majority_threshold_and_no_weaker_graph(cohort, adversary):
    least = published(cohort, 0.05, 0.1, adversary)
    found = required(cohort, 0.05, 0.1, adversary)
    assert found.threshold > found.neighbours / 2
    assert found.neighbours >= least.neighbours
    if adversary is Adversary.ACTIVE and not found.complete:
        assert found.window_survivors > 0


def test_the_semi_honest_graph_of_a_thousand_is_the_published_one_where_it_has_a_majority():
    found = required(1000, 0.2, 0.1, Adversary.SEMI_HONEST)
    assert (found.neighbours, found.threshold) == (74, 45)


def test_more_of_anything_bad_never_needs_a_smaller_graph():
    def k(corrupt, dropout, sigma):
        return published(1000, corrupt, dropout, Adversary.SEMI_HONEST, sigma).neighbours

    assert k(0.05, 0.05, 40) <= k(0.1, 0.05, 40) <= k(0.2, 0.05, 40)
    assert k(0.05, 0.05, 40) <= k(0.05, 0.1, 40) <= k(0.05, 0.3, 40)
    assert k(0.05, 0.05, 20) <= k(0.05, 0.05, 40) <= k(0.05, 0.05, 80)


@pytest.mark.parametrize(
    ("wrong", "match"),
    [
        ({"cohort": 2}, "cohort"),
        ({"corrupt": 1.0}, "corrupt"),
        ({"corrupt": math.nan}, "corrupt"),
        ({"dropout": -0.1}, "dropout"),
        ({"sigma": 0}, "sigma"),
    ],
)
def test_numbers_outside_their_range_are_refused(wrong, match):
    numbers = {"cohort": 100, "corrupt": 0.1, "dropout": 0.1, "adversary": Adversary.ACTIVE}
    with pytest.raises(ValueError, match=match):
        published(**(numbers | wrong))


def test_a_cohort_that_cannot_keep_both_promises_is_refused():
    with pytest.raises(ValueError, match=r"^corrupt 0.333333 and dropout 0.4 .*too few shares"):
        required(50, 1 / 3, 0.4, Adversary.ACTIVE)


@pytest.mark.parametrize("adversary", Adversary)
@pytest.mark.parametrize(
    ("cohort", "least", "neighbours"),
    [(5000, 7, None), (5000, 301, 302), (5000, 1200, 1200), (40, 39, 39), (9, 50, 8)],
)
def test_a_policy_may_ask_for_more_neighbours(cohort, least, neighbours, adversary):
    """As many, or one more to be even; all others where the cohort has no more."""
    bare = at_best(cohort, 0.05, 0.1, adversary)
    graph = at_best(cohort, 0.05, 0.1, adversary, least)
    assert graph.neighbours == (bare.neighbours if neighbours is None else neighbours)
    assert graph.complete is (graph.neighbours == cohort - 1)
    found = bounds(graph, cohort, 0.1, adversary)
    assert min(found.secret, found.connected) >= 40
    assert found.correct >= 30
