"""Is the stated ε right? The promise recomputed by libraries and theorems the run did not use."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import replace

from pfl_lm.audit.checklist import checklist
from pfl_lm.audit.evidence import Evidence
from pfl_lm.audit.findings import Finding, Part, Plot, Table, figure
from pfl_lm.audit.flags import flags
from pfl_lm.audit.methods import Row, best_bound, quick_epsilon, recompute
from pfl_lm.audit.promise import Promise

_TOLERANCE = 2e-3  # of ε: numerical accountants round upward, each in its own way
_DELTAS = (1e-5, 1e-6, 1e-7, 1e-8, 1e-9, 1e-10)
_POPULATIONS = (10**5, 10**6, 10**7, 10**8)

NOT_CHECKED = (
    "Whether the run did what the policy says: see ledger, mechanism and attack.",
    ("Whether phones tossed fair secret coins, or counted their own rounds: a property of the "
    "deployment."),
    ("Whether vocabulary, tokenizer and recipes were chosen without private text, beyond what the "
    "manifest says."),
)  # fmt: skip


def audit_accounting(evidence: Evidence) -> Part:
    """Recompute the guarantee that a run states."""
    started = time.monotonic()
    promise = Promise.of(evidence)
    if promise is None:
        findings: list[Finding] = [
            Finding("stated ε", None, "The run promises nothing (ε = ∞): there is no figure.")
        ]
        return Part("accounting", _QUESTION, ("The manifest.",), findings, NOT_CHECKED)
    rows = recompute([promise.phase()], promise.delta)
    server_rows = recompute([promise.phase().seen_by_server()], promise.delta)
    findings = [
        _released(promise, rows),
        _server(promise, server_rows),
        *flags(promise, evidence),
    ]
    best = best_bound(rows)
    answers = sum(row.epsilon is not None for row in rows)
    tables = [
        _methods_table(promise, rows),
        _adversaries(promise),
        _populations(promise),
        _participations(promise),
        checklist(promise, evidence, best),
    ]
    return Part(
        "accounting",
        _QUESTION,
        (
            f"ε at δ = {promise.delta:g} by every method that applies ({answers} do).",
            "Two adversaries: one sees the released models, one runs the server.",
            "What breaks guarantees in practice, as far as the manifest tells.",
        ),
        findings,
        NOT_CHECKED,
        tables,
        [_plot(promise, rows)],
        {
            "epsilon_stated": promise.stated_epsilon,
            "epsilon_recomputed": None if best is None else best.epsilon,
            "delta": promise.delta,
            "methods": {row.method.name: row.epsilon for row in rows},
        },
        time.monotonic() - started,
    )


_QUESTION = "Is the stated ε right?"


def _released(promise: Promise, rows: Sequence[Row]) -> Finding:
    """Hold the stated ε against the smallest that an independent method proves."""
    best, stated = best_bound(rows), promise.stated_epsilon
    if best is None or best.epsilon is None:
        return Finding("stated ε", False, "No independent method proves any ε for this policy.")
    if stated < best.epsilon - _TOLERANCE * max(1.0, best.epsilon):
        text = (
            f"ε = {figure(stated)} is stated, but the best that is proven independently is "
            f"{figure(best.epsilon)} ({best.method.name})."
        )
        return Finding("stated ε", False, text)
    if stated > promise.epsilon * (1 + 1e-9):
        text = f"ε = {figure(stated)} is stated; the policy allows {figure(promise.epsilon)}."
        return Finding("stated ε", False, text)
    text = (
        f"ε = {figure(stated)} at δ = {promise.delta:g} is confirmed: recomputed by "
        f"{best.method.name} it is {figure(best.epsilon)}. The statement rests on the "
        f"{_rests(promise)}."
    )
    return Finding("stated ε", True, text)


def _rests(promise: Promise) -> str:
    if promise.mechanism != "gaussian":
        return "published Rényi bounds: for discrete noise nothing tighter is proven"
    return "exact Gaussian curve" if promise.participation == "rotation" else "tight composition"


def _server(promise: Promise, rows: Sequence[Row]) -> Finding:
    stated, best = promise.stated_server_epsilon, best_bound(rows)
    name = "stated ε against the server"
    if promise.at == "server":
        right = math.isinf(stated)
        text = "The server adds the noise, so it sees sums without: no ε holds against it."
        return Finding(name, right, text)
    if best is None or best.epsilon is None:
        return Finding(name, math.isinf(stated), "No ε holds against the server.")
    right = stated >= best.epsilon - _TOLERANCE * max(1.0, best.epsilon)
    text = (
        f"A server that sees each sum and who took part: ε = {figure(stated)} is stated, "
        f"{figure(best.epsilon)} is proven independently, for a user in all "
        f"{promise.participations:,} rounds. Sampling does not help against it."
    )
    return Finding(name, right, text)


def _methods_table(promise: Promise, rows: Sequence[Row]) -> Table:
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


def _adversaries(promise: Promise) -> Table:
    phase = promise.phase()
    rows = []
    for delta in _DELTAS:
        released = quick_epsilon(phase, delta)
        server = quick_epsilon(phase.seen_by_server(), delta)
        if promise.at == "server":
            server = math.inf
        mark = "" if delta <= 1 / promise.population else " (δ > 1/population: too weak)"
        rows.append((f"{delta:g}{mark}", figure(released), figure(server)))
    return Table(
        "ε for both adversaries, at several δ",
        ("δ", "sees every released model", "runs the server, sees each sum and who took part"),
        rows,
    )


def _populations(promise: Promise) -> Table:
    """Answer: the same noise and cohort, in a larger or smaller population."""
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
        epsilon = quick_epsilon(changed.phase(), promise.delta)
        rows.append((f"{population:,}{mark}", detail, figure(epsilon)))
    return Table(
        "The same noise and cohort in other populations",
        ("users who may take part", "how often a user takes part", "ε (released models)"),
        rows,
        "Fewer users than promised means a larger ε than promised.",
    )


def _participations(promise: Promise) -> Table:
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


def _plot(promise: Promise, rows: Sequence[Row]) -> Plot:
    known = {row.method.name: [row.epsilon] for row in rows if row.epsilon is not None}
    return Plot(
        "The stated ε among the independent ones",
        "axis",
        {"stated": [promise.stated_epsilon], **known},
        "ε",
        "Figures left of the stated one confirm it, if they are bounds.",
    )
