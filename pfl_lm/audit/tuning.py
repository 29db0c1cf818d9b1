"""What choosing a recipe on these users cost: trainings that were thrown away count too."""

from __future__ import annotations

import math
from dataclasses import replace

from pfl_lm.audit.evidence import Claim, Evidence
from pfl_lm.audit.findings import Finding, figure
from pfl_lm.audit.libraries import DoesNotApply, repeat_and_select
from pfl_lm.audit.methods import quick_epsilon
from pfl_lm.audit.phases import Phase
from pfl_lm.audit.promise import Promise

_WORST_CASE = 10  # trainings, an officer's rule of thumb where none were stated
_NAME = "hyperparameter tuning"


def tuning(promise: Promise, claim: Claim, trials: int | None) -> Finding:
    """Hold the stated ε against all trainings on these users, as far as they are known.

    All of them are composed: whoever chose among them saw every one. Drawing their number at
    random costs less, and has to be planned (Papernot & Steinke 2022, arXiv 2110.03620).

    Args:
        trials: trainings among which this one was chosen, as a person states; None: not stated.
    """
    if trials is not None:
        return _stated(promise, trials)
    others = _siblings(claim) if isinstance(claim, Evidence) else []
    if others:
        return _found(promise, others)
    text = (
        "No tuning is recorded (state it with --trials). If this recipe had been chosen by "
        f"training on these users {_WORST_CASE} times, all would count: ε = "
        f"{figure(_of_trials(promise, _WORST_CASE))}."
    )
    return Finding(_NAME, None, text)


def _stated(promise: Promise, trials: int) -> Finding:
    if trials <= 1:
        return Finding(_NAME, True, "Stated: this is the only training on these users.")
    total = _of_trials(promise, trials)
    text = (
        f"Stated: this training was chosen among {trials:,} on these users. All of them count: "
        f"ε = {figure(total)}"
    )
    if total <= promise.stated_epsilon * (1 + 1e-3):
        return Finding(_NAME, True, f"{text}, which the stated ε covers.")
    text += ", and the stated ε leaves them unpaid."
    return Finding(_NAME, False, text + _if_random(promise, trials))


def _if_random(promise: Promise, trials: int) -> str:
    """Say what it would have cost to draw the number of trainings at random beforehand."""
    try:
        random = repeat_and_select([promise.phase()], promise.delta, trials, math.inf)
    except DoesNotApply:
        return ""
    return (
        f" Had their number been drawn at random beforehand (Poisson of mean {trials}) and only "
        f"the best been kept, it would be {figure(random)}."
    )


def _found(promise: Promise, others: list[Evidence]) -> Finding:
    phases = [promise.phase()]
    free = [other.manifest["run"] for other in others if Promise.of(other) is None]
    for other in others:
        if (theirs := Promise.of(other)) is not None:
            phases.append(theirs.phase(min(theirs.participations, len(other.rounds))))
    total = math.inf if free else quick_epsilon(_merged(phases), promise.delta)
    names = ", ".join(other.manifest["run"] for other in others)
    text = (
        f"Other trainings on the same users lie beside this one ({names}). If any of them helped "
        f"to choose this recipe, all count: together ε = {figure(total)}"
    )
    text += f" ({free[0]} had no noise)." if free else "."
    return Finding(_NAME, None, text)


def _siblings(evidence: Evidence) -> list[Evidence]:
    """Return other runs in the same folder whose users are the same."""
    here = evidence.folder.path.resolve()
    population = _users(evidence)
    found = []
    for path in sorted(here.parent.glob("*/manifest.json")):
        if path.parent == here:
            continue
        try:
            other = Evidence.open(path.parent)
        except ValueError:
            continue  # a damaged neighbour is another audit's finding
        if _users(other) == population and other.rounds:
            found.append(other)
    return found


def _users(evidence: Evidence) -> tuple[str, int]:
    population = evidence.manifest["population"]
    return population["name"], population["users"]["train"]


def _merged(phases: list[Phase]) -> list[Phase]:
    """Add up the rounds of equal phases."""
    rounds: dict[Phase, int] = {}
    for phase in phases:
        key = replace(phase, rounds=0)
        rounds[key] = rounds.get(key, 0) + phase.rounds
    return [replace(phase, rounds=count) for phase, count in rounds.items()]


def _of_trials(promise: Promise, trials: int) -> float:
    all_of_them = replace(promise.phase(), rounds=promise.participations * trials)
    return quick_epsilon(all_of_them, promise.delta)
