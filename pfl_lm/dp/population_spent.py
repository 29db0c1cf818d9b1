"""What a population's ledger says: the total of these people, and who has spent how much of it.

Runs and questions share one total. It is the one that was stated before the first of them
(`pfl-lm privacy population --total`), or else the least ε, at the least δ, of the policies of all
that have spent a round.
Each run or question is a history with rounds of its own; the accountant composes all of them,
however they were interleaved (``accounting.accountant``).
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pfl_lm.dp.accounting.accountant import PrivacyCost, compose, compose_all
from pfl_lm.dp.events import RoundEvent
from pfl_lm.dp.ledger import Entry, LedgerError, verify
from pfl_lm.dp.policy import Policy
from pfl_lm.numbers import format_epsilon, format_epsilon_bound, is_number
from pfl_lm.validate import above_zero_in_unit, positive

TOLERANCE = 1e-9
"""Of ε, relative: what composing in another order may change."""

_MOST_NAMED = 8  # spenders of a sentence


@dataclass(frozen=True)
class Total:
    """What a population may be charged, in all.

    Attributes:
        epsilon: of all runs and questions together.
        delta: the δ at which ``epsilon`` is compared.
        stated: whether the total was stated; else it is the least of all policies.
    """

    epsilon: float
    delta: float
    stated: bool = True

    def __post_init__(self) -> None:
        positive(epsilon=self.epsilon)
        above_zero_in_unit(delta=self.delta)
        if self.delta >= 1:
            raise ValueError("delta must be below 1")

    def covers(self, cost: PrivacyCost) -> bool:
        """Whether a cost at this δ is within the total; false where it is ∞ or no number."""
        return cost.epsilon <= self.epsilon * (1 + TOLERANCE)

    def __str__(self) -> str:
        origin = "" if self.stated else ", the least of their policies"
        return f"ε = {format_epsilon(self.epsilon)} at δ = {self.delta:g}{origin}"


@dataclass(frozen=True)
class Spender:
    """A run or a question: its name, its purpose, its debited rounds, and what they cost alone."""

    name: str
    purpose: str  # "training", or the kind of question
    rounds: int
    epsilon: float  # at the δ of the total

    def __str__(self) -> str:
        times = "1 round" if self.rounds == 1 else f"{self.rounds:,} rounds"
        return f"{self.name} ({self.purpose}, {times}, alone ε = {format_epsilon(self.epsilon)})"


@dataclass(frozen=True)
class PopulationSpent:
    """What a population's ledger says.

    Attributes:
        digest: of the population.
        head: the hash of the ledger's last line.
        total: None before a total is stated and before the first round.
        spent_by: runs and questions in the order in which they began.
        cost: of all of them together, at the total's δ; None where there is no total.
    """

    digest: str
    head: str
    total: Total | None
    spent_by: tuple[Spender, ...] = ()
    cost: PrivacyCost | None = None

    @classmethod
    def of(cls, entries: Sequence[Entry], head: str) -> PopulationSpent:
        """Read the entries of a population's ledger."""
        digest, total = entries[0]["policy_digest"], total_of(entries)
        if total is None:
            return cls(digest, head, None)
        spent_by = tuple(
            Spender(
                begin["name"],
                begin.get("purpose", "training"),
                len(own),
                compose(own, total.delta).epsilon if own else 0.0,
            )
            for begin in entries
            if begin["kind"] == "begin"
            for own in [history_of(entries, begin["run"])]
        )
        return cls(digest, head, total, spent_by, compose_all(histories(entries), total.delta))

    @property
    def left(self) -> float:
        """What is left of the total's ε: the difference; 0 where nothing is left."""
        if self.total is None or self.cost is None:
            return math.inf
        return max(0.0, self.total.epsilon - self.cost.epsilon)

    def sentence(self) -> str:
        """Say how much is spent, how much is left, and who spent it."""
        if self.total is None or self.cost is None:
            return "nothing is spent and no total is stated"
        told = [str(spender) for spender in self.spent_by if spender.rounds]
        if not told:
            return f"nothing of {self.total} is spent"
        more = len(told) - _MOST_NAMED
        named = ", ".join(told[:_MOST_NAMED]) + (f" and {more} more" if more > 0 else "")
        return (
            f"of {self.total}, ε = {format_epsilon(self.cost.epsilon)} is spent and "
            f"{format_epsilon_bound(self.left)} is left; spent by {named}"
        )

    def as_plain(self) -> dict[str, Any]:
        """Return the same as JSON values; null stands for ∞."""
        return {
            "population": self.digest,
            "total_epsilon": None if self.total is None else _finite(self.total.epsilon),
            "total_delta": None if self.total is None else self.total.delta,
            "total_stated": self.total is not None and self.total.stated,
            "epsilon": 0.0 if self.cost is None else _finite(self.cost.epsilon),
            "left": _finite(self.left),
            "spent_by": [
                {
                    "name": spender.name,
                    "purpose": spender.purpose,
                    "rounds": spender.rounds,
                    "epsilon": _finite(spender.epsilon),
                }
                for spender in self.spent_by
            ],
            "head": self.head,
        }


def population_spent(path: Path) -> PopulationSpent:
    """Read the ledger of a population.

    Raises:
        LedgerError: there is none, it is damaged, or it is the ledger of a run.
    """
    entries = check_entries(verify(path), path)
    return PopulationSpent.of(entries, json.loads(path.read_bytes().splitlines()[-1])["hash"])


def check_entries(entries: list[Entry], path: Path, digest: str | None = None) -> list[Entry]:
    """Return the entries of a population's ledger, if all of them are what it may hold.

    Args:
        digest: of the population, where it is known.

    Raises:
        LedgerError: the ledger of a run, of other people, or an entry that lacks what it must say.
    """
    if entries[0].get("run") != "population":
        raise LedgerError(f"{path} is the ledger of a run, not of a population")
    if digest is not None and entries[0]["policy_digest"] != digest:
        raise LedgerError(f"{path} is the ledger of another population")
    for number, entry in enumerate(entries, start=1):
        try:
            _check(entry)
        except (KeyError, TypeError, ValueError) as error:
            raise LedgerError(f"{path}:{number} cannot be accounted for: {error}") from None
    return entries


def _check(entry: Entry) -> None:
    """Raise KeyError, TypeError or ValueError for an entry that lacks what it must say."""
    if is_debit(entry):
        _event_of(entry)
    if entry["kind"] not in ("total", "begin"):
        return
    if not (is_number(entry["epsilon"]) and is_number(entry["delta"])):
        raise ValueError("epsilon and delta must be numbers")
    Total(entry["epsilon"], entry["delta"])
    if entry["kind"] == "begin" and not (entry["run"] and entry["name"]):
        raise ValueError("run and name are missing")


def other_unit(entries: Iterable[Entry], unit: str) -> str:
    """Return why rounds of a unit cannot be added to what was spent, or "".

    A person with several devices is in more rounds of a policy whose unit is the device than that
    policy counts, so what both cost the person follows from neither. A run that does not state its
    unit was begun by an earlier version, and counts as one of any unit.

    Args:
        unit: of the policy under which more is planned.
    """
    entries = list(entries)
    spent = {entry["run"] for entry in entries if is_debit(entry)}
    begun = (e for e in entries if e["kind"] == "begin" and e["run"] in spent)
    for entry in begun:
        if (other := entry.get("unit", unit)) != unit:
            return (
                f'unit = "{unit}": {entry["name"]} has spent rounds of these people under '
                f'unit = "{other}", and nothing is proven of what rounds of both units cost a '
                f'person together; choose a policy of unit = "{other}"'
            )
    return ""


def with_planned(path: Path, policy: Policy, planned: Sequence[RoundEvent]) -> PopulationSpent:
    """Return what a population's ledger would say after a run or question that is only planned.

    ε is ∞ where these people have spent rounds under policies of another unit.

    Args:
        policy: of the plan; its ε and δ count where no total was stated.
        planned: all rounds of it.
    """
    entries = check_entries(verify(path), path)
    total = total_of(entries, (policy.epsilon, policy.delta))
    assert total is not None
    cost = compose_all(histories(entries, planned=planned), total.delta)
    if other_unit(entries, policy.unit):
        cost = replace(cost, epsilon=math.inf)
    return replace(population_spent(path), total=total, cost=cost)


def total_of(entries: Iterable[Entry], *policies: tuple[float, float]) -> Total | None:
    """Return the total of a population; None where nothing states one.

    The policy of a run or question counts from its first round on: before, it has released nothing
    that promised anything.

    Args:
        policies: (ε, δ) of policies under which more is planned; they count where no total was
            stated.
    """
    promised, entries = list(policies), list(entries)
    spent = {entry["run"] for entry in entries if is_debit(entry)}
    for entry in entries:
        if entry["kind"] == "total":
            return Total(entry["epsilon"], entry["delta"])
        if entry["kind"] == "begin" and entry["run"] in spent:
            promised.append((entry["epsilon"], entry["delta"]))
    if not promised:
        return None
    epsilons, deltas = zip(*promised, strict=True)
    return Total(min(epsilons), min(deltas), stated=False)


def histories(
    entries: Iterable[Entry], run: str = "", planned: Sequence[RoundEvent] = ()
) -> list[list[RoundEvent]]:
    """Return the rounds of every run and question, each with its own numbering.

    Args:
        run: whose next rounds ``planned`` would be.
    """
    entries = list(entries)
    runs = dict.fromkeys(entry["run"] for entry in entries if is_debit(entry))
    if planned:
        runs.setdefault(run)
    return [history_of(entries, each, planned if each == run else ()) for each in runs]


def history_of(
    entries: Iterable[Entry], run: str, planned: Sequence[RoundEvent] = ()
) -> list[RoundEvent]:
    """Return the rounds of one run or question.

    A round that is there twice was released twice, and every user is taken to be in its second
    release.
    """
    debited = [_event_of(entry) for entry in entries if is_debit(entry) and entry["run"] == run]
    numbers: set[int | None] = set()
    rounds = []
    for event in (*debited, *planned):
        twice = event.round in numbers
        numbers.add(event.round)
        rounds.append(
            replace(event, sampling="none", rate=1.0, min_separation=1) if twice else event
        )
    return rounds


def _event_of(debit: Entry) -> RoundEvent:
    """Return the event of a debit; KeyError, TypeError or ValueError for what is none."""
    return RoundEvent(**{**debit["event"], "round": int(debit["round"])})


def is_debit(entry: Entry) -> bool:
    """Whether an entry of a population's ledger is a round of a run or question."""
    return entry.get("kind") == "debit"


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
