"""What choosing a recipe on these users cost: trainings that were thrown away count too."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from pfl_lm.audit.accounting.libraries import DoesNotApply, repeat_and_select
from pfl_lm.audit.accounting.methods import quick_epsilon
from pfl_lm.audit.accounting.round_groups import RoundGroup
from pfl_lm.audit.accounting.stated import StatedGuarantee
from pfl_lm.audit.artifacts import AuditTarget, RunArtifacts
from pfl_lm.audit.findings import Finding
from pfl_lm.numbers import format_epsilon
from pfl_lm.run.folder import RunFolder

_WORST_CASE = 10  # trainings, an officer's rule of thumb where none were stated
_NAME = "hyperparameter tuning"


def tuning(guarantee: StatedGuarantee, target: AuditTarget, trials: int | None) -> Finding:
    """Hold the stated ε against all trainings on these users, as far as they are known.

    All of them are composed: the person who chose among them saw every one. Drawing their number at
    random costs less, and has to be planned (Papernot & Steinke 2022, arXiv 2110.03620).

    Args:
        trials: trainings among which this one was chosen, as a person states; None: not stated.
    """
    if trials is not None:
        return _stated(guarantee, trials)
    others = _siblings(target) if isinstance(target, RunArtifacts) else []
    if others:
        return _found(guarantee, others)
    text = (
        "No tuning is recorded (state it with --trials). If this recipe had been chosen by "
        f"training on these users {_WORST_CASE} times, all would count: ε = "
        f"{format_epsilon(_of_trials(guarantee, _WORST_CASE))}."
    )
    return Finding(_NAME, None, text)


def epsilon_of_all(guarantees: Sequence[StatedGuarantee]) -> tuple[float, float]:
    """Return ε and δ of trainings on the same users, all of them composed.

    Args:
        guarantees: of each training, whole; at least one.

    Guarantees:
        δ is the least of theirs, so ε is no less than at any other of them.
    """
    delta = min(guarantee.delta for guarantee in guarantees)
    groups = [guarantee.round_group() for guarantee in guarantees]
    return quick_epsilon(_merged(groups), delta), delta


def _stated(guarantee: StatedGuarantee, trials: int) -> Finding:
    if trials <= 1:
        return Finding(_NAME, True, "Stated: this is the only training on these users.")
    total = _of_trials(guarantee, trials)
    text = (
        f"Stated: this training was chosen among {trials:,} on these users. All of them count: "
        f"ε = {format_epsilon(total)}"
    )
    if total <= guarantee.stated_epsilon * (1 + 1e-3):
        return Finding(_NAME, True, f"{text}, which the stated ε covers.")
    text += ", and the stated ε leaves them unpaid."
    return Finding(_NAME, False, text + if_random(guarantee, trials))


def if_random(guarantee: StatedGuarantee, trials: int) -> str:
    """Say what it would have cost to draw the number of trainings at random beforehand."""
    try:
        random = repeat_and_select([guarantee.round_group()], guarantee.delta, trials, math.inf)
    except DoesNotApply:
        return ""
    return (
        f" Had their number been drawn at random beforehand (Poisson of mean {trials}) and only "
        f"the best been kept, it would be {format_epsilon(random)}."
    )


def _found(guarantee: StatedGuarantee, others: list[RunArtifacts]) -> Finding:
    groups = [guarantee.round_group()]
    free = [other.manifest["run"] for other in others if StatedGuarantee.of(other) is None]
    for other in others:
        if (theirs := StatedGuarantee.of(other)) is not None:
            groups.append(theirs.round_group(min(theirs.participations, len(other.rounds))))
    total = math.inf if free else quick_epsilon(_merged(groups), guarantee.delta)
    names = ", ".join(other.manifest["run"] for other in others)
    text = (
        f"Other trainings on the same users lie beside this one ({names}). If any of them helped "
        f"to choose this recipe, all count: together ε = {format_epsilon(total)}"
    )
    text += f" ({free[0]} had no noise)." if free else "."
    return Finding(_NAME, None, text)


def _siblings(artifacts: RunArtifacts) -> list[RunArtifacts]:
    """Return other runs in the same folder whose users are the same."""
    here = artifacts.folder.path.resolve()
    population = _users(artifacts)
    siblings = []
    for path in sorted(here.parent.glob("*/manifest.json")):
        if path.parent == here:
            continue
        folder = RunFolder(path.parent)
        try:
            other = RunArtifacts(folder, folder.manifest())  # of whatever version
            same = _users(other) == population and bool(other.rounds)
        except (ValueError, KeyError, TypeError):
            continue  # a damaged neighbour is another audit's finding
        if same:
            siblings.append(other)
    return siblings


def _users(artifacts: RunArtifacts) -> tuple[str, int]:
    population = artifacts.manifest["population"]
    return population["name"], population["users"]["train"]


def _merged(groups: list[RoundGroup]) -> list[RoundGroup]:
    """Add up the rounds of equal groups."""
    rounds: dict[RoundGroup, int] = {}
    for group in groups:
        key = replace(group, rounds=0)
        rounds[key] = rounds.get(key, 0) + group.rounds
    return [replace(group, rounds=count) for group, count in rounds.items()]


def _of_trials(guarantee: StatedGuarantee, trials: int) -> float:
    one = guarantee.round_group()
    return quick_epsilon(replace(one, rounds=one.rounds * trials), guarantee.delta)
