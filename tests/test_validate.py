"""Range checks: each refuses what it should, NaN and infinity above all, and names the field."""

from __future__ import annotations

import dataclasses
import importlib
import math
import pkgutil
from collections.abc import Iterator
from typing import Any

import pytest

import pfl_lm
from pfl_lm import validate
from pfl_lm.dp.cohort import CohortRule
from pfl_lm.dp.events import RoundEvent
from pfl_lm.dp.grid import Grid
from pfl_lm.dp.policy import Noise, Participation, Policy
from pfl_lm.phones.fleet import Failures, Fleet, Profile


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize(
    "check",
    [
        validate.positive,
        validate.in_unit,
        validate.below_one,
        validate.above_zero_in_unit,
        lambda **fields: validate.at_least(0, **fields),
        lambda **fields: validate.within(0, 9, **fields),
    ],
)
def test_what_is_no_finite_number_is_refused_everywhere(check, value):
    with pytest.raises(ValueError, match=r"^x = -?(nan|inf) must "):
        check(x=value)


@pytest.mark.parametrize(
    ("check", "good", "bad", "told"),
    [
        (validate.positive, 1e-9, 0.0, "x = 0.0 must be positive and finite"),
        (validate.in_unit, 1, 1.1, "x = 1.1 must lie between 0 and 1"),
        (validate.below_one, 0, 1, r"x = 1 must lie in \[0, 1\)"),
        (validate.above_zero_in_unit, 1, 0, r"x = 0 must lie in \(0, 1\]"),
        (lambda **f: validate.at_least(2, **f), 2, 1, "x = 1 must be at least 2"),
        (lambda **f: validate.one_of(("a", "b"), **f), "a", "c", "x = 'c' must be one of 'a', 'b'"),
    ],
)
def test_a_refusal_names_field_value_and_rule(check, good, bad, told):
    check(x=good)
    check(x=None)  # left out
    with pytest.raises(ValueError, match=told):
        check(y=good, x=bad)


PROFILE = Profile(1.0, 100, 1, 10, 10)
SOUND = (
    RoundEvent("skellam", "zero_out", "poisson", 1.0, rate=0.1),
    CohortRule("rotation", 100, 10, 2),
    Grid(10, 1.0, 8.0, 20),
    Noise("device", "skellam", 0.1),
    Participation("rotation", 2),
    Policy("user", "zero_out", 2.0, 1e-6, 10**6, 5000, 10, Participation("fixed"),
           Noise("server", "gaussian")),
    Failures(),
    PROFILE,
    Fleet("nowhere", {"one": PROFILE}),
)  # fmt: skip


def numbers_of(sound: Any) -> Iterator[tuple[Any, str]]:
    for field in dataclasses.fields(sound):
        value = getattr(sound, field.name)
        if isinstance(value, int | float) and not isinstance(value, bool) and field.name != "round":
            yield sound, field.name


@pytest.mark.parametrize("value", [math.nan, -math.inf, -1.0])
@pytest.mark.parametrize(
    ("sound", "field"),
    [pair for sound in SOUND for pair in numbers_of(sound)],
    ids=lambda part: part if isinstance(part, str) else type(part).__name__,
)
def test_no_number_of_a_policy_a_round_or_a_phone_may_be_nan_or_negative(sound, field, value):
    with pytest.raises((ValueError, OverflowError)):
        dataclasses.replace(sound, **{field: value})


def test_checks_by_hand_have_not_come_back():
    """A loop over field names with a comparison inside is what ``validate`` is for."""
    for module in pkgutil.walk_packages(pfl_lm.__path__, "pfl_lm."):
        spec = importlib.util.find_spec(module.name)
        if spec is None or spec.origin is None or not spec.origin.endswith(".py"):
            continue
        with open(spec.origin, encoding="utf-8") as file:
            text = file.read()
        assert "getattr(self, name) < " not in text, module.name
        assert "<= getattr(self, name) <" not in text, module.name
