"""What choosing among trials costs on private users, by the audit's own accountant."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pfl_lm.audit.accounting.stated import StatedGuarantee
from pfl_lm.audit.accounting.tuning import epsilon_of_all, if_random
from pfl_lm.audit.artifacts import RunArtifacts
from pfl_lm.numbers import format_epsilon, power
from pfl_lm.run.folder import RunFolder


def cost(trials: Sequence[Path], adaptive: bool = False) -> str:
    """Say what choosing among trials costs, in a sentence or two.

    Args:
        trials: folders; one that a refused trial never wrote trained on nobody.
        adaptive: what was tried followed from what earlier trials brought. The bound for a number
            of trials that is drawn at random does not cover that.

    Guarantees:
        Every trial that began counts as the whole training that its policy pays for, also where it
        diverged or was stopped.
    """
    begun = [path for path in trials if RunFolder(path).manifest_path.is_file()]
    if not begun:
        return "No trial has begun."
    artifacts = [RunArtifacts.open(path) for path in begun]
    promised = [StatedGuarantee.of(each) for each in artifacts]
    lead = _lead(artifacts)
    known = [guarantee for guarantee in promised if guarantee is not None]
    if len(known) < len(promised):
        without = len(promised) - len(known)
        return f"{lead}: {without} of {len(promised)} had no noise, so together ε = ∞."
    epsilon, delta = epsilon_of_all(known)
    text = f"{lead}: together ε = {format_epsilon(epsilon)} at δ = {power(delta)}"
    if len(set(map(repr, known))) > 1:
        return f"{text}. Their policies are not alike."
    paid = known[0].stated_epsilon
    if len(known) == 1 or epsilon <= paid * (1 + 1e-3):
        return f"{text}, which the stated ε covers."
    text += f", where the policy pays for {format_epsilon(paid)}."
    return text if adaptive else text + if_random(known[0], len(known))


def _lead(trials: Sequence[RunArtifacts]) -> str:
    """Say what the trials are: trainings that count, or simulations of them."""
    if all(trial.statements["guaranteed"].startswith("Nothing") for trial in trials):
        return (
            f"{len(trials)} simulations: no ε is promised for any of their models. Had real users "
            "been trained on, all trials would count"
        )
    return f"{len(trials)} trainings on the same users: all of them count"
