"""What the ledger of a run's people says of how its recipe was chosen: trainings and comparisons.

A person need not remember how many there were. What a ledger cannot know is said beside it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pfl_lm.audit.accounting.round_groups import RoundGroup
from pfl_lm.audit.chain import Chain
from pfl_lm.audit.ledger.population import debits_by_run, groups_of, people_of, total_of

UNKNOWN = (
    " A ledger does not know of figures without noise (evaluation.every, `pfl-lm evaluate`, "
    "--seed), of what other users were asked, or of rounds that another ledger holds."
)
NOT_GIVEN = (
    " The ledger of these people counts the trainings and comparisons on them: name its folder "
    "with --ledgers."
)
NOT_NAMED = " This run names no ledger of its people, so nothing here knows of comparisons on them."

_CHOOSE_NO_RECIPE = ("words", "mixture")  # questions; a start that votes chose is a finding itself


@dataclass(frozen=True)
class Choices:
    """All on a run's people by which its recipe may have been chosen.

    Attributes:
        trainings, comparisons: their names, without this run.
        rounds: what they and this run cost a user.
        known: the first hash of every run's and question's own ledger.
        total: ε and δ of all that these people may be charged.
    """

    trainings: tuple[str, ...]
    comparisons: tuple[str, ...]
    rounds: list[RoundGroup]
    known: frozenset[str]
    total: tuple[float, float]


def names_people(chain: Chain) -> bool:
    """Tell whether a run's own ledger names the ledger of its people."""
    return bool(chain.entries) and "population_head" in chain.entries[0]


def choices_of(chain: Chain, ledgers: Path, promised: tuple[float, float]) -> Choices | str:
    """Read the ledger of a run's people; return what is wrong where it cannot be believed.

    Args:
        chain: the run's own ledger, which names its people.
        ledgers: folder of the populations' ledgers.
        promised: ε and δ of the run's policy, the total where no round is spent yet.
    """
    people, wrong = people_of(chain.entries[0], ledgers)
    total, misstated = total_of(people.entries)
    if wrong or misstated:
        return wrong or misstated
    begun = {
        str(entry.get("run")): entry for entry in people.entries if entry.get("kind") == "begin"
    }
    names: dict[bool, list[str]] = {True: [], False: []}  # of comparisons; of trainings
    rounds: list[RoundGroup] = []
    for run, debits in debits_by_run(people.entries).items():
        begin = begun.get(run, {"name": "one that never began"})
        if begin.get("purpose") in _CHOOSE_NO_RECIPE:
            continue
        try:
            rounds += groups_of(debits)
        except (KeyError, TypeError, ValueError) as error:
            return f"a round of {begin.get('name')} cannot be accounted for ({error})"
        if run != chain.hashes[0]:
            names[begin.get("purpose") == "comparison"].append(str(begin.get("name")))
    return Choices(
        tuple(names[False]), tuple(names[True]), rounds, frozenset(begun), total or promised
    )
