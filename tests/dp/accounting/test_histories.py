"""Runs and questions on the same people compose; a stream of correlated noise with all others."""

from __future__ import annotations

import math
from dataclasses import asdict, replace
from itertools import pairwise

import numpy as np
import pytest

from pfl_lm.audit.accounting.methods import quick_epsilon
from pfl_lm.audit.accounting.round_groups import RoundGroup
from pfl_lm.audit.ledger.population import groups_of
from pfl_lm.dp.accounting import gaussian
from pfl_lm.dp.accounting.accountant import compose, compose_all
from pfl_lm.dp.accounting.divergences import known_divergence
from pfl_lm.dp.accounting.streams import stream_sensitivity
from pfl_lm.dp.correlated.sensitivity import strategy_of
from pfl_lm.dp.events import RoundEvent
from pfl_lm.dp.mechanisms import MECHANISMS

DELTA, ROUNDS, SEPARATION = 1e-6, 6, 2
STREAM = RoundEvent(
    "blt",
    "zero_out",
    "rotation",
    3.0,
    min_separation=SEPARATION,
    stream=MECHANISMS["blt"].planned(ROUNDS, SEPARATION, 3),
)
GAUSSIAN = RoundEvent("gaussian", "zero_out", "rotation", 4.0, min_separation=SEPARATION)
SKELLAM = replace(GAUSSIAN, mechanism="skellam", dim=4096)


def rounds(event: RoundEvent, count: int = ROUNDS) -> list[RoundEvent]:
    return [replace(event, round=number) for number in range(count)]


def epsilon(*histories: list[RoundEvent]) -> float:
    return compose_all(histories, DELTA).epsilon


def multiplier(*squares: float) -> float:
    """Return the noise of one Gaussian release that moves by these squared distances together."""
    return sum(squares) ** -0.5


def test_one_history_costs_what_it_did() -> None:
    for event in (GAUSSIAN, SKELLAM, STREAM):
        assert compose_all([rounds(event)], DELTA) == compose(rounds(event), DELTA)
    assert compose_all([], DELTA).epsilon == 0.0


def test_rounds_of_a_rotation_whose_payloads_differ_are_one_rotation() -> None:
    """A user who is in three rounds of six is charged for three, each at the smallest payload."""
    sizes = [4096, 1024, 9000, 2048, 4096, 1024]
    layers = [replace(event, dim=dim) for event, dim in zip(rounds(SKELLAM), sizes, strict=True)]
    smallest = rounds(replace(SKELLAM, dim=1024))
    assert epsilon(layers) == epsilon(smallest)
    assert compose(layers, DELTA).participations == 3
    debits = [{"event": asdict(event), "round": event.round} for event in layers]
    assert quick_epsilon(groups_of(debits), DELTA) == pytest.approx(epsilon(smallest), rel=1e-3)


@pytest.mark.parametrize("mechanism", ["skellam", "discrete_gaussian"])
@pytest.mark.parametrize("noise", [0.5, 2.4, 10.0])
def test_the_same_noise_on_fewer_coordinates_costs_no_less(mechanism: str, noise: float) -> None:
    orders = np.array([1.01, 1.5, 2, 4, 16, 64, 1024])
    event = RoundEvent(mechanism, "zero_out", "none", noise, reports=10)
    costs = [
        known_divergence(replace(event, dim=dim))(orders)
        for dim in (1, 2, 5, 64, 100, 848, 1024, 2232, 10**5, 10**7)
    ]
    assert all((more <= fewer * (1 + 1e-12)).all() for fewer, more in pairwise(costs))


def test_a_stream_and_independent_rounds_are_one_gaussian_release() -> None:
    moved = stream_sensitivity(STREAM)
    exact = gaussian.epsilon(multiplier((moved / 3) ** 2, 3 / 4**2), DELTA)
    cost = compose_all([rounds(STREAM), rounds(GAUSSIAN)], DELTA)
    assert exact < cost.epsilon < exact * (1 + 1e-6)
    assert cost.participations == 6
    assert cost.rho == pytest.approx((moved / 3) ** 2 / 2 + 3 / (2 * 4**2), rel=1e-9)


def test_no_way_to_take_part_exceeds_the_composed_cost() -> None:
    """Rows of Cx with unit noise, and plain rounds beside them: the joint shift of every user."""
    strategy = strategy_of(STREAM.stream)
    column = strategy.coefficients(ROUNDS)
    matrix = np.array([[column[i - j] if i >= j else 0 for j in range(ROUNDS)] for i in range(6)])
    bound = epsilon(rounds(STREAM), rounds(GAUSSIAN))
    worst = 0.0
    for pattern in range(1 << ROUNDS):
        taken = [r for r in range(ROUNDS) if pattern >> r & 1]
        if any(b - a < SEPARATION for a, b in pairwise(taken)):
            continue
        for signs in ([1.0] * len(taken), [(-1.0) ** i for i in range(len(taken))]):
            shift = matrix[:, taken] @ np.array(signs) / 3.0
            squared = float(shift @ shift) + len(taken) / 4.0**2
            if squared:
                worst = max(worst, gaussian.epsilon(squared**-0.5, DELTA))
    assert 0.9 * bound < worst <= bound


def test_two_streams_with_the_same_numbers_are_two() -> None:
    moved = stream_sensitivity(STREAM)
    exact = gaussian.epsilon(multiplier(2 * (moved / 3) ** 2), DELTA)
    assert exact < epsilon(rounds(STREAM), rounds(STREAM)) < exact * (1 + 1e-6)
    assert compose([*rounds(STREAM), *rounds(STREAM)], DELTA).epsilon == math.inf


def test_a_stream_and_discrete_noise_compose_in_renyi_divergence() -> None:
    alone = (epsilon(rounds(STREAM)), epsilon(rounds(SKELLAM)))
    both = epsilon(rounds(STREAM), rounds(SKELLAM))
    assert max(alone) < both < math.inf
    # Both are nearly Gaussian, so the joint cost is nearly that of one release.
    moved = stream_sensitivity(STREAM)
    near = gaussian.epsilon(multiplier((moved / 3) ** 2, 3 / 4**2), DELTA)
    assert near < both < 1.2 * near
    groups = [
        RoundGroup("gaussian", "zero_out", "none", 3 / moved, 1),
        RoundGroup("skellam", "zero_out", "none", 4.0, 3, dim=4096),
    ]
    assert both == pytest.approx(quick_epsilon(groups, DELTA), rel=2e-2)


def test_rounds_of_different_neighbours_cost_everything_to_both_accountants() -> None:
    mixed = [rounds(GAUSSIAN), rounds(replace(GAUSSIAN, neighboring="replace_one"))]
    assert compose_all(mixed, DELTA).epsilon == math.inf
    groups = [
        RoundGroup("gaussian", neighbours, "none", 4.0, 3)
        for neighbours in ("zero_out", "replace_one")
    ]
    assert quick_epsilon(groups[0], DELTA) < math.inf == quick_epsilon(groups, DELTA)


def test_each_history_counts_its_own_rounds() -> None:
    short = rounds(GAUSSIAN, SEPARATION)  # one user in one of them
    cost = compose_all([short, short, rounds(replace(GAUSSIAN, noise_multiplier=9.0), 1)], DELTA)
    exact = gaussian.epsilon(multiplier(2 / 4**2, 1 / 9**2), DELTA)
    assert exact <= cost.epsilon < exact * (1 + 1e-6)
    assert cost.participations == 3


def test_what_is_not_proven_in_one_history_costs_everything() -> None:
    broken = [*rounds(STREAM), replace(GAUSSIAN, round=ROUNDS)]
    assert epsilon(rounds(SKELLAM), broken) == math.inf
    added = replace(GAUSSIAN, neighboring="add_remove")
    assert epsilon(rounds(GAUSSIAN), rounds(added)) == math.inf
    cost = compose_all([rounds(GAUSSIAN), rounds(replace(GAUSSIAN, mechanism="?"))], DELTA)
    assert cost.epsilon == math.inf
    assert "'?'" in cost.assumptions[0]
    with pytest.raises(ValueError, match="strictly between"):
        compose_all([rounds(GAUSSIAN)], 1.0)
