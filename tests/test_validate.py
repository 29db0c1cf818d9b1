"""Range checks: each refuses what it should, NaN and infinity above all, and names the field."""

from __future__ import annotations

import dataclasses
import importlib
import math
import pkgutil
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import pfl_lm
from pfl_lm import validate
from pfl_lm.dp.cohort import CohortRule
from pfl_lm.dp.events import RoundEvent
from pfl_lm.dp.grid import Grid
from pfl_lm.dp.policy import Noise, Participation, Policy
from pfl_lm.models.spec import LoraSpec
from pfl_lm.phones.fleet import Failures, Fleet, Profile
from pfl_lm.recipes import load
from pfl_lm.recipes.plain import dataclass_of
from pfl_lm.run.scenario import Scenario


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


CHATS = load(Scenario, Path("chat_partial"))
RECORDS = [
    CHATS,
    CHATS.population,
    CHATS.evaluation,
    CHATS.training,
    CHATS.payload,
    CHATS.server,
    CHATS.server.average,
    CHATS.model,
    LoraSpec(4),
    load(Policy, Path("keyboard_150")),
    load(Policy, Path("keyboard_150")).devices,
    load(Policy, Path("keyboard_150")).reviewed,
    load(Policy, Path("keyboard_150_adaptive")).clipping,
    Participation("rotation", min_separation=200),
    Noise("device", "skellam"),
]


def test_every_table_of_a_scenario_and_a_policy_is_among_these():
    held = {type(record) for record in RECORDS}
    for kind in held:
        for expected in typing.get_type_hints(kind).values():
            assert dataclass_of(expected) in {None, *held}


@pytest.mark.parametrize(
    ("record", "field"),
    [(record, field.name) for record in RECORDS for field in dataclasses.fields(record)],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_a_program_cannot_state_a_value_of_another_type(record, field):
    """``dataclasses.replace`` asks no reader; a choice misspelt ran as another one in silence."""
    for wrong in (object(), b"sgd", 1j):
        with pytest.raises(ValueError, match=f"^{field} = .* (is refused: expected|must be one) "):
            dataclasses.replace(record, **{field: wrong})
    now = getattr(record, field)
    for wrong in {int: [True, 2.5, "2"], float: [True, "2"], bool: [1, "no"]}.get(type(now), []):
        with pytest.raises(ValueError, match=rf"{field} = .*(is refused: expected|must be one)"):
            dataclasses.replace(record, **{field: wrong})


def test_numbers_of_numpy_become_pythons():
    record = dataclasses.replace(
        CHATS, rounds=np.int16(3), clip_norm=np.float32(0.5), reproducible=np.True_
    )
    found = [(type(x), x) for x in (record.rounds, record.clip_norm, record.reproducible)]
    assert found == [(int, 3), (float, 0.5), (bool, True)]


def test_numbers_that_wrap_around_hide_no_missing_people():
    """5,000 · 150 reports need 750,000 people; in 16 bits that is 29,104."""
    policy = load(Policy, Path("keyboard_150"))
    rotation = Participation("rotation", min_separation=np.int16(200))
    with pytest.raises(ValueError, match="need a population of 750000, not 30000"):
        dataclasses.replace(
            policy, report_goal=np.int16(5000), population=30_000, participation=rotation
        )


def test_a_list_of_text_becomes_a_tuple_and_text_a_path():
    policy = dataclasses.replace(load(Policy, Path("keyboard_150")), public_labels=["de", "en"])
    assert policy.public_labels == ("de", "en")
    with pytest.raises(ValueError, match=r"public_labels = .* expected a list of text"):
        dataclasses.replace(policy, public_labels=["de", 3])
    assert dataclasses.replace(CHATS, start="model.pt").start == Path("model.pt")


def test_text_that_no_file_can_hold_is_refused():
    with pytest.raises(ValueError, match=r"description = .* no text in UTF-8"):
        dataclasses.replace(CHATS, description="caf\udce9")
    assert dataclasses.replace(CHATS, description="café").description == "café"
