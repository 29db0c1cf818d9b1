"""Is the stated ε right? The promise recomputed by libraries and theorems the run did not use."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from pathlib import Path

from pfl_lm.audit.accounting.checklist import checklist
from pfl_lm.audit.accounting.figures import figures
from pfl_lm.audit.accounting.flags import flags
from pfl_lm.audit.accounting.methods import MethodResult, best_bound, recompute
from pfl_lm.audit.accounting.policy_file import PolicyFile
from pfl_lm.audit.accounting.stated import StatedGuarantee
from pfl_lm.audit.accounting.tables import (
    adversaries,
    methods_table,
    participations,
    populations,
)
from pfl_lm.audit.accounting.terms import terms
from pfl_lm.audit.accounting.this_model import claim
from pfl_lm.audit.artifacts import AuditTarget, RunArtifacts
from pfl_lm.audit.findings import Finding, Part, Plot
from pfl_lm.numbers import format_epsilon

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


def audit_accounting(
    target: AuditTarget, trials: int | None = None, ledgers: Path | None = None
) -> Part:
    """Recompute the guarantee that a run, or a policy, states.

    Args:
        trials: trainings on these users among which this one was chosen; None: not stated.
        ledgers: folder of the populations' ledgers, which count trainings and comparisons on these
            users; None: not given to the auditor.
    """
    started = time.monotonic()
    guarantee = StatedGuarantee.of(target)
    claims = [claim(target)] if isinstance(target, RunArtifacts) else []
    not_checked = NOT_CHECKED if isinstance(target, RunArtifacts) else OF_A_POLICY
    if guarantee is None:
        findings: list[Finding] = [
            Finding("stated ε", None, "Nothing is promised (ε = ∞): there is no figure."),
            *claims,
        ]
        return Part("accounting", _QUESTION, ("The policy.",), findings, not_checked)
    covered = terms(guarantee)
    if not covered.holds:
        checked = ("Whether a proof covers the policy's terms.",)
        headline = "No proof covers the policy's terms: there is no ε to confirm."
        return Part(
            "accounting", _QUESTION, checked, [covered, *claims], not_checked, headline=headline
        )
    rows = recompute([guarantee.round_group()], guarantee.delta)
    server_rows = recompute([guarantee.round_group().seen_by_server()], guarantee.delta)
    findings = [
        _server(guarantee, server_rows),
        _released(guarantee, rows),
        covered,
        figures(guarantee, target.guarantee, server_rows),
        *_reviewed(target),
        *flags(guarantee, target, trials, ledgers),
        *claims,
    ]
    best = best_bound(rows)
    recomputed = format_epsilon(best.epsilon if best else None, "–")
    answers = sum(row.epsilon is not None for row in rows)
    tables = [
        methods_table(guarantee, rows),
        adversaries(guarantee),
        populations(guarantee),
        participations(guarantee),
        checklist(guarantee, target, best),
    ]
    return Part(
        "accounting",
        _QUESTION,
        (
            f"ε at δ = {guarantee.delta:g} by every method that applies ({answers} do).",
            "Two adversaries: one runs the server, one sees the released models.",
            "What breaks guarantees in practice, as far as was written down.",
        ),
        findings,
        not_checked,
        tables,
        [_plot(guarantee, rows)],
        {
            "epsilon_stated": guarantee.stated_epsilon,
            "epsilon_recomputed": None if best is None else best.epsilon,
            "delta": guarantee.delta,
            "methods": {row.method.name: row.epsilon for row in rows},
        },
        time.monotonic() - started,
        f"ε = {format_epsilon(guarantee.stated_epsilon)} is stated; recomputed independently it is "
        f"{recomputed}.",
    )


_QUESTION = "Is the stated ε right?"


def _released(guarantee: StatedGuarantee, rows: Sequence[MethodResult]) -> Finding:
    """Hold the stated ε against the smallest that an independent method proves."""
    best, stated = best_bound(rows), guarantee.stated_epsilon
    if best is None or best.epsilon is None:
        return Finding("stated ε", False, "No independent method proves any ε for this policy.")
    if stated < best.epsilon - _TOLERANCE * max(1.0, best.epsilon):
        text = (
            f"ε = {format_epsilon(stated)} is stated, but the best that is proven independently is "
            f"{format_epsilon(best.epsilon)} ({best.method.name})."
        )
        return Finding("stated ε", False, text)
    if stated > guarantee.epsilon * (1 + 1e-9):
        allowed = format_epsilon(guarantee.epsilon)
        text = f"ε = {format_epsilon(stated)} is stated; the policy allows {allowed}."
        return Finding("stated ε", False, text)
    text = (
        f"ε = {format_epsilon(stated)} at δ = {guarantee.delta:g} is confirmed: recomputed by "
        f"{best.method.name} it is {format_epsilon(best.epsilon)}. The statement rests on the "
        f"{_rests(guarantee)}."
    )
    return Finding("stated ε", True, text)


def _rests(guarantee: StatedGuarantee) -> str:
    if guarantee.stream is not None:
        return "exact Gaussian curve, for the whole stream of noise as one release"
    if guarantee.mechanism != "gaussian":
        return "published Rényi bounds: for discrete noise nothing tighter is proven"
    return "exact Gaussian curve" if guarantee.participation == "rotation" else "tight composition"


def _reviewed(target: AuditTarget) -> list[Finding]:
    """Say of a policy whether a person approved the figures that are checked here."""
    if not isinstance(target, PolicyFile):
        return []
    if target.is_reviewed:
        return [Finding("reviewed figures", True, "A person approved the figures checked here.")]
    text = "The policy holds no reviewed figures; checked are those that pfl-lm derives from it."
    return [Finding("reviewed figures", None, text)]


def _server(guarantee: StatedGuarantee, rows: Sequence[MethodResult]) -> Finding:
    stated, best = guarantee.stated_server_epsilon, best_bound(rows)
    name = "stated ε against the server"
    if guarantee.at == "server":
        right = math.isinf(stated)
        text = "The server adds the noise, so it sees sums without: no ε holds against it."
        return Finding(name, right, text)
    if best is None or best.epsilon is None:
        return Finding(name, math.isinf(stated), "No ε holds against the server.")
    right = stated >= best.epsilon - _TOLERANCE * max(1.0, best.epsilon)
    text = (
        f"A server that sees each sum and who took part: ε = {format_epsilon(stated)} is stated, "
        f"{format_epsilon(best.epsilon)} is proven independently, for a user in all "
        f"{guarantee.participations:,} rounds. Sampling does not help against it."
    )
    return Finding(name, right, text)


def _plot(guarantee: StatedGuarantee, rows: Sequence[MethodResult]) -> Plot:
    known = {row.method.name: [row.epsilon] for row in rows if row.epsilon is not None}
    return Plot(
        "The stated ε among the independent ones",
        "axis",
        {"stated": [guarantee.stated_epsilon], **known},
        "ε",
        "Figures left of the stated one confirm it, if they are bounds.",
    )
