"""What a run writes down: ledger, budget, metrics, checkpoints, means, the state of its noise.

The simulation and the network's server record by the same object. Of several ranks only the first
one opens it; on the others it does nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

from pfl_lm.dp.accounting.accountant import PrivacyCost
from pfl_lm.dp.clipping import clip_before
from pfl_lm.dp.events import RoundEvent
from pfl_lm.dp.ledger import Ledger
from pfl_lm.dp.population_ledger import (
    PopulationAccount,
    PopulationLedger,
    check_spends_nothing,
)
from pfl_lm.files import sha256_of
from pfl_lm.numbers import format_epsilon
from pfl_lm.run.checkpoints import save_checkpoint
from pfl_lm.run.context import RunContext, payload_dims
from pfl_lm.run.control import heeding
from pfl_lm.run.folder import RunFolder, RunLog, write_json
from pfl_lm.run.means import Means
from pfl_lm.run.noise_state import NoiseStates
from pfl_lm.run.privacy import RunPrivacy
from pfl_lm.run.progress import ProgressListener
from pfl_lm.run.resume import begin_run, resume_run
from pfl_lm.run.round import Release
from pfl_lm.server.state import ServerState
from pfl_lm.version import code_digest


class RoundRecorder:
    """What one round writes down: here its entry in a ledger alone.

    Attributes:
        ledger: of the run; None on every rank but the first.
        hold: called when the round is about to be paid for: no interrupt may lose it from then on.
    """

    def __init__(self, ledger: Ledger | None) -> None:
        self.ledger = ledger
        self.hold: Callable[[], None] = lambda: None

    def keep(self, round: int, released: Release) -> None:
        """Make durable what must not be lost once the ledger has recorded the round."""


class RunRecorder(RoundRecorder):
    """What a run writes down as it goes.

    Args:
        listener: told of every round and evaluation, on the first rank.
        account: of the people whose budget the run spends; None where it only simulates.
    """

    def __init__(
        self,
        context: RunContext,
        folder: RunFolder,
        listener: ProgressListener,
        account: PopulationAccount | None = None,
    ) -> None:
        super().__init__(None)
        self._account = account
        self._population: PopulationLedger | None = None
        self.folder = folder
        self.noise_states = NoiseStates(folder)
        self._means: Means | None = Means(folder)
        self._context, self._listener = context, listener
        self._budget: Budget | None = None
        self._log: RunLog | None = None
        self._heeding = ExitStack()

    def open(
        self,
        resume: bool,
        overwrite: bool,
        recover: Callable[[Ledger], ServerState] | None = None,
    ) -> ServerState:
        """Begin the run's folder, or take up that of an interrupted run; return where it stands.

        Args:
            recover: says where the run stands instead, for a server, whose own store has the mean
                of every round; then nothing is lost that the listener should hear of.

        Raises:
            ValueError: see :mod:`pfl_lm.run.resume`.
        """
        if self._account is not None:
            self._population = PopulationLedger.open(self._account)
        try:
            state = self._begin_or_resume(resume, overwrite, recover is None)
            if recover is not None:
                assert self.ledger is not None
                self._means = None
                state = recover(self.ledger)
            if state.round < self._context.scenario.rounds:
                assert self.ledger is not None
                before = self.noise_states.before(state.round, self.ledger.entries())
                state = replace(state, noise_state=before)
                clip = clip_before(state.round, self.ledger.entries())
                state = replace(state, clip=clip)
            assert self.ledger is not None
            self._budget = Budget(self._context.privacy, self.ledger)
            self._log = RunLog(self.folder, state.round, self._counts_are_secret)
            self._heeding.enter_context(heeding(self.folder))
        except BaseException:
            self.close_after_failure()
            raise
        return state

    def _begin_or_resume(self, resume: bool, overwrite: bool, tells: bool) -> ServerState:
        """Begin or take up the run, and let its people's ledger take it up."""
        context, population = self._context, self._population
        if resume:
            hears = self._listener if tells else ProgressListener()
            state, self.ledger = resume_run(context, self.folder, hears, self._take_up)
        else:
            self._check_population(range(context.scenario.rounds))
            more = {} if population is None else population.reference()
            state, self.ledger = begin_run(context, self.folder, overwrite, more)
            self._take_up(self.ledger)
        return state

    def _take_up(self, ledger: Ledger) -> None:
        """Let the people's ledger take up that of the run."""
        population, policy = self._population, self._context.privacy.policy
        if population is None:
            check_spends_nothing(ledger)
            return
        assert policy is not None
        population.take_up(ledger, policy)
        self._listener.say(f"the budget of these people: {population.spent().sentence()}")

    def check_budget(self, round: int) -> None:
        """Refuse a round that the policy's budget, or that of its people, does not cover."""
        assert self._budget is not None
        self._budget.check(round, *payload_dims(self._context, [round]))
        self._check_population([round])

    def _check_population(self, rounds: Sequence[int]) -> None:
        privacy = self._context.privacy
        if self._population is None:
            return
        dims = payload_dims(self._context, rounds)
        planned = [
            privacy.event(privacy.cohort, dim, round)
            for round, dim in zip(rounds, dims, strict=True)
        ]
        assert privacy.policy is not None
        self._population.check(privacy.policy, *(event for event in planned if event is not None))

    def keep(self, round: int, released: Release) -> None:
        """Make the mean of ``round``, and the state of the noise after it, durable."""
        self.noise_states.save(round + 1, released.noise_state)
        if self._means is not None:
            self._means.save(round, released.mean)

    def note(self, entry: dict[str, Any]) -> dict[str, Any]:
        """Write a round's figures, with what has been spent; return those that are public."""
        assert self._budget is not None
        assert self._log is not None
        return self._log.write(entry | self._budget.cost())

    def round_done(self, entry: dict[str, Any]) -> None:
        """Write a round's figures and tell the listener."""
        self._listener.round_done(self.note(entry), self._context.scenario.rounds)

    def evaluation_is_due(self, round: int) -> bool:
        """Whether the scenario asks for one after ``round`` rounds, and none was noted yet."""
        assert self._log is not None
        return self._log.owes_evaluation(self._context.scenario.evaluation.every, round)

    def evaluated(self, entry: dict[str, Any]) -> None:
        """Write an evaluation and tell the listener."""
        assert self._log is not None
        self._log.write(entry)
        self._listener.evaluated(entry)

    def save_where_due(self, state: ServerState) -> None:
        """Save a checkpoint where the scenario asks for one, and at the end."""
        scenario = self._context.scenario
        if state.round % scenario.checkpoint_every == 0 or state.round == scenario.rounds:
            self.save(state)

    def save(self, state: ServerState) -> None:
        """Save a checkpoint; means that none needs any more are erased."""
        if self.ledger is not None:
            save_checkpoint(self.folder, state, self.ledger.head)
            if self._means is not None:
                self._means.forget_before(min(self.folder.checkpoints()))

    def finish(self, state: ServerState) -> None:
        """Erase the state of the noise and the means: the last round is over.

        The last state is in a checkpoint first, also where a killed run has just taken its last
        steps again from the means: without both, the model would lack those rounds.
        """
        if state.round not in self.folder.checkpoints():
            self.save(state)
        self.noise_states.erase()
        if self._means is not None:
            self._means.erase()

    def record_end(self, rounds: int) -> None:
        """Record that the run is over: its rounds, the digests of its model and of the code.

        Guarantees:
            An auditor who finds a model without this entry, or with another digest, knows that
            rounds were cut off or that the model was replaced.
        """
        assert self.ledger is not None
        end = {
            "kind": "end",
            "rounds": rounds,
            "model": sha256_of(self.folder.model_path),
            "code": code_digest(),
        }
        if self.ledger.entries()[-1] != end:  # else the run was taken up again after its end
            self.ledger.record(end)

    def close(self) -> None:
        """Close ledger and log; write what these people have spent, and what may be published.

        Each step is taken though another one fails, so no lock stays behind. Closing twice is
        harmless.
        """
        population, ledger, log = self._population, self.ledger, self._log
        self._population = self.ledger = self._log = None
        with ExitStack() as ending:  # the last one first
            if population is not None:
                ending.callback(population.close)
            if population is not None and ledger is not None:
                ending.callback(self._write_spent, population)
            if ledger is not None:
                ending.callback(ledger.close)
            if ledger is not None and self._counts_are_secret:
                ending.callback(write_json, self.folder.public_ledger_path, _published(ledger))
            if log is not None:
                ending.callback(log.close)
            ending.callback(self._heeding.close)

    def save_after_failure(self, state: ServerState) -> None:
        """Save a checkpoint if that can be done; where it cannot, ``--resume`` makes it again."""
        self._attempt(lambda: self.save(state))

    def close_after_failure(self) -> None:
        """Close, so that what ended the run is what is reported, and not what closing met."""
        self._attempt(self.close)

    def _attempt(self, step: Callable[[], None]) -> None:
        """Take a step after a failure, and tell the listener of a further one."""
        try:
            step()
        except (OSError, ValueError) as error:
            self._listener.say(f"as the run ended: {error}")

    def _write_spent(self, population: PopulationLedger) -> None:
        write_json(self.folder.budget_path, population.spent().as_plain())

    @property
    def _counts_are_secret(self) -> bool:
        policy = self._context.privacy.policy
        return policy is not None and policy.counts_are_secret


def _published(ledger: Ledger) -> dict[str, Any]:
    """Return what a ledger's readers may know without its counts.

    The last hash tells nothing of them: the first entry holds a nonce that nobody can guess.
    """
    genesis, *entries = ledger.entries()
    return {
        **{name: genesis[name] for name in ("run", "policy_digest", "statements")},
        "rounds": sum(entry["kind"] == "round" for entry in entries),
        "head": ledger.head,
    }


class Budget:
    """What the policy's deployment has spent, recomputed from the ledger's own entries."""

    def __init__(self, privacy: RunPrivacy, ledger: Ledger) -> None:
        self._privacy, self._ledger = privacy, ledger
        self._last: tuple[list[RoundEvent], PrivacyCost | None] = ([], None)

    def events(self) -> list[RoundEvent]:
        """Return the recorded rounds."""
        rounds = (entry for entry in self._ledger.entries() if entry["kind"] == "round")
        return [RoundEvent(**entry["event"]) for entry in rounds if entry["event"] is not None]

    def check(self, round: int, dim: int) -> None:
        """Refuse a round after which more than the policy's ε would be spent.

        Args:
            dim: coordinates of the round's payload.
        """
        policy, privacy = self._privacy.policy, self._privacy
        if policy is None or policy.noise.at == "none":
            return
        if any(event.round == round for event in self.events()):
            return  # a reproducible run repeats it to the byte: it is paid for already
        planned = privacy.event(privacy.cohort, dim, round)
        assert planned is not None
        cost = privacy.deployment.compose([*self.events(), planned])
        if cost is None or not cost.epsilon <= policy.epsilon * (1 + 1e-9):
            raise ValueError(
                f"the budget ends here: round {round} would bring ε to "
                f"{format_epsilon(None if cost is None else cost.epsilon)}, above the policy's "
                f"{format_epsilon(policy.epsilon)}; what was spent is in {self._ledger.path.name}"
            )

    def cost(self) -> dict[str, Any]:
        """Return ε so far, with and without amplification; None is ∞."""
        cost = self._composed(self.events())
        figures = (None, None) if cost is None else (cost.epsilon, cost.epsilon_unamplified)
        finite = [x if x is not None and math.isfinite(x) else None for x in figures]
        return {"epsilon": finite[0], "epsilon_unamplified": finite[1]}

    def _composed(self, events: list[RoundEvent]) -> PrivacyCost | None:
        """Compose rounds; what was planned is mostly what is recorded, and costs the same."""
        if not events or events != self._last[0]:
            self._last = (events, self._privacy.deployment.compose(events))
        return self._last[1]
