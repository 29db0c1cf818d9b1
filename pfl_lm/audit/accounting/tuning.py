"""What choosing a recipe on these users cost: trainings that were thrown away count too.

Where the ledger of these people is at hand, it says which trainings and comparisons there were.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from pfl_lm.audit.accounting.choices import (
    NOT_GIVEN,
    NOT_NAMED,
    UNKNOWN,
    Choices,
    choices_of,
    names_people,
)
from pfl_lm.audit.accounting.libraries import DoesNotApply, repeat_and_select
from pfl_lm.audit.accounting.methods import quick_epsilon
from pfl_lm.audit.accounting.round_groups import RoundGroup
from pfl_lm.audit.accounting.stated import StatedGuarantee
from pfl_lm.audit.artifacts import AuditTarget, RunArtifacts
from pfl_lm.audit.chain import read_chain
from pfl_lm.audit.findings import Finding
from pfl_lm.numbers import format_epsilon
from pfl_lm.run.folder import RunFolder

_WORST_CASE = 10  # trainings, an officer's rule of thumb where none were stated
TUNING = "hyperparameter tuning"


def tuning(
    guarantee: StatedGuarantee,
    target: AuditTarget,
    trials: int | None,
    ledgers: Path | None = None,
) -> Finding:
    """Hold what was promised against all by which this recipe may have been chosen.

    All of it is composed: the person who chose saw everything. Drawing the number of trainings at
    random costs less, and has to be planned (Papernot & Steinke 2022, arXiv 2110.03620).

    | the ledger of the run's people | what is counted |
    |---|---|
    | is in ``ledgers`` | its trainings and comparisons, and what more lies beside or was stated |
    | was not given, or the run names none | ``trials``, else the runs that lie beside |

    Args:
        trials: trainings among which this one was chosen, as a person states; None: not stated.
        ledgers: folder of the populations' ledgers; None: not given to the auditor.
    """
    hint, others = "", []
    if isinstance(target, RunArtifacts):
        chain, others = read_chain(target.folder.ledger_path), _siblings(target)
        if ledgers is not None and names_people(chain):
            known = choices_of(chain, ledgers, (guarantee.epsilon, guarantee.delta))
            if isinstance(known, str):
                text = f"What choosing cost is unknown. The ledger of these people: {known}."
                return Finding(TUNING, False, text)
            return _paid(guarantee, known, others, trials)
        hint = NOT_GIVEN if names_people(chain) else NOT_NAMED if ledgers is not None else ""
    if trials is not None:
        found = _stated(guarantee, trials)
    elif others:
        found = _found(guarantee, others)
    else:
        text = (
            "No tuning is recorded (state it with --trials). If this recipe had been chosen by "
            f"training on these users {_WORST_CASE} times, all would count: ε = "
            f"{format_epsilon(_of_trials(guarantee, _WORST_CASE))}."
        )
        found = Finding(TUNING, None, text)
    return replace(found, text=found.text + hint)


def _paid(
    guarantee: StatedGuarantee, known: Choices, others: list[RunArtifacts], trials: int | None
) -> Finding:
    """Hold all that the ledger counts, and what is known beside it, against the people's total."""
    beside = [other for other in others if _first_hash(other) not in known.known]
    stated = max(0, (trials or 1) - 1 - len(known.trainings) - len(beside))
    one, free = guarantee.round_group(), _without_noise(beside)
    more = [replace(one, rounds=one.rounds * stated)] if stated else []
    groups = [*known.rounds, *more, *_rounds_of(beside)]
    epsilon, delta = known.total
    cost = quick_epsilon(_merged(groups), delta) if groups else 0.0
    cost = math.inf if free else cost
    text = (
        f"The ledger of these people holds {_counted(known.trainings, 'other training')} and "
        f"{_counted(known.comparisons, 'comparison')} of models."
    )
    if beside:
        names = ", ".join(other.manifest["run"] for other in beside)
        text += f" It lacks trainings that lie beside this one ({names})."
    if stated:
        text += f" Beyond these {stated:,} were stated, each counted like this one."
    paid = cost <= epsilon * (1 + 1e-3)
    text += (
        f" With this run they cost ε = {format_epsilon(cost)} at δ = {delta:g}, "
        f"{'within' if paid else 'ABOVE'} the total of these people, {format_epsilon(epsilon)}"
    )
    text += f" ({free[0]} had no noise)." if free else "."
    return Finding(TUNING, None if beside else paid, text + UNKNOWN)


def _counted(names: Sequence[str], what: str) -> str:
    listed = f" ({', '.join(names)})" if names else ""
    return f"{len(names) or 'no'} {what}{'' if len(names) == 1 else 's'}{listed}"


def _first_hash(other: RunArtifacts) -> str | None:
    return next(iter(read_chain(other.folder.ledger_path).hashes), None)


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
        return Finding(TUNING, True, "Stated: this is the only training on these users.")
    total = _of_trials(guarantee, trials)
    text = (
        f"Stated: this training was chosen among {trials:,} on these users. All of them count: "
        f"ε = {format_epsilon(total)}"
    )
    if total <= guarantee.stated_epsilon * (1 + 1e-3):
        return Finding(TUNING, True, f"{text}, which the stated ε covers.")
    text += ", and the stated ε leaves them unpaid."
    return Finding(TUNING, False, text + if_random(guarantee, trials))


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
    groups, free = [guarantee.round_group(), *_rounds_of(others)], _without_noise(others)
    total = math.inf if free else quick_epsilon(_merged(groups), guarantee.delta)
    names = ", ".join(other.manifest["run"] for other in others)
    text = (
        f"Other trainings on the same users lie beside this one ({names}). If any of them helped "
        f"to choose this recipe, all count: together ε = {format_epsilon(total)}"
    )
    text += f" ({free[0]} had no noise)." if free else "."
    return Finding(TUNING, None, text)


def _without_noise(others: list[RunArtifacts]) -> list[str]:
    return [other.manifest["run"] for other in others if StatedGuarantee.of(other) is None]


def _rounds_of(others: list[RunArtifacts]) -> list[RoundGroup]:
    """Return what the rounds of other runs cost a user, as far as they had noise."""
    stated = ((other, StatedGuarantee.of(other)) for other in others)
    return [
        theirs.round_group(min(theirs.participations, len(other.rounds)))
        for other, theirs in stated
        if theirs is not None
    ]


def _siblings(artifacts: RunArtifacts) -> list[RunArtifacts]:
    """Return other runs in the same folder whose users are the same."""
    here = artifacts.folder.path.resolve()
    siblings = []
    for path in sorted(here.parent.glob("*/manifest.json")):
        if path.parent == here:
            continue
        folder = RunFolder(path.parent)
        try:
            other = RunArtifacts(folder, folder.manifest())  # of whatever version
            same = _same_users(artifacts, other) and bool(other.rounds)
        except (ValueError, KeyError, TypeError):
            continue  # a damaged neighbour is another audit's finding
        if same:
            siblings.append(other)
    return siblings


def _same_users(one: RunArtifacts, other: RunArtifacts) -> bool:
    """Tell whether two runs trained on the same people, by a digest of their ids.

    A store that was built again may have another name, and stores of other people may have the
    same name and size. Where a manifest has no digest, name and size must do: of invented users,
    and of runs that earlier versions made.
    """
    here, there = one.manifest["population"], other.manifest["population"]
    digests = here.get("digest"), there.get("digest")
    if all(digests):
        return bool(digests[0] == digests[1])
    names = [(each["name"], each["users"]["train"]) for each in (here, there)]
    return names[0] == names[1]


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
