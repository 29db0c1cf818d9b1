"""The accountant against tables that nobody here computed, identities, and its refusals."""

from __future__ import annotations

import ast
import csv
import itertools
import math
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pfl_lm.dp.accounting import discrete, renyi
from pfl_lm.dp.accounting.accountant import chance_of_taking_part, compose
from pfl_lm.dp.events import RoundEvent
from tests.dp.reference import noise_multiplier_of_rho

ORACLES = Path(__file__).resolve().parents[4] / "shared" / "oracles"
LOWER = "eps_lower(sound: report must be >=)"
TIGHT = "recommended_upper(tight accountant)"
LOOSE = "eps_rdp(loose valid upper)"


def rows(*groups):
    path = ORACLES / "accounting.csv"
    if not path.is_file():
        why = "needs ../shared (oracle tables), which is absent"
        return [pytest.param(None, marks=pytest.mark.skip(reason=why), id="absent")]
    with path.open(encoding="utf-8", newline="") as lines:
        found = [row for row in csv.DictReader(lines) if row["point"][0] in groups]
    return [pytest.param(row, id=row["point"]) for row in found]


def event(noise_multiplier=1.0, **change):
    base = RoundEvent("gaussian", "zero_out", "none", noise_multiplier)
    return replace(base, **change)


def poisson(noise_multiplier, rate, **change):
    return event(noise_multiplier, sampling="poisson", rate=rate, **change)


def check(found, row):
    slack = 5e-3 if float(row["delta"]) <= 1e-9 else 1e-3
    assert found >= float(row[LOWER]) - slack
    assert not row[TIGHT] or found <= float(row[TIGHT])


@pytest.mark.parametrize("row", rows("A", "B", "C"))
def test_gaussian_rows(row):
    rate = float(row["q"])
    one = event(float(row["noise_multiplier"]))
    if rate < 1:
        one = replace(one, sampling="poisson", rate=rate)
    check(compose({one: int(row["T"])}, float(row["delta"])).epsilon, row)


@pytest.mark.parametrize("row", rows("B", "C"))
def test_renyi_alone_is_sound_too(row):
    one = poisson(float(row["noise_multiplier"]), float(row["q"]))
    found = compose({one: int(row["T"])}, float(row["delta"]), tight=False)
    assert found.accountant in ("Opacus RDP", "analytic Gaussian")
    assert found.epsilon >= float(row[LOWER])


@pytest.mark.parametrize("row", rows("D"))
@pytest.mark.parametrize("neighboring", ["replace_one", "zero_out", "add_remove"])
def test_fixed_size_rows(row, neighboring):
    one = event(
        float(row["noise_multiplier"]),
        sampling="fixed",
        rate=float(row["q"]),
        neighboring=neighboring,
    )
    found = compose({one: int(row["T"])}, float(row["delta"])).epsilon
    if neighboring == "replace_one":
        assert found >= float(row[LOWER])
    assert found <= float(row[LOOSE]) * (1 + 1e-9)


@pytest.mark.parametrize("row", rows("E"))
def test_zcdp_rows(row):
    z = noise_multiplier_of_rho(ast.literal_eval(row["extra"])["rho"])
    check(compose([event(z)], float(row["delta"])).epsilon, row)


@pytest.mark.parametrize("row", rows("H"))
def test_discrete_gaussian_rows(row):
    """One-dimensional integer queries: no rounding, one share."""
    extra, rate = ast.literal_eval(row["extra"]), float(row["q"])
    norm, sigma = float(extra["sens"]), float(extra["sigma"])

    def curve(orders):
        return discrete.discrete_gaussian(orders, norm, norm, sigma, 1, 1)

    once = curve(renyi.ORDERS) if rate == 1 else renyi.amplified_by_poisson(curve, rate)
    assert renyi.epsilon(int(row["T"]) * once, float(row["delta"])) >= float(row[LOWER])


@pytest.mark.parametrize("row", rows("I"))
def test_heterogeneous_rows(row):
    parts = ast.literal_eval(row["extra"])["parts"]
    events = {}
    for z, rate, rounds in parts:
        one = event(z) if rate == 1 else poisson(z, rate)
        events[one] = events.get(one, 0) + rounds
    check(compose(events, float(row["delta"])).epsilon, row)


@pytest.mark.parametrize(
    ("one", "rounds", "delta", "lower", "upper"),
    [
        (event(1.0), 1, 1e-5, 4.37717, 4.37719),
        (event(10.0), 100, 1e-6, 4.88655, 4.88656),
        (poisson(1.0, 0.01), 1000, 1e-5, 1.8232, 1.8565),
        (poisson(0.8, 0.001), 2000, 1e-6, 0.5499, 0.5755),
        (event(1.0, sampling="fixed", rate=0.001, neighboring="replace_one"), 2000, 1e-6, 4.636,
         6.606),
    ],
)  # fmt: skip
def test_textbook_figures_without_the_tables(one, rounds, delta, lower, upper):
    assert lower <= compose({one: rounds}, delta).epsilon <= upper


@given(
    st.floats(1e-3, 3),
    st.floats(1e-6, 0.9),
    st.integers(1, 200),
    st.sampled_from(["poisson", "fixed"]),
    st.sampled_from(["gaussian", "skellam", "discrete_gaussian"]),
)
def test_a_delta_above_the_chance_of_taking_part_covers_all(z, rate, rounds, sampling, mechanism):
    """Total variation: with and without a user who is in no round, outputs are the same."""
    one = event(z, mechanism=mechanism, sampling=sampling, rate=rate, dim=16)
    chance = 1 - (1 - rate) ** rounds
    if chance < 0.99:
        assert compose({one: rounds}, chance + 1e-9, tight=False).epsilon == 0
    assert compose({replace(one, noise_multiplier=0.0): rounds}, 0.999).epsilon == math.inf
    always = replace(one, rate=1.0)
    assert chance_of_taking_part([(one, rounds), (always, 1)]) == 1


ORDERS = st.integers(-100, 100)


@given(
    ORDERS,
    st.integers(-99, 0),
    st.integers(0, 10**9),
    st.integers(-290, -1),
    st.sampled_from(["none", "poisson", "fixed"]),
    st.sampled_from(["gaussian", "skellam", "discrete_gaussian"]),
)
@example(76, 0, 1, -1, "none", "skellam")
@example(100, -1, 10, -6, "fixed", "gaussian")
@example(-100, -1, 10, -6, "poisson", "discrete_gaussian")
@settings(deadline=None, max_examples=40)
def test_numbers_of_any_size_are_answered(z, rate, rounds, delta, sampling, mechanism):
    """ε is a bound or ∞, never an exception, whatever the orders of magnitude."""
    one = event(10.0**z, mechanism=mechanism, sampling=sampling, dim=4)
    one = one if sampling == "none" else replace(one, rate=10.0**rate)
    cost = compose({one: rounds}, 10.0**delta, tight=False)
    assert 0 <= cost.epsilon <= cost.epsilon_unamplified
    assert not math.isnan(cost.epsilon_unamplified)


@pytest.mark.parametrize("z", [0.0402, 0.04, 1e-3, 1e-50])
def test_epsilon_has_no_cliff_where_the_user_is_hardly_in_any_round(z):
    assert compose({poisson(z, 0.01): 10}, 0.1).epsilon == 0
    assert compose({poisson(z, 0.01): 10}, 0.0956).epsilon > 0, "1 − 0.99¹⁰ = 0.09562"


def test_identities():
    assert compose({event(10.0): 100}, 1e-6).epsilon == pytest.approx(
        compose([event(1.0)], 1e-6).epsilon
    )
    assert compose({poisson(2.0, 1.0): 7}, 1e-6).epsilon == compose({event(2.0): 7}, 1e-6).epsilon
    assert compose([], 1e-6).epsilon == 0.0
    assert compose({poisson(1.0, 0.01): 0}, 1e-6).epsilon == 0.0
    assert compose({poisson(1.0, 0.0): 100}, 1e-6).epsilon == 0.0
    assert compose([event(0.0)], 1e-6).epsilon == math.inf
    assert compose([poisson(0.0, 0.01)], 1e-6).epsilon == math.inf
    replaced = event(1.0, neighboring="replace_one")
    assert compose([replaced], 1e-6).epsilon == compose([event(0.5)], 1e-6).epsilon


MECHANISMS = st.sampled_from(["gaussian", "skellam", "discrete_gaussian"])
SAMPLINGS = st.sampled_from(["none", "poisson", "fixed"])


@given(
    MECHANISMS,
    SAMPLINGS,
    st.sampled_from(["zero_out", "replace_one"]),
    st.floats(0.5, 10),
    st.floats(1e-4, 0.5),
    st.integers(1, 1000),
)
def test_epsilon_is_monotone_and_never_above_the_unamplified(
    mechanism, sampling, neighboring, z, rate, rounds
):
    one = RoundEvent(mechanism, neighboring, sampling, z, rate=rate, dim=4096, reports=10)
    if sampling == "none":
        one = replace(one, rate=1.0)

    def cost(one, rounds=rounds, delta=1e-6):
        return compose({one: rounds}, delta, tight=False).epsilon * (1 + 1e-12)

    found = compose({one: rounds}, 1e-6, tight=False)
    assert found.epsilon <= found.epsilon_unamplified
    assert cost(replace(one, noise_multiplier=z * 1.1)) <= cost(one)
    assert cost(one, rounds=rounds + 1) >= found.epsilon
    assert cost(one, delta=1e-7) >= found.epsilon
    if sampling != "none":
        assert cost(replace(one, rate=rate * 1.5)) >= found.epsilon


@given(
    st.lists(
        st.tuples(st.integers(0, 30), st.floats(0.5, 5)), max_size=8, unique_by=lambda pair: pair[0]
    ),
    st.integers(1, 12),
)
def test_rotation_covers_every_user_that_the_separation_allows(rounds, min_separation):
    """Brute force over all sets of rounds that lie far enough apart."""
    events = [
        RoundEvent("gaussian", "zero_out", "rotation", z, min_separation=min_separation, round=r)
        for r, z in rounds
    ]
    worst = 0.0
    for size in range(len(events) + 1):
        for chosen in itertools.combinations(sorted(events, key=lambda e: e.round), size):
            apart = all(b.round - a.round >= min_separation for a, b in itertools.pairwise(chosen))
            if apart:
                worst = max(worst, sum(e.noise_multiplier**-2 for e in chosen))
    found = compose(events, 1e-6)
    assert found.rho is not None
    assert found.rho >= worst / 2 - 1e-12
    if len({z for _, z in rounds}) <= 1:
        assert found.rho == pytest.approx(worst / 2)


def test_published_tree_less_rotation_count():
    """Gboard es-ES: 2,000 rounds, separation 314 (their 313): at most 7 participations."""
    events = [
        RoundEvent("gaussian", "zero_out", "rotation", 7.0, min_separation=314, round=r)
        for r in range(2000)
    ]
    found = compose(events, 1e-10)
    assert found.participations == 7
    assert found.epsilon == found.epsilon_unamplified


@pytest.mark.parametrize("rounds", [[None, None, None], [4, 4, 4]])
def test_rotation_rounds_without_a_number_of_their_own_may_all_be_one_users(rounds):
    one = RoundEvent("gaussian", "zero_out", "rotation", 1.0, min_separation=100)
    assert compose([replace(one, round=r) for r in rounds], 1e-6).participations == 3


@pytest.mark.parametrize(
    ("events", "reason"),
    [
        ([event(mechanism="none")], "mechanism 'none'"),
        ([event(mechanism="laplace")], "laplace"),
        ([event(sampling="shuffled")], "shuffled"),
        ([event(neighboring="event")], "event"),
        ([event(), event(neighboring="replace_one")], "different neighboring"),
        ([event(mechanism="skellam", neighboring="add_remove")], "share of the noise"),
    ],
)
def test_what_is_not_proven_costs_everything(events, reason):
    found = compose(events, 1e-6)
    assert found.epsilon == found.epsilon_unamplified == math.inf
    assert reason in found.assumptions[0]


def test_the_boundary_of_a_poisson_cohort_is_paid_for_in_delta():
    free, paid = poisson(1.0, 0.001), poisson(1.0, 0.001, pivotal_probability=4e-9)
    assert (
        compose({paid: 100}, 1e-6, tight=False).epsilon
        > compose({free: 100}, 1e-6, tight=False).epsilon
    )
    ruined = compose({replace(paid, pivotal_probability=1e-7): 100}, 1e-6)
    assert ruined.epsilon == ruined.epsilon_unamplified


def test_mixed_mechanisms_compose():
    skellam = event(4.0, mechanism="skellam", dim=4096)
    both = compose([skellam, event(4.0)], 1e-6)
    assert both.accountant == "Rényi"
    assert both.epsilon > compose([event(4.0)] * 2, 1e-6).epsilon


def test_amplified_and_unamplified_stand_side_by_side():
    found = compose({poisson(1.0, 0.005): 2000}, 1e-6)
    assert found.accountant == "Opacus PRV"
    assert found.epsilon < 2 < 1000 < found.epsilon_unamplified
    assert found.rho is None
    assert any("own independent coin" in line for line in found.assumptions)


def test_an_event_survives_its_record():
    one = RoundEvent("skellam", "zero_out", "poisson", 1.0, rate=0.01, dim=2048, round=7)
    assert RoundEvent(**asdict(one)) == one
    assert replace(one, round=8) == one


@pytest.mark.parametrize(
    "change",
    [
        {"noise_multiplier": -1.0},
        {"noise_multiplier": math.nan},
        {"noise_multiplier": math.inf},
        {"rate": 1.1},
        {"rate": math.nan},
        {"dim": 0},
        {"reports": 0},
        {"min_separation": 0},
        {"grid_steps": 0.0},
        {"pivotal_probability": 2.0},
    ],
)
def test_impossible_numbers_are_refused(change):
    with pytest.raises(ValueError, match=next(iter(change))):
        event(**change)


@pytest.mark.parametrize("delta", [0.0, 1.0, -1e-6, math.nan])
def test_impossible_deltas_are_refused(delta):
    with pytest.raises(ValueError, match="delta"):
        compose([event()], delta)
