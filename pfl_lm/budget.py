"""The budget of a run: what its rounds have cost, and whether another one may be run."""

from __future__ import annotations

import math
from typing import Any

from pfl_lm.dp.accounting import Spent
from pfl_lm.dp.events import RoundEvent
from pfl_lm.dp.ledger import Ledger
from pfl_lm.protection import Protection


class Budget:
    """What the policy's deployment has spent, recomputed from the ledger's own entries."""

    def __init__(self, protection: Protection, ledger: Ledger, dim: int) -> None:
        self._protection, self._ledger, self._dim = protection, ledger, dim
        self._last: tuple[list[RoundEvent], Spent | None] = ([], None)

    def events(self) -> list[RoundEvent]:
        """Return the recorded rounds."""
        rounds = (entry for entry in self._ledger.entries() if entry["kind"] == "round")
        return [RoundEvent(**entry["event"]) for entry in rounds if entry["event"] is not None]

    def check(self, round: int) -> None:
        """Refuse a round after which more than the policy's ε would be spent."""
        policy, protection = self._protection.policy, self._protection
        if policy is None or policy.noise.at == "none":
            return
        if any(event.round == round for event in self.events()):
            return  # repeated to the byte by a reproducible run: paid for already
        # As it will be recorded: rotation rounds of unlike payloads are not one rotation.
        planned = protection.event(protection.cohort, self._dim, round)
        assert planned is not None
        found = protection.spent([*self.events(), planned])
        if found is None or not found.epsilon <= policy.epsilon * (1 + 1e-9):
            raise ValueError(
                f"the budget ends here: round {round} would bring ε to "
                f"{'∞' if found is None else f'{found.epsilon:.4f}'}, above the policy's "
                f"{policy.epsilon}; what was spent is in {self._ledger.path.name}"
            )

    def spent(self) -> dict[str, Any]:
        """Return ε so far, with and without amplification; None is ∞."""
        found = self._cost(self.events())
        figures = (None, None) if found is None else (found.epsilon, found.epsilon_unamplified)
        finite = [x if x is not None and math.isfinite(x) else None for x in figures]
        return {"epsilon": finite[0], "epsilon_unamplified": finite[1]}

    def _cost(self, events: list[RoundEvent]) -> Spent | None:
        """Account for rounds; what was planned is mostly what is recorded, and costs the same."""
        if not events or events != self._last[0]:
            self._last = (events, self._protection.spent(events))
        return self._last[1]
