"""The people whom a question asks: the ledger that their questions and their training share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pfl_lm.dp.ledger import Ledger
from pfl_lm.dp.population_ledger import (
    PopulationAccount,
    PopulationLedger,
    check_spends_nothing,
)
from pfl_lm.queries.ask import QuerySession
from pfl_lm.queries.query import Query
from pfl_lm.run.deployment import Deployment
from pfl_lm.text.population import PopulationStore

SEEDED = "the stated seed gives the noise again"


def account_of(
    store: PopulationStore, split: str, seed: int | None, ledgers: Path | None
) -> PopulationAccount | None:
    """Return whose budget a question spends; None where a stated seed gives its noise again.

    Such a question protects nobody, and may be repeated as often as its users' text may be read.

    Args:
        split: whose users are asked; each has a budget of its own.
        ledgers: folder; by default ``ledgers`` beside the store, as for training.
    """
    if seed is not None:
        return None
    return PopulationAccount.of_store(store.digest_of(split), store.folder, ledgers)


class AskedPeople:
    """The ledger of the people asked, held open while a question goes on; or nobody's.

    Guarantees:
        Before the question begins its cost in all, and before each round the cost of that round,
        is compared with what is left of these people's total. Each round is debited before its sum
        is looked at. A round that a resumed question repeats to the byte is debited once.
    """

    def __init__(
        self, account: PopulationAccount | None, purpose: str, nobody: str = SEEDED
    ) -> None:
        """Open the ledger, or begin it.

        Args:
            nobody: why no budget is spent where there is no account.

        Raises:
            LedgerError: a run or question on these people is going, or the file is damaged.
        """
        self._ledger = None if account is None else PopulationLedger.open(account)
        self._purpose, self._nobody = purpose, nobody

    def begin(self, session: QuerySession) -> dict[str, str]:
        """Refuse a question that these people cannot pay; return what its first entry says of them.

        Raises:
            BudgetSpent: all rounds of the question, at the fewest coordinates that the policy
                covers, would exceed the total together with what is spent.
        """
        if self._ledger is None:
            return {}
        self._check(session, session.policy.noise.min_dim, *range(session.policy.rounds))
        return self._ledger.reference()

    def check(self, session: QuerySession, query: Query, round: int) -> None:
        """Refuse a round that these people cannot pay; raises BudgetSpent."""
        self._check(session, query.dim, round)

    def _check(self, session: QuerySession, dim: int, *rounds: int) -> None:
        if self._ledger is None:
            return
        policy = session.policy
        planned = [Deployment(policy).event(policy.report_goal, dim, round) for round in rounds]
        events = [event for event in planned if event is not None]
        self._ledger.check(policy, *events, repeats=True)

    def take_up(self, ledger: Ledger, session: QuerySession) -> str:
        """Debit every further round of a question's ledger here first; say what was spent before.

        Raises:
            ValueError: the question's folder, or the ledger of its people, is an older copy, or one
                of them names the other and is alone.
        """
        if self._ledger is None:
            check_spends_nothing(ledger)
            return f"{self._nobody}: no budget is spent, and nobody protected"
        self._ledger.take_up(ledger, session.policy, self._purpose)
        return f"the budget of these people: {self._ledger.spent().sentence()}"

    def spent(self) -> dict[str, Any] | None:
        """Return what these people have spent, as JSON values; None of nobody."""
        return None if self._ledger is None else self._ledger.spent().as_plain()

    def __enter__(self) -> AskedPeople:
        return self

    def __exit__(self, *_: object) -> None:
        if self._ledger is not None:
            self._ledger.close()
