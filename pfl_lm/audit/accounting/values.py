"""Is what a policy states of the right type and in range? What is not is refused once, by key."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from pfl_lm.audit.accounting.round_groups import NEIGHBORING
from pfl_lm.audit.accounting.streams import STREAMS

_AT_DEVICE = ("skellam", "discrete_gaussian")
KINDS = {"device": _AT_DEVICE, "server": ("gaussian", *STREAMS), "none": ("none",)}

_Rule = tuple[Callable[[Any], bool], str]


def _number(holds: Callable[[float], bool], expected: str) -> _Rule:
    def is_right(value: Any) -> bool:
        return isinstance(value, int | float) and not isinstance(value, bool) and holds(value)

    return is_right, expected


def _whole(least: int) -> _Rule:
    def is_right(value: Any) -> bool:
        return type(value) is int and value >= least

    return is_right, f"a whole number of {least} or more"


def _choice(*names: str) -> _Rule:
    return lambda value: value in names, " or ".join(repr(name) for name in names)


def _or_none(rule: _Rule) -> _Rule:
    return lambda value: value is None or rule[0](value), rule[1]


_POSITIVE = _number(lambda value: 0 < value < math.inf, "a number above 0, and finite")
_EPSILON = _or_none(_number(lambda value: value > 0, "a number above 0"))
_STATED_EPSILON = _or_none(_number(lambda value: value >= 0, "a number of 0 or more"))
_FIGURE = _number(lambda value: 0 <= value < math.inf, "a number of 0 or more, and finite")

_POLICY: dict[str, _Rule] = {
    "unit": _choice("user", "device"),
    "neighboring": _choice(*NEIGHBORING),
    "epsilon": _EPSILON,
    "delta": _number(lambda value: 0 < value < 1, "a number between 0 and 1"),
    "population": _whole(1),
    "report_goal": _whole(1),
    "rounds": _whole(1),
    "participation.kind": _choice("poisson", "rotation", "fixed"),
    "participation.min_separation": _or_none(_whole(1)),
    "noise.at": _choice(*KINDS),
    "noise.kind": _choice(*(kind for kinds in KINDS.values() for kind in kinds)),
    "noise.tolerated_dropout": _number(lambda value: 0 <= value < 1, "a number in [0, 1)"),
    "noise.honest_fraction": _number(lambda value: 0 < value <= 1, "a number in (0, 1]"),
    "noise.grid_steps": _POSITIVE,
    "noise.min_dim": _whole(1),
}
_OF_A_POLICY_THAT_HAS_THEM: dict[str, _Rule] = {
    "participation.max_participations": _or_none(_whole(1)),
    "noise.excess": _choice("kept", "removed"),
    "noise.levels": _whole(1),
    "groups": _whole(1),
    "clipping": _or_none((lambda value: isinstance(value, Mapping), "a table")),
    **{
        f"clipping.{name}": _POSITIVE
        for name in ("lowest", "highest", "quantile", "rate", "first_rate", "indicator_noise")
    },
}
_GUARANTEE: dict[str, _Rule] = {
    "noise_multiplier": _FIGURE,
    "epsilon": _STATED_EPSILON,
    "epsilon_server": _STATED_EPSILON,
}
_OF_A_GUARANTEE_THAT_HAS_THEM: dict[str, _Rule] = {
    "epsilon_unamplified": _STATED_EPSILON,
    **{
        name: _or_none(_FIGURE)
        for name in ("share_multiplier", "indicator_weight", "delta", "rho", "sensitivity")
    },
    **{
        name: _or_none(_whole(0))
        for name in ("participations", "least_reports", "most_reports", "honest_reports")
    },
}


def check_values(
    policy: Mapping[str, Any], guarantee: Mapping[str, Any] | None, source: str = "guarantee"
) -> None:
    """Refuse a policy, or figures stated for it, with a value of a wrong type or out of range.

    Args:
        guarantee: None: nothing is stated.
        source: the table that the figures stand in.

    Raises:
        ValueError: names the first such key, and what was expected.
    """
    _check(policy, _POLICY, "", needed=True)
    _check(policy, _OF_A_POLICY_THAT_HAS_THEM, "", needed=False)
    if guarantee is not None:
        _check(guarantee, _GUARANTEE, f"{source}.", needed=True)
        _check(guarantee, _OF_A_GUARANTEE_THAT_HAS_THEM, f"{source}.", needed=False)


def _check(table: Mapping[str, Any], rules: dict[str, _Rule], within: str, needed: bool) -> None:
    for key, (is_right, expected) in rules.items():
        value: Any = table
        for name in key.split("."):
            if not (isinstance(value, Mapping) and name in value):
                value = _MISSING
                break
            value = value[name]
        if value is _MISSING and needed:
            raise ValueError(f"{within}{key} is missing")
        if value is not _MISSING and not is_right(value):
            raise ValueError(f"{within}{key} = {value!r} is refused: expected {expected}")


_MISSING = object()
