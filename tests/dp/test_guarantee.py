"""From policy to guarantee: two adversaries, a sentence, and figures a person has approved."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from pfl_lm.dp.accounting import gaussian
from pfl_lm.dp.accounting.accountant import compose
from pfl_lm.dp.accounting.divergences import DIVERGENCES
from pfl_lm.dp.guarantee import guarantee, stale
from pfl_lm.dp.policy import Noise, Participation, Policy, Reviewed
from pfl_lm.recipes import load

POLICY = partial(
    Policy,
    unit="user",
    neighboring="zero_out",
    epsilon=2.0,
    delta=1e-6,
    population=1_000_000,
    report_goal=5_000,
    rounds=2_000,
)
SKELLAM = Noise("device", "skellam", tolerated_dropout=0.1)
POISSON = Participation("poisson")
ROTATION = Participation("rotation", min_separation=200)


@pytest.mark.parametrize("participation", [POISSON, ROTATION, Participation("fixed")])
@pytest.mark.parametrize(
    "noise", [SKELLAM, Noise("device", "discrete_gaussian", tolerated_dropout=0.1)]
)
def test_device_noise_meets_the_promise(participation, noise):
    policy = POLICY(participation=participation, noise=noise)
    found = guarantee(policy)
    assert 1.99 < found.epsilon <= 2.0
    assert found.epsilon_server == found.epsilon_unamplified == found.epsilon
    assert found.share_multiplier * math.sqrt(4_500) == pytest.approx(found.noise_multiplier)
    assert (
        compose({policy.event(found.noise_multiplier): found.participations}, 1e-6).epsilon <= 2.0
    )


def test_every_acceptable_count_keeps_the_promise():
    """A round opened with any number of reports from the least to the goal costs no more."""
    policy = POLICY(participation=ROTATION, noise=SKELLAM)
    z = guarantee(policy).noise_multiplier
    for reports in (4_500, 4_700, 5_000):
        events = [policy.event(z, reports=reports, dim=50_000, round=r) for r in range(2_000)]
        assert compose(events, policy.delta).epsilon <= 2.0
    below = [policy.event(z, reports=4_000, dim=50_000, round=r) for r in range(2_000)]
    assert compose(below, policy.delta).epsilon > 2.0


def test_central_gaussian_under_rotation_is_the_closed_form():
    noise = Noise("server", "gaussian")
    found = guarantee(POLICY(participation=ROTATION, noise=noise))
    assert found.participations == 10
    exact = gaussian.epsilon(found.noise_multiplier / math.sqrt(10), 1e-6)
    assert found.epsilon == pytest.approx(exact)
    assert found.rho == pytest.approx(10 / (2 * found.noise_multiplier**2))
    assert found.epsilon_server == math.inf
    assert "trusted" in found.statement


def test_dishonest_devices_and_dropouts_are_paid_for_by_each_share():
    plain = guarantee(POLICY(participation=ROTATION, noise=Noise("device", "skellam")))
    careful = guarantee(POLICY(participation=ROTATION, noise=replace(SKELLAM, honest_fraction=0.5)))
    assert careful.noise_multiplier == pytest.approx(plain.noise_multiplier)
    assert careful.share_multiplier == pytest.approx(
        plain.share_multiplier * math.sqrt(5_000 / 2_250)
    )


def test_neighbours_that_differ_more_need_twice_the_noise():
    zero = guarantee(POLICY(participation=ROTATION, noise=SKELLAM))
    other = guarantee(POLICY(participation=ROTATION, noise=SKELLAM, neighboring="replace_one"))
    assert other.noise_multiplier == pytest.approx(2 * zero.noise_multiplier, rel=0.01)


def test_no_noise_guarantees_nothing_and_says_so():
    found = guarantee(POLICY(participation=POISSON, noise=Noise("none", "none"), epsilon=math.inf))
    assert found.epsilon == found.epsilon_server == math.inf
    assert found.noise_multiplier == found.share_multiplier == 0.0
    assert "No differential privacy" in found.statement


def test_the_sentence_states_whom_it_holds_against():
    statement = guarantee(POLICY(participation=POISSON, noise=SKELLAM)).statement
    for part in ("(2.000, 1e-06)-differentially private", "per user", "Skellam",
                 "against everyone", "honest-but-curious server included",
                 "not counted on"):  # fmt: skip
        assert part in statement
    assert statement.endswith(".")
    assert statement.count(". ") == 0


CENTRAL = Noise("server", "gaussian")


@pytest.mark.parametrize("kind", ["poisson", "fixed"])
@pytest.mark.parametrize("accepted", [None, 2.0, 1e6])
def test_secret_coins_need_the_servers_figure_by_name(kind, accepted):
    policy = POLICY(
        participation=Participation(kind), noise=CENTRAL, accepted_server_epsilon=accepted
    )
    with pytest.raises(ValueError, match="accepted_server_epsilon = inf to accept that, or use"):
        guarantee(policy)


def test_an_accepted_figure_that_the_server_exceeds_is_refused():
    rotation = POLICY(participation=ROTATION, noise=SKELLAM, accepted_server_epsilon=1.5)
    with pytest.raises(ValueError, match=r"accepted_server_epsilon is 1\.5"):
        guarantee(rotation)
    assert guarantee(replace(rotation, accepted_server_epsilon=2.0)).epsilon_server <= 2.0
    written = replace(rotation, accepted_server_epsilon=_told(rotation))
    assert guarantee(written).epsilon_server <= written.accepted_server_epsilon
    with pytest.raises(ValueError, match="accepted_server_epsilon must be above 0"):
        replace(rotation, accepted_server_epsilon=math.nan)


def _told(policy: Policy) -> float:
    """Return the figure that the refusal says to write."""
    with pytest.raises(ValueError, match="accepted_server_epsilon") as refused:
        guarantee(policy)
    told = re.search(r"write accepted_server_epsilon = (\S+) ", str(refused.value))
    assert told is not None
    return float(told[1])


def test_the_statement_of_sampling_says_the_larger_figures_first():
    found = guarantee(
        POLICY(participation=POISSON, noise=CENTRAL, accepted_server_epsilon=math.inf)
    )
    places = [found.statement.index(part) for part in ("server is trusted", "ε = ∞",
              "how many reported", "1,601", "(2.000, 1e-06)")]  # fmt: skip
    assert places == sorted(places)
    assert any("how many reported stay hidden" in line for line in found.assumptions)


def test_a_trusted_server_is_named_under_rotation_too():
    statement = guarantee(POLICY(participation=ROTATION, noise=CENTRAL)).statement
    assert statement.startswith("The server is trusted")


def test_narrow_discrete_gaussian_shares_are_refused():
    noise = Noise("device", "discrete_gaussian", tolerated_dropout=0.1, grid_steps=0.3)
    with pytest.raises(ValueError, match="grid_steps or min_dim"):
        guarantee(POLICY(participation=ROTATION, noise=noise, epsilon=300.0))


def test_reviewed_figures_go_stale():
    found = guarantee(POLICY(participation=ROTATION, noise=SKELLAM))
    assert stale(Reviewed(), found) == []
    good = Reviewed(found.noise_multiplier, found.epsilon, found.epsilon_unamplified)
    assert stale(good, found) == []
    (line,) = stale(replace(good, noise_multiplier=found.noise_multiplier * 1.01), found)
    assert "reviewed.noise_multiplier" in line


def test_a_proof_that_is_taken_back_leaves_no_guarantee(monkeypatch):
    """A notebook that corrects its divergence was answered from the wrong one."""
    policy = load(Policy, Path("comparison/central"))
    policy = replace(policy, participation=Participation("rotation", min_separation=200))
    genuine = DIVERGENCES["gaussian"]
    right = guarantee(policy).noise_multiplier

    def wrong(event, moved):
        known = genuine(event, moved)
        return lambda orders: known(orders) / 100

    monkeypatch.setitem(DIVERGENCES, "gaussian", wrong)
    assert guarantee(policy).noise_multiplier < right / 5
    monkeypatch.delitem(DIVERGENCES, "gaussian")
    with pytest.raises(ValueError, match="adds no noise that is accounted for"):
        guarantee(policy)
    monkeypatch.undo()
    assert guarantee(policy).noise_multiplier == right
