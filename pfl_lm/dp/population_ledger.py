"""One budget for one population, which all runs and questions on the same people share.

ε belongs to the people, not to a run's folder: a second run on them, a question, a copied folder or
a run that is deleted and started over adds to what they have spent. The population's ledger is a
file beside the runs, named by the population's digest. Each line vouches for the one before, as in
a run's own ledger. It holds:

    genesis    whose it is
    total      the ε and δ that everything together may cost, stated once; it may be absent
    begin      a run or question: name, purpose, its policy's unit, ε and δ, its ledger's first hash
    debit      a round of it: number, event, and the hashes of the line in its own ledger and of
               the one before that line

A round commits in this order, each write on the disk before the next begins:

    1. ledger.debited   beside the run's own ledger: the line that this one will have (mode 0600)
    2. debit            here
    3. line             in the run's own ledger; then the sum is released, from what was kept

A run that was killed, or whose disk was full, between 2 and 3 writes that line when it goes on: the
round is paid for once. Where ledger.debited is lost, the debit stays and the round is debited
again: one debit more than was released, never one less.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from pfl_lm.dp.accounting.accountant import compose_all
from pfl_lm.dp.events import RoundEvent
from pfl_lm.dp.ledger import Entry, Ledger, debited_path, line_text, read_debited
from pfl_lm.dp.policy import Policy
from pfl_lm.dp.population_spent import (
    PopulationSpent,
    Total,
    check_entries,
    histories,
    is_debit,
    other_unit,
    total_of,
)
from pfl_lm.files import sweep, write_atomically
from pfl_lm.numbers import format_epsilon

TRAINING = "training"


class BudgetSpent(ValueError):
    """Another round would cost these people more than their total."""


@dataclass(frozen=True)
class PopulationAccount:
    """Where the ledger of a population is kept.

    Attributes:
        digest: of the population, in hexadecimal; names the file.
        folder: of the ledgers.
    """

    digest: str
    folder: Path

    def __post_init__(self) -> None:
        if not re.fullmatch("[0-9a-f]{64}", self.digest):
            raise ValueError("digest must be a SHA-256 in hexadecimal")

    @classmethod
    def of_store(cls, digest: str, store: Path, ledgers: Path | None) -> PopulationAccount:
        """Return the account of a store's people, which every path to the store shares.

        Args:
            store: its folder, or a link to it.
            ledgers: where the ledger is kept; None: in ``ledgers`` beside the store.
        """
        return cls(digest, ledgers or Path(store).resolve().parent / "ledgers")

    @property
    def path(self) -> Path:
        return self.folder / f"{self.digest}.jsonl"


class PopulationLedger:
    """An open ledger of a population: one run or question at a time, under a lock, until closed.

    Guarantees:
        * Every round of every run or question that took this ledger up is recorded before it is
          released. Before a round, and before the first one, what it would cost together with all
          others is compared with the total.
        * A run that goes on from an older copy of its folder is refused, and so is one whose
          population's ledger was replaced by an older copy, or begun again.

    It knows of the runs that were begun with it: a run on another machine, with a ledger of its
    own, is unknown to it. Keep the ledgers of a population in one place, and publish their heads.
    """

    def __init__(self, ledger: Ledger) -> None:
        """Use :meth:`open`."""
        self._ledger, self._run = ledger, ""
        self._taken_up: Ledger | None = None  # of the run

    @classmethod
    def open(cls, account: PopulationAccount) -> PopulationLedger:
        """Open the ledger of a population, or begin it.

        Raises:
            LedgerError: another run or question on these people is going, or the file is damaged,
                or other people's.
        """
        account.folder.mkdir(parents=True, exist_ok=True)
        if account.path.exists():
            ledger = Ledger.open(account.path)
            try:
                check_entries(ledger.entries(), account.path, account.digest)
            except BaseException:
                ledger.close()
                raise
            return cls(ledger)
        genesis = {"run": "population", "policy_digest": account.digest}
        return cls(Ledger.create(account.path, genesis))

    @property
    def head(self) -> str:
        """The hash of the last line."""
        return self._ledger.head

    def reference(self) -> dict[str, str]:
        """Return what the first entry of a run's or question's own ledger says of this one."""
        digest = self._ledger.entries()[0]["policy_digest"]
        return {"population": digest, "population_head": self.head}

    def spent(self) -> PopulationSpent:
        """Return what the ledger says now."""
        return PopulationSpent.of(self._ledger.entries(), self.head)

    def state_total(self, epsilon: float, delta: float) -> None:
        """State what everything together may cost these people. A total is stated once.

        Raises:
            ValueError: a total was stated; it is not positive and finite; or runs or questions have
                spent rounds that promised less.
        """
        total, now = Total(epsilon, delta), total_of(self._ledger.entries())
        if now is not None and now.stated:
            raise ValueError(f"{self._ledger.path}: the total is {now}; it is stated once")
        if now is not None and (epsilon > now.epsilon or delta > now.delta):
            raise ValueError(
                f"{self._ledger.path}: the rounds of these people promised them {now}; a "
                "total above it would break that promise"
            )
        self._ledger.record({"kind": "total", "epsilon": total.epsilon, "delta": total.delta})

    def check(self, policy: Policy, *planned: RoundEvent, repeats: bool = False) -> None:
        """Refuse rounds that would cost these people more than their total.

        Args:
            policy: of the run or question.
            planned: the next rounds' events, with their numbers.
            repeats: a round that is debited already is repeated to the byte, and costs nothing.

        Raises:
            BudgetSpent: naming what all runs and questions would have cost, what is left, and who
                spent the rest.
            ValueError: rounds were spent under policies of another unit.
        """
        entries = self._ledger.entries()
        if reason := other_unit(entries, policy.unit):
            raise ValueError(f"{self._ledger.path}: {reason}")
        if repeats:
            done = {e["round"] for e in entries if is_debit(e) and e["run"] == self._run}
            planned = tuple(event for event in planned if event.round not in done)
        if not planned:
            return
        total = total_of(entries, (policy.epsilon, policy.delta))
        assert total is not None
        cost = compose_all(histories(entries, self._run, planned), total.delta)
        if total.covers(cost):
            return
        spent = self.spent()
        if spent.total is not None and spent.total != total:  # this policy lowers it
            spent = replace(spent, total=total, cost=compose_all(histories(entries), total.delta))
        what = f"round {planned[0].round}" if len(planned) == 1 else f"{len(planned):,} rounds more"
        why = f" ({cost.assumptions[0]})" if cost.accountant == "none" else ""
        raise BudgetSpent(
            f"the budget of these people ends here: {what} would bring ε of all runs and questions "
            f"on them to {format_epsilon(cost.epsilon)}{why}, above their total of {total}; "
            f"{spent.sentence()}; {self._ledger.path} has every round{_remedy(total)}"
        )

    def take_up(self, run: Ledger, policy: Policy, purpose: str = TRAINING) -> None:
        """Let a run or question begin, or go on: each round of its ledger is debited here first.

        A round that was debited, and that its own ledger lacks, is recorded there now.

        Raises:
            ValueError: the run's folder, or this ledger, is an older copy, or the run began
                without a budget.
        """
        genesis, self._run = run.entries()[0], run.hashes[0]
        if "population_head" not in genesis:
            raise ValueError(
                f"{run.path} began without the budget of these people: what it spent is counted "
                "nowhere, so it does not go on with it; begin again in another folder"
            )
        if genesis.get("population_head") not in self._ledger.hashes or self._lacks_rounds(run):
            raise ValueError(
                f"{self._ledger.path} is not the ledger that this run began with, or an older copy "
                "of it: name the folder with that one (--ledgers)"
            )
        self._check_newest(run)
        if not any(e["kind"] == "begin" and e["run"] == self._run for e in self._ledger.entries()):
            self._ledger.record(
                {
                    "kind": "begin",
                    "run": self._run,
                    "name": genesis["run"],
                    "purpose": purpose,
                    "policy_digest": genesis["policy_digest"],
                    "unit": policy.unit,
                    "epsilon": policy.epsilon,
                    "delta": policy.delta,
                }
            )
        run.before_append, self._taken_up = partial(self._debit, run), run
        self._record_debited(run)

    def close(self) -> None:
        """Release the lock, and erase ledger.debited if its line is recorded. Twice is harmless."""
        run, self._taken_up = self._taken_up, None
        try:
            if run is not None:
                erase_debited(run)
        finally:
            self._ledger.close()

    def __enter__(self) -> PopulationLedger:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _lacks_rounds(self, run: Ledger) -> bool:
        """Whether a run's ledger records a round that is not debited here."""
        debited = {entry["head"] for entry in self._ledger.entries() if is_debit(entry)}
        lines = zip(run.entries(), run.hashes, strict=True)
        return not {head for entry, head in lines if _costs(entry)} <= debited

    def _check_newest(self, run: Ledger) -> None:
        """Refuse a run's ledger that lacks the last round which is debited here."""
        debited = [e for e in self._ledger.entries() if is_debit(e) and e["run"] == self._run]
        if not debited:
            return
        last = debited[-1]
        # Killed between the two debits, a run lacks that round alone. What it wrote since cost
        # nothing: that a line was cut off, or that the round, tried again, was abandoned.
        if last["head"] not in run.hashes and last["previous"] not in run.hashes:
            raise ValueError(
                f"{run.path} is an older copy: round {last['round']} of this run is debited in "
                f"{self._ledger.path} and not there; go on with the folder that has it"
            )

    def _record_debited(self, run: Ledger) -> None:
        """Write the line that a killed run had debited here and not yet written itself."""
        path = debited_path(run.path)
        sweep(path.parent, path.name)
        text = read_debited(run.path)
        debits = (entry["head"] for entry in self._ledger.entries() if is_debit(entry))
        if text is not None and _head_of(text) in debits:
            run.complete(text)

    def _debit(self, run: Ledger, line: Entry) -> None:
        """Record a round here before the run's own ledger does."""
        entry: dict[str, Any] = line["entry"]
        if not _costs(entry):
            return
        if any(e.get("head") == line["hash"] for e in self._ledger.entries()):
            return  # a round that is repeated to the byte is the same debit
        with write_atomically(debited_path(run.path), mode=0o600) as temporary:
            temporary.write_bytes(line_text(line))
        self._ledger.record(
            {
                "kind": "debit",
                "run": self._run,
                "round": entry["round"],
                "event": entry["event"],
                "head": line["hash"],
                "previous": line["previous"],
            }
        )


def check_spends_nothing(run: Ledger) -> None:
    """Refuse a run or question that began with its people's budget, where it goes on without.

    Raises:
        ValueError: its ledger names a population.
    """
    genesis = run.entries()[0]
    if "population_head" in genesis:
        named = genesis.get("population", "these people")
        raise ValueError(
            f"{run.path} began with the budget of {named}, and would go on with nobody's; go on "
            "as it was begun: with the policy, people and options of then"
        )


def erase_debited(run: Ledger) -> None:
    """Erase what is kept beside a run's ledger of its last round, if that round is recorded."""
    if _head_of(read_debited(run.path)) in run.hashes:
        debited_path(run.path).unlink()


def _head_of(text: bytes | None) -> str | None:
    """Return the hash that a kept line states; None where there is no line, or it is damaged."""
    try:
        return None if text is None else str(json.loads(text)["hash"])
    except (ValueError, KeyError, TypeError, RecursionError):
        return None


def _costs(entry: Entry) -> bool:
    """Whether a line of a run's own ledger is a round that costs its people something."""
    return entry.get("kind") == "round" and entry.get("event") is not None


def _remedy(total: Total) -> str:
    """Say what would have helped, where nobody stated a total."""
    if total.stated:
        return ""
    return (
        ". Where runs and questions are to share more than the least of their policies, state a "
        "total before the first of them: pfl-lm privacy population … --total"
    )
