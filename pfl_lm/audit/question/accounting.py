"""Is the ε that a question states right?"""

from __future__ import annotations

from dataclasses import replace

from pfl_lm.audit.accounting.check import audit_accounting
from pfl_lm.audit.accounting.tuning import TUNING
from pfl_lm.audit.findings import Finding, Part
from pfl_lm.audit.question.artifacts import QuestionArtifacts

NOT_CHECKED = (
    "Whether the question did what the policy says: see ledger and mechanism.",
    "What else the same people were asked or trained: the ledger part adds it up (--ledgers).",
    "Whether phones counted their own rounds: a property of the deployment.",
)


def audit_question_accounting(artifacts: QuestionArtifacts, trials: int | None = None) -> Part:
    """Recompute the guarantee that a question states.

    Args:
        trials: questions to these users among which this one was chosen; None: not stated.
    """
    part = audit_accounting(artifacts, trials)
    findings = [_of_questions(found) if trials is None else found for found in part.findings]
    this = Finding("this very answer", None, artifacts.statements["guaranteed"])
    return replace(part, findings=[*findings, this], not_checked=NOT_CHECKED)


def _of_questions(found: Finding) -> Finding:
    """Return a finding in the words of a question: nothing was trained by it."""
    if found.name != TUNING:
        return found
    text = (
        "No choice among several answers is recorded (state it with --trials; all would count). "
        "The ledger part adds up what else these people were asked or trained (--ledgers)."
    )
    return replace(found, text=text)
