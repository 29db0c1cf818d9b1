"""Was ε told right, round by round? Each line of the metrics against the rounds paid by then."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from pfl_lm.audit.accounting.methods import quick_epsilon
from pfl_lm.audit.accounting.stated import StatedGuarantee
from pfl_lm.audit.artifacts import RunArtifacts
from pfl_lm.audit.findings import Finding
from pfl_lm.audit.ledger.replay import Entry, most_of_one_user, noise_multiplier
from pfl_lm.numbers import format_epsilon, is_number

_NAME = "ε told round by round"
_FIGURES = ("epsilon", "epsilon_unamplified")
_PLACES = 4  # lines at which the cost is recomputed; between them it never falls. Fewer if slow
_RELATIVE, _ABSOLUTE = 2e-2, 1e-2  # accountants round upward, each in its own way


def reported_epsilon(
    guarantee: StatedGuarantee, artifacts: RunArtifacts, rounds: Sequence[Entry]
) -> Finding:
    """Check that every line after a paid round tells ε, and none tells too little.

    Too much is no fault: a run that was taken up again may have paid for later rounds already.
    """
    lines = [(line, paid) for line, paid in _paid(artifacts, rounds) if paid]
    for figure in _FIGURES:
        slow = guarantee.amplified and figure == "epsilon"
        every = max(1, len(lines) // (2 if slow else _PLACES))
        before = floor = 0.0
        for place, (line, paid) in enumerate(lines):
            value: Any = line.get(figure)
            if place % every == 0:
                floor = _least_cost(guarantee, rounds[:paid], figure == "epsilon_unamplified")
            if wrong := _wrong(value, before, floor):
                text = f"After round {line['round']} the metrics' {figure} {wrong}."
                return Finding(_NAME, False, text)
            before = value
    return Finding(_NAME, True, f"{len(lines)} lines tell what was spent, and none too little.")


def _paid(artifacts: RunArtifacts, rounds: Sequence[Entry]) -> list[tuple[Entry, int]]:
    """Return each round's line, with how many entries of the ledger were there at the least."""
    last = {entry["round"]: place + 1 for place, entry in enumerate(rounds)}
    pairs, paid = [], 0
    for line in artifacts.rounds:
        paid = max(paid, last.get(line["round"], 0))
        pairs.append((line, paid))
    return pairs


def _wrong(value: object, before: float, floor: float) -> str:
    """Return what is wrong with a figure after a smaller one, at a least cost; or ""."""
    if not is_number(value):
        return f"is {value}, and no number"
    assert isinstance(value, int | float)
    if value < before * (1 - _RELATIVE) - _ABSOLUTE:
        return f"falls from {format_epsilon(before)} to {format_epsilon(value)}"
    if value < floor * (1 - _RELATIVE) - _ABSOLUTE:
        return (
            f"is {format_epsilon(value)}; the rounds paid by then cost {format_epsilon(floor)} at "
            "the least"
        )
    return ""


def _least_cost(guarantee: StatedGuarantee, paid: Sequence[Entry], unamplified: bool) -> float:
    """Return what these rounds cost one user at the least: each counted as the cheapest of them.

    0 for a stream of correlated noise, whose cost is not that of its rounds.
    """
    if guarantee.stream is not None:
        return 0.0
    on_device = guarantee.at == "device"
    group = guarantee.round_group(
        most_of_one_user(guarantee, paid),
        noise_multiplier=max(noise_multiplier(guarantee, entry) for entry in paid),
        dim=max(guarantee.summed(entry["payload"]["dim"]) for entry in paid) if on_device else 1,
    )
    cost = quick_epsilon(group.seen_by_server() if unamplified else group, guarantee.delta)
    return cost if cost < math.inf else 0.0
