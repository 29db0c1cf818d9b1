"""A stream of correlated noise costs one Gaussian release, and nothing that is not proven."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, replace

import numpy as np
import pytest

from pfl_lm.dp.accounting import gaussian
from pfl_lm.dp.accounting.accountant import compose
from pfl_lm.dp.accounting.streams import stream_sensitivity
from pfl_lm.dp.correlated.sensitivity import sensitivity, strategy_of
from pfl_lm.dp.correlated.strategy import choose
from pfl_lm.dp.correlated.stream import Stream
from pfl_lm.dp.events import RoundEvent, StreamPlan
from pfl_lm.dp.guarantee import guarantee
from pfl_lm.dp.policy import Noise, Participation, Policy
from pfl_lm.dp.sampler.random_bits import reproducible_bits
from pfl_lm.streams import key

KINDS = ("blt", "banded", "banded_inverse_root", "tree")
DELTA = 1e-6


def policy(kind: str = "blt", rounds: int = 12, separation: int = 5, **changes) -> Policy:
    participation = Participation("rotation", separation, changes.pop("most", None))
    settings = {
        "unit": "user",
        "neighboring": "zero_out",
        "epsilon": 2.0,
        "delta": DELTA,
        "population": 1_000_000,
        "report_goal": 5_000,
        "rounds": rounds,
        "participation": participation,
        "noise": Noise("server", kind),
    }
    return Policy(**settings | changes)


def events(chosen: Policy, z: float = 3.0) -> list[RoundEvent]:
    return [chosen.event(z, round=r) for r in range(chosen.rounds)]


@pytest.mark.parametrize("kind", KINDS)
def test_a_stream_costs_one_release_at_noise_over_sensitivity(kind):
    chosen = policy(kind)
    listed = events(chosen)
    worst = stream_sensitivity(listed[0])
    cost = compose(listed, DELTA)
    exact = gaussian.epsilon(3.0 / worst, DELTA)
    assert exact < cost.epsilon < exact * (1 + 1e-6)  # the lattice of its rounds is counted
    assert cost.rho == pytest.approx(worst**2 / 18, rel=1e-12)
    assert cost.participations == 3
    # Not all rounds, another order: no more; the least noise counts.
    assert compose(listed[3:5], DELTA).epsilon == cost.epsilon
    assert compose(listed[::-1], DELTA).epsilon == cost.epsilon
    noisier = [*listed[:-1], replace(listed[-1], noise_multiplier=4.0)]
    assert compose(noisier, DELTA).epsilon == cost.epsilon
    quieter = [*listed[:-1], replace(listed[-1], noise_multiplier=2.0)]
    assert compose(quieter, DELTA).epsilon == compose(events(chosen, 2.0), DELTA).epsilon
    twice = [replace(event, neighboring="replace_one") for event in listed]
    exact = gaussian.epsilon(1.5 / worst, DELTA)
    assert exact < compose(twice, DELTA).epsilon < exact * (1 + 1e-3)
    assert compose([], DELTA).epsilon == 0.0


@pytest.mark.parametrize("kind", KINDS)
def test_noise_follows_from_the_policy_and_meets_it(kind):
    found = guarantee(policy(kind))
    plain = guarantee(policy("gaussian", separation=12))
    assert 0.9999 * 2.0 <= found.epsilon <= 2.0
    assert found.noise_multiplier == pytest.approx(
        found.sensitivity * plain.noise_multiplier, rel=1e-4
    )
    assert found.epsilon_server == math.inf
    assert found.statement.startswith("The server is trusted: it adds the noise and sees each sum")
    assert "correlated" in found.statement
    assert any("its state stays secret" in line for line in found.assumptions)
    assert found.stream == policy(kind).event(1.0).stream


def doctored(listed: list[RoundEvent]) -> dict[str, list[RoundEvent]]:
    stream = listed[0].stream
    assert stream is not None
    other = replace(stream, weights=(*stream.weights[:-1], 0.9 * stream.weights[-1]))
    plain = RoundEvent("gaussian", "zero_out", "rotation", 3.0, min_separation=5, round=11)
    last = listed[-1]
    return {
        "other numbers in mid-run": [*listed[:-1], replace(last, stream=other)],
        "another kind of noise": [*listed[:-1], plain],
        "another separation": [*listed[:-1], replace(last, min_separation=4)],
        "more participations": [*listed[:-1], replace(last, max_participations=1)],
        "a round twice": [*listed, last],
        "a round beyond the plan": [*listed[:-1], replace(last, round=12)],
        "a round without a number": [*listed[:-1], replace(last, round=None)],
        "poisson": [replace(event, sampling="poisson", rate=0.1) for event in listed],
        "everybody": [replace(event, sampling="none") for event in listed],
        "no stream": [replace(event, stream=None) for event in listed],
        "a stream of independent noise": [replace(event, mechanism="gaussian") for event in listed],
        "an unknown strategy": [
            replace(event, stream=replace(stream, kind="magic")) for event in listed
        ],
        "impossible numbers": [
            replace(event, stream=replace(stream, decays=(2.0, 0.5))) for event in listed
        ],
        "no noise": [*listed[:-1], replace(last, noise_multiplier=0.0)],
    }


@pytest.mark.parametrize("name", doctored(events(policy())))
def test_what_is_not_proven_costs_everything(name):
    assert compose(doctored(events(policy()))[name], DELTA).epsilon == math.inf


def test_more_rounds_than_planned_cost_everything():
    event = policy().event(3.0)
    assert compose({event: 12}, DELTA).epsilon < math.inf
    assert compose({event: 13}, DELTA).epsilon == math.inf


@pytest.mark.parametrize("kind", KINDS)
def test_an_event_goes_through_json_and_back(kind):
    event = policy(kind).event(3.0, round=4)
    again = RoundEvent(**json.loads(json.dumps(asdict(event))))
    assert again == event
    assert hash(again) == hash(event)


def test_a_device_that_counts_its_rounds_costs_less():
    free, counted = policy(rounds=12, separation=2), policy(rounds=12, separation=2, most=2)
    assert (free.participations, counted.participations) == (6, 2)
    assert guarantee(counted).noise_multiplier < guarantee(free).noise_multiplier
    plain = policy("gaussian", separation=2, most=2)
    listed = [plain.event(3.0, round=r) for r in range(12)]
    assert compose(listed, DELTA).participations == 2


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("participation", [Participation("poisson"), Participation("fixed")])
def test_a_policy_without_rotation_is_refused_by_its_field(kind, participation):
    with pytest.raises(ValueError, match=r"participation\.kind = .* write kind = \"rotation\""):
        policy(kind, participation=participation)


def test_a_policy_with_correlated_noise_at_devices_is_refused():
    with pytest.raises(ValueError, match="kind must be"):
        Noise("device", "blt")


def test_the_published_blt_costs_what_is_published():
    decays = (0.9999999999921251, 0.9944453083640997, 0.8985923474607591, 0.4912001418098778)
    scales = (0.0070314825502323835, 0.10613806907600574, 0.1898159060327625, 0.1966594748073734)
    plan = StreamPlan("blt", 100, scales, decays)
    event = RoundEvent(
        "blt", "zero_out", "rotation", 1.0, min_separation=50, stream=plan, max_participations=2
    )
    cost = compose({event: 100}, DELTA)
    assert cost.rho == pytest.approx(3.17226586, abs=1e-8)
    assert sensitivity(plan, 50) == pytest.approx(math.sqrt(2 * 3.17226586), abs=1e-8)


@pytest.mark.parametrize("kind", ["blt", "banded"])
def test_numbers_that_a_search_finds_are_few_digits_and_the_same_again(kind):
    first = choose(kind, 40, 8, 5)
    choose.cache_clear()
    assert choose(kind, 40, 8, 5) == first
    gaps = (1 - decay for decay in first.decays)
    for number in (*first.weights, *gaps):
        assert number == pytest.approx(float(f"{number:.4e}"), rel=1e-10)


def test_a_million_users_for_150_rounds():
    """RMSE of the noise on the prefix sums: at most 5.6 clip norms at an unamplified ε = 2.

    Central Gaussian noise amplified by secret Poisson coins has 6.3.
    """
    found = guarantee(policy("blt", rounds=150, separation=200))
    assert found.epsilon_unamplified == found.epsilon <= 2.0
    assert found.stream is not None
    errors = strategy_of(found.stream).prefix_errors(150)
    stated = found.noise_multiplier * math.sqrt(float(np.mean(errors)))
    assert stated <= 5.6
    # And so it is in what the running code adds, to coordinates that travel in every round. One
    # that travels in every tenth round alone has the noise of 15 rounds in a row.
    dim, often = 600, 400
    stream = Stream(strategy_of(found.stream), 150, found.sensitivity, own_time=True)
    state, noise = stream.begin(dim), np.zeros((150, dim))
    for round in range(150):
        places = np.arange(dim if round % 10 == 0 else often)
        noise[round, places], state = stream.release(
            state, np.zeros(len(places)), round=round, clip_norm=1.0, places=places,
            noise_multiplier=found.noise_multiplier, bits=reproducible_bits(key(1, "rmse", round)),
        )  # fmt: skip
    prefixes = np.cumsum(noise, axis=0)
    assert np.sqrt((prefixes[:, :often] ** 2).mean()) == pytest.approx(stated, rel=0.05)
    rarely = found.noise_multiplier * math.sqrt(float(np.mean(errors[:15])))
    assert np.sqrt((prefixes[::10, often:] ** 2).mean()) == pytest.approx(rarely, rel=0.1)
