"""From ε to noise: never too little, hardly too much."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pfl_lm.dp.accounting.accountant import compose
from pfl_lm.dp.accounting.calibration import noise_multiplier
from pfl_lm.dp.events import RoundEvent


@given(
    st.sampled_from(["gaussian", "skellam", "discrete_gaussian"]),
    st.sampled_from(["none", "fixed"]),
    st.floats(0.05, 20),
    st.integers(1, 500),
    st.floats(1e-10, 1e-4),
)
@settings(max_examples=15)
def test_the_noise_meets_the_budget_and_a_little_less_does_not(
    mechanism, sampling, epsilon, rounds, delta
):
    event = RoundEvent(mechanism, "zero_out", sampling, 0.0, rate=0.01, dim=4096, reports=8)
    z = noise_multiplier(event, rounds, epsilon, delta)

    def cost(z):
        return compose({replace(event, noise_multiplier=z): rounds}, delta).epsilon

    assert cost(z) <= epsilon < cost(z * (1 - 2e-5))


def test_textbook_figure():
    """Balle & Wang 2018: ε = 1, δ = 1e-5 need σ = 3.7306."""
    found = noise_multiplier(RoundEvent("gaussian", "zero_out", "none", 0.0), 1, 1.0, 1e-5)
    assert found == pytest.approx(3.7306, abs=1e-4)


def test_published_poisson_setting():
    """pfl-research on StackOverflow: ε = 2, δ = 1e-6, q = 0.005, 2,000 rounds need 0.864."""
    event = RoundEvent("gaussian", "zero_out", "poisson", 0.0, rate=0.005)
    found = noise_multiplier(event, 2000, 2.0, 1e-6)
    assert 0.8635 <= found <= 0.868
    assert compose({replace(event, noise_multiplier=found): 2000}, 1e-6).epsilon <= 2.0


def test_a_budget_without_end_or_a_round_without_users_needs_no_noise():
    event = RoundEvent("gaussian", "zero_out", "poisson", 0.0, rate=0.01)
    assert noise_multiplier(event, 10, math.inf, 1e-6) == 0.0
    assert noise_multiplier(event, 0, 1.0, 1e-6) == 0.0
    assert noise_multiplier(replace(event, rate=0.0), 10, 1.0, 1e-6) == 0.0


@pytest.mark.parametrize("epsilon", [0.0, -1.0, math.nan])
def test_impossible_budgets_are_refused(epsilon):
    with pytest.raises(ValueError, match="epsilon"):
        noise_multiplier(RoundEvent("gaussian", "zero_out", "none", 0.0), 1, epsilon, 1e-6)


def test_what_no_noise_can_reach_is_refused_with_the_reason():
    event = RoundEvent("skellam", "add_remove", "none", 0.0)
    with pytest.raises(ValueError, match="share of the noise"):
        noise_multiplier(event, 1, 1.0, 1e-6)


def test_a_budget_below_what_any_noise_costs_is_refused_with_what_to_change():
    event = RoundEvent("gaussian", "zero_out", "none", 0.0)
    with pytest.raises(ValueError, match="larger epsilon, a larger delta or fewer rounds"):
        noise_multiplier(event, 10, 1e-12, 1e-300)


@pytest.mark.parametrize("sampling", ["poisson", "fixed"])
def test_a_delta_that_any_noise_meets_is_refused(sampling):
    """At 1 − 0.99¹⁰ = 0.0956 a user's absence is the whole guarantee, and no noise is derived."""
    event = RoundEvent("gaussian", "zero_out", sampling, 0.0, rate=0.01)
    with pytest.raises(ValueError, match=r"at least 0\.0956, the chance .* smaller delta"):
        noise_multiplier(event, 10, 1.0, 0.1)
