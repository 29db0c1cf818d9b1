"""The tables of the accounting part: methods side by side, adversaries, populations, rounds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from pfl_lm.audit.accounting.methods import MethodResult, quick_epsilon
from pfl_lm.audit.accounting.stated import StatedGuarantee
from pfl_lm.audit.findings import TextTable
from pfl_lm.numbers import format_epsilon

_DELTAS = (1e-5, 1e-6, 1e-7, 1e-8, 1e-9, 1e-10)
_POPULATIONS = (10**5, 10**6, 10**7, 10**8)


def methods_table(guarantee: StatedGuarantee, rows: Sequence[MethodResult]) -> TextTable:
    """Show every method's figure, what it assumes, and why it differs."""
    known = [row.epsilon for row in rows if row.is_bound and row.epsilon is not None]
    spread = f"{format_epsilon(min(known))} to {format_epsilon(max(known))}" if known else "–"
    return TextTable(
        f"ε at δ = {guarantee.delta:g} by every method at hand",
        ("method", "ε", "standing", "assumes", "why it differs, or has no figure"),
        [
            (
                row.method.name,
                format_epsilon(row.epsilon, "–"),
                row.method.standing if row.epsilon is not None else "does not apply",
                row.method.assumes,
                row.method.differs if row.epsilon is not None else row.reason,
            )
            for row in rows
        ],
        f"Unit: {guarantee.unit}. Neighbours: {guarantee.neighboring}. Sampling: "
        f"{guarantee.participation}. The proven figures spread from {spread}; only rows marked "
        '"bound" certify.',
    )


def adversaries(guarantee: StatedGuarantee) -> TextTable:
    """Show ε for both adversaries over the δ that an officer may ask for."""
    group = guarantee.round_group()
    rows = []
    for delta in _DELTAS:
        released = quick_epsilon(group, delta)
        server = quick_epsilon(group.seen_by_server(), delta)
        server = math.inf if guarantee.at == "server" else server
        mark = "" if delta <= 1 / guarantee.population else " (δ > 1/population: too weak)"
        rows.append((f"{delta:g}{mark}", format_epsilon(server), format_epsilon(released)))
    return TextTable(
        "ε for both adversaries, at several δ",
        ("δ", "runs the server, sees each sum and who took part", "sees every released model"),
        rows,
    )


def populations(guarantee: StatedGuarantee) -> TextTable:
    """Answer: the same noise and cohort, in a larger or smaller population; both adversaries."""
    rows = []
    for population in sorted({*_POPULATIONS, guarantee.population}):
        if population < guarantee.report_goal:
            continue
        mark = " (as promised)" if population == guarantee.population else ""
        changed = replace(guarantee, population=population)
        if guarantee.participation == "rotation":
            separation = max(1, population // guarantee.report_goal)
            changed = replace(changed, min_separation=separation)
            detail = f"a user every {separation:,} rounds, {changed.participations:,} times"
        else:
            detail = f"rate {changed.rate:.3g}"
        released, server = (
            quick_epsilon(group, guarantee.delta)
            for group in (changed.round_group(), changed.round_group().seen_by_server())
        )
        server = math.inf if guarantee.at == "server" else server
        rows.append(
            (f"{population:,}{mark}", detail, format_epsilon(server), format_epsilon(released))
        )
    return TextTable(
        f"ε at δ = {guarantee.delta:g} for both adversaries, in other populations",
        (
            "users who may take part",
            "how often a user takes part",
            "runs the server",
            "sees every released model",
        ),
        rows,
        "The same noise and cohort. Fewer users than promised mean a larger ε than promised, and "
        "where 1/users is below δ, a smaller δ is needed too.",
    )


def participations(guarantee: StatedGuarantee) -> TextTable:
    """Show what one user's ε is who takes part in so many rounds."""
    most = guarantee.participations
    counts = sorted({1, 2, 4, 16, 64, most} & set(range(1, most + 1)))
    groups = {k: guarantee.round_group(k).seen_by_server() for k in counts}
    rows = [
        (f"{k:,}", format_epsilon(quick_epsilon(group, guarantee.delta)))
        for k, group in groups.items()
    ]
    return TextTable(
        "ε of one user by how often that user took part, sampling not counted",
        ("rounds", "ε"),
        rows,
        f"On average {guarantee.rounds * guarantee.rate:.2g} of {guarantee.rounds:,} rounds.",
    )
