"""Is the stated ε right? The promise recomputed by libraries and theorems the run did not use."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence

from pfl_lm.audit.accounting_tables import (
    adversaries,
    methods_table,
    participations,
    populations,
)
from pfl_lm.audit.checklist import checklist
from pfl_lm.audit.evidence import Claim, Evidence
from pfl_lm.audit.findings import Finding, Part, Plot, figure
from pfl_lm.audit.flags import flags
from pfl_lm.audit.methods import Row, best_bound, recompute
from pfl_lm.audit.policy_file import PolicyFile
from pfl_lm.audit.promise import Promise

_TOLERANCE = 2e-3  # of ε: numerical accountants round upward, each in its own way

NOT_CHECKED = (
    "Whether the run did what the policy says: see ledger, mechanism and attack.",
    ("Whether phones tossed fair secret coins, or counted their own rounds: a property of the "
    "deployment."),
    ("Whether vocabulary, tokenizer and recipes were chosen without private text, beyond what the "
    "manifest says."),
)  # fmt: skip
OF_A_POLICY = (
    "Everything but the arithmetic: a policy is a plan, and nothing was run.",
    "Ledger, code and leakage: audit a run that was made under it.",
    "Where vocabulary and first weights came from, and which metrics were published.",
    *NOT_CHECKED[1:2],
)


def audit_accounting(claim: Claim, trials: int | None = None) -> Part:
    """Recompute the guarantee that a run, or a policy, states.

    Args:
        trials: trainings on these users among which this one was chosen; None: not stated.
    """
    started = time.monotonic()
    promise = Promise.of(claim)
    not_checked = NOT_CHECKED if isinstance(claim, Evidence) else OF_A_POLICY
    if promise is None:
        findings: list[Finding] = [
            Finding("stated ε", None, "Nothing is promised (ε = ∞): there is no figure.")
        ]
        return Part("accounting", _QUESTION, ("The policy.",), findings, not_checked)
    rows = recompute([promise.phase()], promise.delta)
    server_rows = recompute([promise.phase().seen_by_server()], promise.delta)
    findings = [
        _released(promise, rows),
        _server(promise, server_rows),
        *_reviewed(claim),
        *flags(promise, claim, trials),
    ]
    best = best_bound(rows)
    answers = sum(row.epsilon is not None for row in rows)
    tables = [
        methods_table(promise, rows),
        adversaries(promise),
        populations(promise),
        participations(promise),
        checklist(promise, claim, best),
    ]
    return Part(
        "accounting",
        _QUESTION,
        (
            f"ε at δ = {promise.delta:g} by every method that applies ({answers} do).",
            "Two adversaries: one sees the released models, one runs the server.",
            "What breaks guarantees in practice, as far as was written down.",
        ),
        findings,
        not_checked,
        tables,
        [_plot(promise, rows)],
        {
            "epsilon_stated": promise.stated_epsilon,
            "epsilon_recomputed": None if best is None else best.epsilon,
            "delta": promise.delta,
            "methods": {row.method.name: row.epsilon for row in rows},
        },
        time.monotonic() - started,
        f"ε = {figure(promise.stated_epsilon)} is stated; recomputed independently it is "
        f"{figure(best.epsilon if best else None)}.",
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


def _reviewed(claim: Claim) -> list[Finding]:
    """Say of a policy whether a person approved the figures that are checked here."""
    if not isinstance(claim, PolicyFile):
        return []
    if claim.is_reviewed:
        return [Finding("reviewed figures", True, "A person approved the figures checked here.")]
    text = "The policy holds no reviewed figures; checked are those that pfl-lm derives from it."
    return [Finding("reviewed figures", None, text)]


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


def _plot(promise: Promise, rows: Sequence[Row]) -> Plot:
    known = {row.method.name: [row.epsilon] for row in rows if row.epsilon is not None}
    return Plot(
        "The stated ε among the independent ones",
        "axis",
        {"stated": [promise.stated_epsilon], **known},
        "ε",
        "Figures left of the stated one confirm it, if they are bounds.",
    )
