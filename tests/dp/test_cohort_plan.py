"""Plans of cohorts: the noise of shipped policies, and what a further join is worth."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from pfl_lm.dp.cohort_plan import People, plan
from pfl_lm.dp.policy import Policy
from pfl_lm.recipes import load

MILLION = People(1_000_000, 1_000_000, 2.0, 1e-6)


@pytest.mark.parametrize("name", ["keyboard_150", "keyboard_10m"])
def test_a_plan_has_the_noise_of_the_shipped_policy(name):
    policy = load(Policy, Path("privacy") / name)
    people = People(policy.population, policy.population, policy.epsilon, policy.delta)
    planned = plan(people, policy.report_goal, policy.rounds)
    assert planned.noise_multiplier == pytest.approx(policy.reviewed.noise_multiplier, rel=1e-4)
    assert planned.joins == policy.participations


@pytest.mark.parametrize("joins", [2, 4, 10])
def test_a_cohort_k_times_as_large_has_the_root_of_k_less_noise_in_its_mean(joins):
    once, often = plan(MILLION, 10_000, 100), plan(MILLION, 10_000 * joins, 100)
    assert (once.joins, often.joins) == (1, joins)
    assert often.noise_multiplier / once.noise_multiplier == pytest.approx(math.sqrt(joins), 0.01)
    assert once.noise_of_mean / often.noise_of_mean == pytest.approx(math.sqrt(joins), 0.01)


def test_who_is_out_of_reach_lets_the_others_join_more_often():
    half = plan(People(1_000_000, 500_000, 2.0, 1e-6), 10_000, 100)
    assert (half.separation, half.joins) == (50, 2)
