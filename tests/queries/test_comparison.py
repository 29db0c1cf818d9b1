"""What phones report of two models, the intervals that follow, and how often the rule is wrong."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pfl_lm.queries.comparison import (
    PRIMARY,
    RANGES,
    Estimate,
    Measured,
    answer,
    comparison_query,
    error_of,
    estimates,
    least_phones,
    measure,
    users_needed,
    weights,
)
from pfl_lm.queries.launch_rule import LaunchQuestion, decide, plan

USERS, DEVIATION, RUNS = 4_000, 8.0, 400
numbers = st.floats(-1e9, 1e9) | st.sampled_from([math.nan, math.inf, -math.inf])


def sums_of(gains: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Return noisy sums of users whose measures all differ alike, by float64[n] in log-loss."""
    count, by_measure = weights()
    cells = [count * len(gains)]
    for name in RANGES:
        x = np.clip(gains / RANGES[PRIMARY], -1, 1)
        w, v = by_measure[name]
        cells += [w * x.sum(), v * (x * x).sum()]
    return np.array(cells) + random.normal(0, DEVIATION, len(cells))


class TestAnswer:
    @given(st.lists(numbers, min_size=len(RANGES), max_size=len(RANGES)))
    def test_it_is_accepted_and_no_longer_than_the_norm(self, values: list[float]) -> None:
        query = comparison_query(1)
        given = answer(dict(zip(RANGES, values, strict=True)))
        assert query.refusal(given) is None
        assert np.linalg.norm(query.vectors([given])[0]) <= query.norm * (1 + 1e-6)

    def test_the_weights_spend_the_whole_norm(self) -> None:
        count, by_measure = weights()
        squares = count**2 + sum(w**2 + v**2 for w, v in by_measure.values())
        assert squares == pytest.approx(1)

    def test_a_phone_without_text_says_nothing(self) -> None:
        assert not len(answer(None).cells)


class TestIntervals:
    @pytest.mark.parametrize(("mean", "spread"), [(0.0, 0.0), (0.01, 0.1), (-0.02, 0.3)])
    def test_they_hold_in_95_of_100_runs(self, mean: float, spread: float) -> None:
        random = np.random.default_rng(1)
        held = 0
        for _ in range(RUNS):
            found = estimates(sums_of(random.normal(mean, spread, USERS), random), DEVIATION)
            low, high = found[PRIMARY].interval(0.95)
            held += low <= mean <= high
        # Clipping at ±0.5 nats moves the mean of the widest case by less than its error.
        assert held >= 0.95 * RUNS - 3 * math.sqrt(RUNS * 0.05 * 0.95)

    def test_the_error_to_expect_is_the_error_that_comes(self) -> None:
        random = np.random.default_rng(2)
        values = [
            estimates(sums_of(random.normal(0, 0.1, USERS), random), DEVIATION)[PRIMARY].value
            for _ in range(RUNS)
        ]
        assert np.std(values) == pytest.approx(error_of(0.1, USERS, DEVIATION), rel=0.15)

    def test_too_few_phones_tell_nothing(self) -> None:
        random = np.random.default_rng(3)
        assert estimates(sums_of(np.zeros(20), random), DEVIATION) is None


class TestRule:
    question = LaunchQuestion(alpha=0.05, gain=0.02)

    def verdicts(self, mean: float, spread: float) -> list[str]:
        random = np.random.default_rng(4)
        return [
            decide(
                self.question,
                measure(sums_of(random.normal(mean, spread, USERS), random), DEVIATION),
                DEVIATION,
            ).verdict
            for _ in range(RUNS)
        ]

    @pytest.mark.parametrize("spread", [0.0, 0.1])
    def test_equal_models_are_hardly_ever_launched(self, spread: float) -> None:
        launched = self.verdicts(0.0, spread).count("launch") / RUNS
        assert launched <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / RUNS)

    def test_a_model_that_is_worth_it_is_hardly_ever_rejected(self) -> None:
        rejected = self.verdicts(0.02, 0.1).count("do not launch") / RUNS
        assert rejected <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / RUNS)

    def test_a_much_better_model_is_launched_and_a_worse_one_rejected(self) -> None:
        assert self.verdicts(0.05, 0.1).count("launch") > 0.99 * RUNS
        assert self.verdicts(-0.05, 0.1).count("do not launch") > 0.99 * RUNS

    def test_enough_phones_are_enough(self) -> None:
        needed = users_needed(0.1, 0.02, DEVIATION, 1.645 + 1.2816)
        assert error_of(0.1, needed, DEVIATION) * (1.645 + 1.2816) == pytest.approx(0.02, rel=1e-3)

    def test_too_few_phones_say_how_many_it_takes(self) -> None:
        random = np.random.default_rng(5)
        sums = sums_of(random.normal(0.01, 0.1, 900), random)
        decision = decide(self.question, measure(sums, DEVIATION), DEVIATION)
        assert decision.verdict == "not enough phones"
        assert decision.phones_needed > 900

    def test_a_candidate_that_is_worse_by_another_measure_is_rejected(self) -> None:
        by_measure = weights()[1]
        sums = sums_of(np.full(USERS, 0.1), np.random.default_rng(6))
        place = 1 + 2 * list(RANGES).index("top-3")
        sums[place] = -0.2 * by_measure["top-3"][0] * USERS
        decision = decide(self.question, measure(sums, DEVIATION), DEVIATION)
        assert decision.verdict == "do not launch"
        assert "top-3" in decision.reason

    def test_the_plan_states_its_error_rates_before_it_asks(self) -> None:
        stated = plan(self.question, 100_000, DEVIATION)
        assert "launched with chance 5% at most" in stated
        assert "is launched with chance 100%" in stated

    def test_stated_chances_are_never_rounded(self) -> None:
        stated = plan(replace(self.question, alpha=1e-4, power=0.999), 100_000, DEVIATION)
        assert "no better is launched with chance 0.01% at most" in stated
        assert "A chance of 99.9% takes" in stated

    def test_phones_that_are_too_few_to_be_counted_are_promised_nothing(self) -> None:
        rule = replace(self.question, gain=0.5, spread=0.01)
        stated = plan(rule, least_phones(DEVIATION) - 1, DEVIATION)
        assert "too few to measure anything" in stated
        assert "is launched with chance" not in stated
        assert users_needed(0.01, 0.5, DEVIATION, 2.93) > least_phones(DEVIATION)

    def test_phones_that_suffice_are_not_asked_for_again(self) -> None:
        found = dict.fromkeys(RANGES, Estimate(0.0, 0.1, 0.1))
        found[PRIMARY] = Estimate(0.01, 0.0065, 0.1)
        decision = decide(self.question, Measured(found), DEVIATION)
        assert decision.verdict == "not enough phones"
        assert decision.phones_needed is None
        assert "though so many tell a gain of 0.02 nats with a chance of 90%" in decision.reason

    @pytest.mark.parametrize(
        "change", [{"alpha": 0.0}, {"gain": 0.0}, {"gain": 0.51}, {"power": 1.0}]
    )
    def test_an_impossible_rule_is_refused(self, change: dict) -> None:
        with pytest.raises(ValueError, match=next(iter(change))):
            LaunchQuestion(**change)
