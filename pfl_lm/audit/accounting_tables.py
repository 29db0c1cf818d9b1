"""The tables of the accounting part: methods side by side, adversaries, populations, rounds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from pfl_lm.audit.findings import Table, figure
from pfl_lm.audit.methods import Row, quick_epsilon
from pfl_lm.audit.promise import Promise

_DELTAS = (1e-5, 1e-6, 1e-7, 1e-8, 1e-9, 1e-10)
_POPULATIONS = (10**5, 10**6, 10**7, 10**8)


def methods_table(promise: Promise, rows: Sequence[Row]) -> Table:
    """Show every method's figure, what it assumes, and why it differs."""
    known = [row.epsilon for row in rows if row.is_bound and row.epsilon is not None]
    spread = f"{figure(min(known))} to {figure(max(known))}" if known else "–"
    return Table(
        f"ε at δ = {promise.delta:g} by every method at hand",
        ("method", "ε", "standing", "assumes", "why it differs, or has no figure"),
        [
            (
                row.method.name,
                figure(row.epsilon),
                row.method.standing if row.epsilon is not None else "does not apply",
                row.method.assumes,
                row.method.differs if row.epsilon is not None else row.reason,
            )
            for row in rows
        ],
        f"Unit: {promise.unit}. Neighbours: {promise.neighboring}. Sampling: "
        f"{promise.participation}. The proven figures spread from {spread}; only rows marked "
        '"bound" certify.',
    )


def adversaries(promise: Promise) -> Table:
    """Show ε for both adversaries over the δ that an officer may ask for."""
    phase = promise.phase()
    rows = []
    for delta in _DELTAS:
        released = quick_epsilon(phase, delta)
        server = quick_epsilon(phase.seen_by_server(), delta)
        server = math.inf if promise.at == "server" else server
        mark = "" if delta <= 1 / promise.population else " (δ > 1/population: too weak)"
        rows.append((f"{delta:g}{mark}", figure(released), figure(server)))
    return Table(
        "ε for both adversaries, at several δ",
        ("δ", "sees every released model", "runs the server, sees each sum and who took part"),
        rows,
    )


def populations(promise: Promise) -> Table:
    """Answer: the same noise and cohort, in a larger or smaller population; both adversaries."""
    rows = []
    for population in sorted({*_POPULATIONS, promise.population}):
        if population < promise.report_goal:
            continue
        mark = " (as promised)" if population == promise.population else ""
        changed = replace(promise, population=population)
        if promise.participation == "rotation":
            separation = max(1, population // promise.report_goal)
            changed = replace(changed, min_separation=separation)
            detail = f"a user every {separation:,} rounds, {changed.participations:,} times"
        else:
            detail = f"rate {changed.rate:.3g}"
        released, server = (
            quick_epsilon(phase, promise.delta)
            for phase in (changed.phase(), changed.phase().seen_by_server())
        )
        server = math.inf if promise.at == "server" else server
        rows.append((f"{population:,}{mark}", detail, figure(released), figure(server)))
    return Table(
        f"ε at δ = {promise.delta:g} for both adversaries, in other populations",
        (
            "users who may take part",
            "how often a user takes part",
            "sees every released model",
            "runs the server",
        ),
        rows,
        "The same noise and cohort. Fewer users than promised mean a larger ε than promised, and "
        "where 1/users is below δ, a smaller δ is needed too.",
    )


def participations(promise: Promise) -> Table:
    """Show what one user's ε is who takes part in so many rounds."""
    most = promise.participations
    counts = sorted({1, 2, 4, 16, 64, most} & set(range(1, most + 1)))
    phase = promise.phase().seen_by_server()
    rows = [
        (f"{k:,}", figure(quick_epsilon(replace(phase, rounds=k), promise.delta))) for k in counts
    ]
    return Table(
        "ε of one user by how often that user took part, sampling not counted",
        ("rounds", "ε"),
        rows,
        f"On average {promise.rounds * promise.rate:.2g} of {promise.rounds:,} rounds.",
    )
