"""Keys of a scenario that change nothing beside its other keys: a person who set one should know.

A run with ``server.momentum = 0.99`` and ``server.kind = "sgd"`` is the run without it, to the
byte. Such a key is no mistake that would spoil a run, so it is told and not refused.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import MISSING, fields, is_dataclass
from operator import attrgetter
from typing import Any, NamedTuple

from pfl_lm.models.models import roles
from pfl_lm.payload.choice import dense_layers
from pfl_lm.run.scenario import Scenario


class _Rule(NamedTuple):
    """Keys of one table, and what they are read for."""

    table: str  # dotted; empty: the scenario itself
    keys: tuple[str, ...]
    read: Callable[[Scenario], bool]
    read_where: str


def _where(table: str, keys: tuple[str, ...], other: str, *values: str, more: str = "") -> _Rule:
    """Return the rule of keys that are read where another key, dotted, has one of some values."""
    *first, last = (f'"{value}"' for value in values)
    listed = f"{', '.join(first)} or {last}" if first else last
    value_of = attrgetter(other)
    return _Rule(table, keys, lambda s: value_of(s) in values, f"where {other} = {listed}{more}")


def _some_rows(scenario: Scenario) -> bool:
    return isinstance(scenario.payload.rows, int)


def _layers_take_turns(scenario: Scenario) -> bool:
    stated = scenario.payload.layers
    return stated is None or stated < len(dense_layers(roles(scenario.model)))


def _reads_segments(scenario: Scenario) -> bool:
    """Whether words go through the model a segment at a time; a model of the user's own may."""
    training = scenario.training
    if scenario.model.kind == "transformer" or training.method == "forward_only":
        return False
    return training.method == "zeroth_order" or training.activations != "kept"


_RULES = (
    _Rule(
        "model",
        ("hidden_dim", "projection_dim"),
        lambda s: s.model.kind != "transformer",
        "by recurrent models",
    ),
    _Rule(
        "model",
        ("heads", "feedforward_dim", "activation", "positions", "context"),
        lambda s: s.model.kind in ("transformer", "module"),
        'where model.kind = "transformer"',
    ),
    _Rule(
        "model",
        ("lora",),
        lambda s: s.start is not None or s.payload.dense in ("lora", "ffa_lora"),
        'where payload.dense = "lora" or "ffa_lora", or from a start that has such factors',
    ),
    _where("training", ("negatives",), "training.loss", "sampled", "nce"),
    _where("training", ("activations",), "training.method", "backpropagation"),
    _Rule(
        "training",
        ("segment_length",),
        _reads_segments,
        'by recurrent models, where training.activations is "recomputed" or "truncated", or '
        'training.method = "zeroth_order"',
    ),
    _where("training", ("perturbation",), "training.method", "zeroth_order"),
    _where("training", ("modulation",), "training.method", "forward_only"),
    _Rule("payload", ("draw", "outside"), _some_rows, "where payload.rows is a number"),
    _Rule(
        "payload",
        ("temper",),
        lambda s: _some_rows(s) and s.payload.draw == "unigram",
        'where payload.rows is a number and payload.draw = "unigram"',
    ),
    _Rule(
        "payload",
        ("layers",),
        _layers_take_turns,
        "where it is below the number of the model's layers",
    ),
    _where("server", ("momentum",), "server.kind", "momentum", "adam", "yogi"),
    _where("server", ("second_momentum", "adaptivity"), "server.kind", "adam", "yogi"),
    _where("server.average", ("share",), "server.average.kind", "tail"),
    _where("server.average", ("decay",), "server.average.kind", "exponential"),
    _where("population", ("users", "tokens_per_user"), "population.kind", "synthetic"),
    _where("population", ("public_text",), "population.kind", "store"),
    _where(
        "",
        ("tokenizer",),
        "population.kind",
        "store",
        more="; invented users bring their own words",
    ),
)


def idle_keys(scenario: Scenario) -> list[str]:
    """Return a sentence for each key that differs from its default and changes nothing."""
    return [
        f"{key} = {value} changes nothing: it is read only {rule.read_where}"
        for rule in _RULES
        if not rule.read(scenario)
        for key, value in _stated(scenario, rule)
    ]


def _stated(scenario: Scenario, rule: _Rule) -> list[tuple[str, Any]]:
    """Return dotted keys of a rule, with their values, that differ from their defaults."""
    table: Any = attrgetter(rule.table)(scenario) if rule.table else scenario
    defaults = {field.name: field.default for field in fields(table)}
    prefix = f"{rule.table}." if rule.table else ""
    return [
        (prefix + name, _shown(value))
        for name in rule.keys
        if defaults[name] is not MISSING and (value := getattr(table, name)) != defaults[name]
    ]


def _shown(value: Any) -> str:
    if is_dataclass(value):
        keys = (f"{field.name} = {_shown(getattr(value, field.name))}" for field in fields(value))
        return "{ " + ", ".join(keys) + " }"
    return f"{value:g}" if isinstance(value, float) else str(value)
