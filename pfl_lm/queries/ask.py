"""Ask a query: the devices' answers take the way of an update, to the ledger and back.

    answers   device   at most m entries in cells of its own choice
    protect   device   clip → encode → add its noise share          run.round.protect_updates
    sum       server   secure aggregation, ideal or by the protocol  run.aggregation
    release   server   check the sum → decode → RECORD               run.round.release

Nothing here touches an answer between the clip and the record.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import cast

import numpy as np

from pfl_lm.dp.cohort import CohortRule
from pfl_lm.dp.cohort import cohort as cohort_of
from pfl_lm.dp.guarantee import Guarantee, guarantee
from pfl_lm.dp.ledger import Ledger
from pfl_lm.dp.policy import Policy
from pfl_lm.dp.sampler.arrays import Doubles, Updates
from pfl_lm.payload.layout import Payload
from pfl_lm.phones.fleet import Fleet
from pfl_lm.queries.query import Answer, Query
from pfl_lm.run.aggregation import Aggregation
from pfl_lm.run.deployment import Deployment
from pfl_lm.run.privacy import RunPrivacy
from pfl_lm.run.recorder import Budget
from pfl_lm.run.round import protect_updates, record_failure, release
from pfl_lm.run.simulated_rule import largest_cohort, simulated_rule
from pfl_lm.secagg.config import MessageKind
from pfl_lm.secagg.errors import SecaggError
from pfl_lm.secagg.parameters import Adversary
from pfl_lm.secagg.rounds import Kind
from pfl_lm.server.state import Broadcast

_COORDINATES = 1 << 23  # of the answers that are encoded at once

AnswerOf = Callable[[int], Answer]
Tick = Callable[[int, int], None]  # devices that answered, devices asked
Check = Callable[["QuerySession", Query, int], None]  # before a round: can its people pay?


@dataclass(frozen=True)
class QuerySession:
    """What the rounds of one question share.

    Attributes:
        policy: what is promised; its ``rounds`` are the queries that it pays for.
        population: users who may be asked.
        cohort: users asked in each round.
        seed: names the randomness of devices and server. A secret of 256 bits for a real question
            (see ``queries.folder``); a small number for a run that anyone can repeat.
        aggregation: "ideal", or "protocol": every message of secure aggregation.
        dropout: share of the cohort that falls silent, before any of its messages; the policy says
            how much of it a round survives.
        separate_noise: every device draws its own share also where the shares could be drawn as
            one sum; the protocol always does.
        reproducible: rounding and noise follow from the seed; else each device draws them for
            itself, and the seed, which is public then, says who is asked.
        fleet: the phones of the users, which decide who answers; None: all who are asked do, but
            for the dropout.
        trial: devices answer over the network and believe any statement of the server's.
    """

    policy: Policy
    population: int
    cohort: int
    seed: int
    aggregation: Kind = "ideal"
    dropout: float = 0.0
    separate_noise: bool = False
    reproducible: bool = True
    fleet: Fleet | None = None
    trial: bool = False

    def __post_init__(self) -> None:
        if self.policy.noise.at == "none":
            raise ValueError(
                "the policy adds no noise: the answer would tell what single people typed; choose "
                "a policy with a finite epsilon"
            )
        if self.policy.participation.kind != "rotation":
            raise ValueError(
                f'participation.kind = "{self.policy.participation.kind}": a query asks a public '
                'list of users; choose a policy of kind = "rotation"'
            )
        if self.policy.groups > 1:
            raise ValueError(
                f"groups = {self.policy.groups}: a question has one sum; choose a policy with "
                "groups = 1"
            )
        if self.policy.mechanism.stateful:
            raise ValueError(
                f'noise.kind = "{self.policy.noise.kind}" cancels in the sum of rounds, and every '
                "question has one answer; choose a policy with independent noise"
            )
        if self.policy.clipping is not None:
            raise ValueError(
                "clipping: no clip norm follows the answers to a question; choose a policy without "
                "that table"
            )
        if self.fleet is not None and self.dropout:
            raise ValueError("fleet and dropout: a fleet brings its own losses; state one of them")
        if self.cohort > self.policy.report_goal:
            raise ValueError(
                f"cohort = {self.cohort} exceeds the policy's report_goal = "
                f"{self.policy.report_goal}"
            )
        if self.rule.min_separation < self.policy.least_separation:
            raise ValueError(
                f"cohort = {self.cohort}: of {self.population:,} users so many would be asked in a "
                f"round that one is asked again after {self.rule.min_separation}, and the policy "
                f"asks a user once in {self.policy.least_separation} rounds; choose a smaller "
                "cohort"
            )

    @classmethod
    def of(
        cls,
        policy: Policy,
        users: int,
        cohort: int | None,
        aggregation: Kind = "ideal",
        dropout: float = 0.0,
        fleet: Fleet | None = None,
    ) -> QuerySession:
        """Choose whom to ask, so that nobody is asked more often than the policy pays for.

        What comes out is no figure of merit: somebody may publish it, or act on it. So the noise
        is never scaled down to a small cohort, as a simulation of training does. The policy is
        restated for the users there are, each device adds a larger share, and the sum carries the
        whole planned noise.

        Args:
            users: who may be asked.
            cohort: answers that are summed in a round; None: as many as the policy allows.
            fleet: its server asks more users than it needs.

        Raises:
            ValueError: more users than the policy covers, or a cohort that it does not allow.
        """
        if users > policy.population:
            raise ValueError(
                f"there are {users:,} users, and the policy covers {policy.population:,}; choose a "
                "policy for as many"
            )
        if not users:
            raise ValueError("there are no users to ask in this split of the population")
        turns = policy.least_separation
        asked = 1.0 if fleet is None else fleet.check_in
        most = min(policy.report_goal, largest_cohort(users // turns, asked))
        cohort = cohort or most
        if not 1 <= cohort <= most:
            raise ValueError(
                f"cohort = {cohort}: the policy sums {policy.report_goal:,} reports and asks a "
                f"user once in {turns} rounds, so of {users:,} users at most {most:,} are asked in "
                f"a round"
                + ("" if fleet is None else f"; the fleet's check_in = {asked:g} takes as many of "
                   "them for each answer")
            )  # fmt: skip
        restated = replace(policy, report_goal=cohort, population=users)
        return cls(restated, users, cohort, 0, aggregation, dropout, fleet=fleet)

    def users(self, round: int) -> list[int]:
        """Return the users who are asked in a round, as the policy's rotation has it."""
        asked: list[int] = cohort_of(self.rule, self.seed, round).tolist()
        return asked

    @property
    def guarantee(self) -> Guarantee:
        """What the policy promises for all its rounds together."""
        return guarantee(self.policy)

    @property
    def rule(self) -> CohortRule:
        """Who is asked in which round."""
        asked = 1.0 if self.fleet is None else self.fleet.check_in
        return simulated_rule(self.policy, self.population, self.cohort, asked)

    def privacy(self, query: Query) -> RunPrivacy:
        """Return clip, grid and noise of a query: its ``norm`` is the clip norm."""
        separate = self.aggregation == "protocol" or self.separate_noise
        return RunPrivacy(
            Deployment(self.policy),
            self.cohort,
            query.norm,
            self.rule,
            self.seed,
            self.reproducible,
            separate_noise=separate,
            trial=self.trial,
        )

    def summed_by(self, query: Query) -> Aggregation:
        """Return how the reports on a query are summed."""
        rules, noise = self.policy.devices, self.policy.noise
        silent = self.dropout if self.fleet is None else self.fleet.planned_dropout
        return Aggregation(
            self.aggregation,
            Adversary(rules.adversary),
            max(rules.corrupt, 1 - noise.honest_fraction),
            dropout=self.dropout,
            planned_dropout=max(silent, noise.tolerated_dropout),
            privacy=self.privacy(query),
        )

    def check(self, query: Query) -> None:
        """Refuse a query that cannot be summed; raises ValueError, before anybody is asked."""
        self.summed_by(query).config(broadcast_of(query, 0), self.cohort)

    def deviation(self, query: Query) -> float:
        """Return the standard deviation of the noise on a cell of the sum, in the cells' unit."""
        return self.privacy(query).sum_multiplier * query.norm


def ask(
    session: QuerySession,
    query: Query,
    number: int,
    users: Sequence[int],
    answer_of: AnswerOf,
    ledger: Ledger,
    tick: Tick = lambda done, asked: None,
    check: Check = lambda session, query, round: None,
    silent: dict[int, MessageKind] | None = None,
) -> Doubles:
    """Ask these users a query and return the noisy sum of their answers, float64[K].

    Args:
        number: of the round, from 0; a policy of r rounds pays for numbers below r.
        users: the cohort; each user's number names its device's randomness.
        answer_of: user → its device's answer, from its own text.
        ledger: is debited before the sum is returned.
        tick: told how many devices have answered.
        check: refuses the round, before anybody answers, where the people asked cannot pay it.
        silent: place among the users → the first message that a device does not send; None: the
            session's dropout decides.

    Guarantees:
        The ledger holds the cost, on the disk, before the sum is returned. The same session, query
        and text give the same sum to the byte, so a question that was interrupted and is asked
        again under the same seed releases nothing new, and the ledger counts it once.

    Raises:
        ValueError: the policy pays for no such round, or does not cover so few coordinates.
        SecaggError: the sum was not opened.
    """
    check_round(session, query, number, ledger)
    check(session, query, number)
    privacy, aggregation = session.privacy(query), session.summed_by(query)
    broadcast = broadcast_of(query, number)
    try:
        total = aggregation.open(broadcast, len(users), silent)
        present, done = total.waiting, 0
        for places in _groups(present, query.dim):
            chosen = [users[place] for place in places]
            vectors = query.vectors([answer_of(user) for user in chosen])
            reports, _ = protect_updates(privacy, vectors, broadcast, chosen, len(users))
            total.submit(reports, places)
            done += len(places)
            tick(done, len(present))
        released = release(privacy, total.close(), total.config, ledger, broadcast)
    except SecaggError as failure:
        record_failure(privacy, failure, broadcast, len(users), ledger)
        raise
    return sums_of(session, query, released.mean)


def sums_of(session: QuerySession, query: Query, mean: Updates) -> Doubles:
    """Return the sum in each cell of a released mean, float32[d]: float64[K]."""
    summed: Doubles = mean[: len(query.labels)].astype(np.float64) * session.cohort
    return summed


def check_round(session: QuerySession, query: Query, number: int, ledger: Ledger) -> None:
    """Refuse a round that the policy does not pay for; raises ValueError."""
    policy = session.policy
    if not 0 <= number < policy.rounds:
        raise ValueError(f"round {number} of a question for which the policy pays {policy.rounds}")
    if policy.noise.at == "device" and query.dim < policy.noise.min_dim:
        raise ValueError(
            f"the query has {query.dim} coordinates, the policy covers {policy.noise.min_dim} or "
            "more; lower the policy's noise.min_dim or set least_dim"
        )
    Budget(session.privacy(query), ledger).check(number, query.dim)


@dataclass(frozen=True)
class _Coordinates:
    """What a round needs to know of a query's cells, in the place of a model's payload."""

    dim: int
    digest: str


def broadcast_of(query: Query, number: int) -> Broadcast:
    """Return what devices receive: the query; no model travels with it."""
    cells = _Coordinates(query.dim, query.digest)
    return Broadcast(number, cast(Payload, cells), np.zeros(0, dtype=np.float32))


def _groups(present: list[int], dim: int) -> Iterator[list[int]]:
    """Yield the places of the devices that are encoded at once."""
    size = max(1, _COORDINATES // dim)
    for begin in range(0, len(present), size):
        yield present[begin : begin + size]
