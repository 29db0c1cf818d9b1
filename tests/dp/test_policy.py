"""A policy: what it refuses, and the counts that follow from it."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from scipy import stats

from pfl_lm.dp.policy import Noise, Participation, Policy

KEYBOARD = Policy(
    unit="user",
    neighboring="zero_out",
    epsilon=2.0,
    delta=1e-6,
    population=1_000_000,
    report_goal=5_000,
    rounds=2_000,
    participation=Participation("poisson"),
    noise=Noise("device", "skellam", tolerated_dropout=0.1),
)
ROTATION = replace(KEYBOARD, participation=Participation("rotation", min_separation=200))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"delta": 1e-5}, "delta"),
        ({"delta": 0.0}, "delta"),
        ({"epsilon": 0.0}, "epsilon"),
        ({"epsilon": math.nan}, "epsilon"),
        ({"epsilon": math.inf}, "epsilon must be inf where"),
        ({"noise": Noise("none", "none")}, "epsilon must be inf where"),
        ({"population": 0}, "population"),
        ({"report_goal": 0}, "report_goal"),
        ({"report_goal": 2_000_000}, "report_goal"),
        ({"rounds": 0}, "rounds"),
        ({"neighboring": "add_remove"}, "share of the noise"),
        ({"participation": Participation("rotation", min_separation=500)}, "population of 2500000"),
    ],
)
def test_refusals_name_the_field(change, message):
    with pytest.raises(ValueError, match=message):
        replace(KEYBOARD, **change)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Participation("rotation"), "min_separation"),
        (lambda: Participation("rotation", min_separation=0), "min_separation"),
        (lambda: Participation("poisson", min_separation=3), "min_separation"),
        (lambda: Noise("device", "gaussian"), "kind"),
        (lambda: Noise("server", "skellam"), "kind"),
        (lambda: Noise("none", "gaussian"), "kind"),
        (lambda: Noise("device", "skellam", tolerated_dropout=1.0), "tolerated_dropout"),
        (lambda: Noise("device", "skellam", honest_fraction=0.0), "honest_fraction"),
        (lambda: Noise("server", "gaussian", tolerated_dropout=0.1), "tolerated_dropout"),
        (lambda: Noise("device", "skellam", grid_steps=0.0), "grid_steps"),
        (lambda: Noise("device", "skellam", min_dim=0), "min_dim"),
    ],
)
def test_parts_refuse_what_makes_no_sense(build, message):
    with pytest.raises(ValueError, match=message):
        build()


def test_counts():
    assert (KEYBOARD.rate, KEYBOARD.participations) == (0.005, 2_000)
    assert (KEYBOARD.least_reports, KEYBOARD.most_reports) == (4_500, None)
    assert (ROTATION.least_reports, ROTATION.most_reports) == (4_500, 5_000)
    honest = replace(KEYBOARD, noise=replace(KEYBOARD.noise, honest_fraction=0.9))
    assert honest.honest_reports == 4_050
    central = replace(KEYBOARD, noise=Noise("server", "gaussian"))
    assert (central.least_reports, central.honest_reports) == (0, 1)


@pytest.mark.parametrize(
    ("rounds", "separation", "most"), [(1, 5, 1), (5, 5, 1), (6, 5, 2), (2000, 200, 10)]
)
def test_rotation_counts_by_the_difference_of_rounds(rounds, separation, most):
    policy = replace(
        ROTATION, rounds=rounds, participation=Participation("rotation", min_separation=separation)
    )
    assert policy.participations == most == len(range(0, rounds, separation))


@pytest.mark.parametrize("kind", ["poisson", "fixed"])
@pytest.mark.parametrize("dropout", [0.0, 0.1, 0.4])
def test_sampling_beside_a_least_count_amplifies_nothing(kind, dropout):
    """At a tolerated attendance one report is likely to decide whether a round opens."""
    noise = Noise("device", "skellam", tolerated_dropout=dropout)
    policy = replace(KEYBOARD, participation=Participation(kind), noise=noise)
    attendance = policy.least_reports / policy.report_goal
    decides = stats.binom.pmf(
        policy.least_reports - 1, policy.population - 1, policy.rate * attendance
    )
    assert decides > 1000 * policy.delta
    assert not policy.amplified
    assert policy.event(1.0).rate == 1.0


def test_sampling_amplifies_where_every_round_opens():
    central = replace(KEYBOARD, noise=Noise("server", "gaussian"))
    assert central.amplified
    assert central.event(1.0).rate == 0.005


def test_events_count_the_noise_that_came():
    planned = ROTATION.event(1.5)
    assert planned.noise_multiplier == 1.5
    assert planned.sampling == "rotation"
    full = ROTATION.event(1.5, reports=5_000, dim=10**6, round=3)
    assert full.noise_multiplier == pytest.approx(1.5 * math.sqrt(5_000 / 4_500))
    assert (full.dim, full.round) == (10**6, 3)
    short = ROTATION.event(1.5, reports=1_125)
    assert short.noise_multiplier == pytest.approx(0.75)
    assert ROTATION.event(1.5, reports=0).noise_multiplier == 0.0


def test_a_poisson_count_is_nobodys_gain():
    """How many happened to come is chance; more than the least is never counted."""
    assert KEYBOARD.event(1.0, reports=5_100).noise_multiplier == 1.0
    assert KEYBOARD.event(1.0, reports=4_500).noise_multiplier == 1.0
    assert KEYBOARD.event(1.0, reports=1_125).noise_multiplier == 0.5
