"""What choosing among trials costs on private users, by the audit's own accountant."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pfl_lm.api.sweep.folder import SweepFolder
from pfl_lm.audit.accounting.stated import StatedGuarantee
from pfl_lm.audit.accounting.tuning import epsilon_of_all, if_random
from pfl_lm.audit.artifacts import AuditTarget, RunArtifacts
from pfl_lm.numbers import format_delta, format_epsilon

_UNKNOWN = {"guaranteed": "unknown", "simulated": "unknown"}


@dataclass(frozen=True)
class Begun:
    """A beginning of a trial, by what the sweep's folder noted of it.

    Attributes:
        policy: None: there is none, or nothing was noted. Either way ε = ∞.
        statements: of the trial's run; unknown where its folder is gone.
    """

    title: str
    where: Path
    policy: dict[str, Any] | None
    guarantee: dict[str, Any]
    statements: dict[str, str]


def all_begun(kept: SweepFolder) -> list[AuditTarget]:
    """Return every beginning of a trial in a sweep's folder, of earlier calls too.

    A beginning counts by what was noted of it. Runs in the folder and trials with figures of which
    nothing was noted count besides.

    Raises:
        ValueError: a run of which nothing was noted is damaged.
    """
    noted = [
        Begun(
            f"trial {each['trial']}",
            kept.path / "begun.json",
            each["policy"],
            each["guarantee"] or {},
            _statements(kept.path / each["trial"]),
        )
        for each in kept.begun
    ]
    runs = {path.parent.name for path in kept.path.glob("*/manifest.json")}
    others = {*runs, *kept.scores} - {each["trial"] for each in kept.begun}
    unnoted: list[AuditTarget] = [
        RunArtifacts.open(kept.path / name)
        if name in runs
        else Begun(f"trial {name}", kept.path / "scores.json", None, {}, _UNKNOWN)
        for name in sorted(others)
    ]
    return [*noted, *unnoted]


def _statements(trial: Path) -> dict[str, str]:
    try:
        return RunArtifacts.open(trial).statements
    except ValueError:
        return _UNKNOWN


def cost(trials: Sequence[AuditTarget], adaptive: bool = False) -> str:
    """Say what choosing among trials costs, in a sentence or two.

    Args:
        trials: all that began.
        adaptive: what was tried followed from what earlier trials brought. The bound for a number
            of trials that is drawn at random does not cover that.

    Guarantees:
        Every trial that began counts as the whole training that its policy pays for, also where it
        diverged or was stopped.
    """
    if not trials:
        return "No trial has begun."
    promised = [StatedGuarantee.of(each) for each in trials]
    lead = _lead(trials)
    known = [guarantee for guarantee in promised if guarantee is not None]
    if len(known) < len(promised):
        without = len(promised) - len(known)
        noted = all(each.statements is not _UNKNOWN for each in trials)
        what = "had no noise" if noted else "had no noise, or left no note of it"
        return f"{lead}: {without} of {len(promised)} {what}, so together ε = ∞."
    epsilon, delta = epsilon_of_all(known)
    text = f"{lead}: together ε = {format_epsilon(epsilon)} at δ = {format_delta(delta)}"
    if len(set(map(repr, known))) > 1:
        return f"{text}. Their policies are not alike."
    paid = known[0].stated_epsilon
    if len(known) == 1 or epsilon <= paid * (1 + 1e-3):
        return f"{text}, which the stated ε covers."
    text += f", where the policy pays for {format_epsilon(paid)}."
    return text if adaptive else text + if_random(known[0], len(known))


def _lead(trials: Sequence[AuditTarget]) -> str:
    """Say what the trials are: trainings that count, or simulations of them."""
    one = len(trials) == 1
    if all(trial.statements["guaranteed"].startswith("Nothing") for trial in trials):
        if one:
            what, counted = "simulation: no ε is promised for its model", "it would count"
        else:
            what = "simulations: no ε is promised for any of their models"
            counted = "all trials would count"
        return f"{len(trials):,} {what}. Had real users been trained on, {counted}"
    if one:
        return "1 training on these users: it counts"
    return f"{len(trials):,} trainings on the same users: all of them count"
