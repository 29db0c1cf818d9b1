"""In which rounds a phone may take part, by what its own record says of earlier ones.

A record without a total is about one run under one policy. Where its owner's app stated a total ε,
the phone takes part in several runs and questions: in each as its own policy allows, and in all of
them together within that total, at whatever order they come.

Convention: ``min_separation`` bounds the DIFFERENCE of two round numbers, r₂ − r₁ ≥ b. Gboard's
published figures count the rounds BETWEEN two participations, r₂ − r₁ − 1: a separation of 484
there is b = 485 here (``from_published_separation``).

Source: Choquette-Choo et al. 2023, "(Amplified) Banded Matrix Factorization" (arXiv:2306.08153),
Section 2, for b-min-separation as a difference; Xu et al. 2023, "Federated learning of Gboard
language models with differential privacy" (arXiv:2305.18465), for devices that keep a timer.
"""

from __future__ import annotations

import json
import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

from pfl_lm.dp.accounting.accountant import PrivacyCost, compose, compose_all
from pfl_lm.dp.events import RoundEvent
from pfl_lm.dp.guarantee import guarantee
from pfl_lm.dp.policy import Policy
from pfl_lm.dp.population_spent import Total
from pfl_lm.numbers import format_epsilon

_DAY = 86_400.0  # seconds
# s since 1970. A phone that lost its battery starts at 1970: a trust period that began then would
# be over when its clock is set.
EARLIEST, LATEST = 1_672_531_200.0, 253_402_300_799.0  # 2023-01-01, and the end of the year 9999
NO_DATE = "this phone's clock tells no date between 2023 and 9999; set the clock right"


class InvitationRefused(ValueError):
    """The record forbids this participation; the message names the rule."""


@dataclass(frozen=True)
class Task:
    """Which rounds belong together: one run, under one policy, with one public seed.

    Attributes:
        run: the run's id as the server states it.
        policy: digest of the policy.
        seed: of the public cohorts.
        purpose: ``training``, or the kind of a question.
    """

    run: str
    policy: str
    seed: int
    purpose: str = "training"


@dataclass(frozen=True)
class Participation:
    """One round that this phone took part in.

    Attributes:
        time: seconds since 1970.
        seed: in decimal; it may exceed 64 bits.
        epsilon: what all rounds up to this one have cost together, against everyone, the server
            included.
        min_separation, most_rounds: what the policy allowed.
        epsilon_limit: the policy's ε, or the phone's total where one is stated.
        purpose: of the run.
        event: what the round's noise was, JSON of a ``RoundEvent``; empty in a record of an
            earlier version, which did not keep it.
    """

    time: float
    run: str
    policy: str
    seed: str
    round: int
    epsilon: float
    min_separation: int
    most_rounds: int
    epsilon_limit: float
    purpose: str = "training"
    event: str = ""


@dataclass(frozen=True)
class Installation:
    """When the record began, and whether somebody vouched that the phone never took part before."""

    began: float
    is_first: bool

    def waits_until(self, policy: Policy) -> float:
        """Return from when on this phone may take part, in seconds since 1970."""
        return self.began + (0.0 if self.is_first else policy.devices.trust_days * _DAY)


def refusal(
    installation: Installation,
    past: Sequence[Participation],
    task: Task,
    policy: Policy,
    round: int,
    now: float,
    total: Total | None = None,
) -> str | None:
    """Return the rule by which a phone must not take part in a round; None where it may.

    Args:
        past: every round that the phone took part in.
        task, round: the invitation.
        policy: the phone's own copy; its digest is ``task.policy``.
        now: seconds since 1970.
        total: what all runs and questions together may cost; None: one run alone.
    """
    if not is_date(now):
        return NO_DATE
    if not installation.began <= now:
        return (
            f"this phone's clock says {moment(now)}, and its record began at "
            f"{moment(installation.began)} (UTC); set the clock right"
        )
    if now < installation.waits_until(policy):
        return (
            f"this phone's record began on {day(installation.began)}: it takes part from "
            f"{day(installation.waits_until(policy))} on (devices.trust_days = "
            f"{policy.devices.trust_days:g}), because it may have taken part before a reinstall"
        )
    if reason := other_task(past, task, total):
        return reason
    own = [entry for entry in past if entry.run == task.run]  # without a total: all of them
    reason = _spacing(own, policy, round) or _budget(own, policy)
    return reason or (None if total is None else _above_total(past, task, policy, total))


def other_task(past: Sequence[Participation], task: Task, total: Total | None = None) -> str | None:
    """Return why earlier rounds were of another run, policy or seed; None where they were not.

    With a total, only a run's own rounds must have its policy and seed.
    """
    if total is not None:
        past = [entry for entry in past if entry.run == task.run]
    for name, stated in (("policy", task.policy), ("seed", str(task.seed)), ("run", task.run)):
        for entry in past:
            if (earlier := getattr(entry, name)) != stated:
                return (
                    f"this phone took part under another {name} ({earlier[:16]}, on "
                    f"{day(entry.time)}); this one is {stated[:16]}: its ε would not cover both"
                )
    return None


def _spacing(past: Sequence[Participation], policy: Policy, round: int) -> str | None:
    separation = policy.participation.min_separation or 1
    if not 0 <= round < policy.rounds:
        return f"round {round} is none of the policy's rounds 0 to {policy.rounds - 1}"
    for entry in past:
        if entry.round == round:
            return f"this phone took part in round {round} already"
        if entry.round > round:
            return f"round {round} is over: this phone took part in round {entry.round}"
        if round - entry.round < separation:
            return (
                f"round {round} is inside min_separation = {separation} of round {entry.round}: "
                f"their difference is {round - entry.round}"
            )
    return None


def _budget(past: Sequence[Participation], policy: Policy) -> str | None:
    epsilon = cost(policy, len(past) + 1)
    if len(past) < policy.participations and epsilon <= policy.epsilon:
        return None
    return (
        f"this phone took part in {len(past)} of the policy's {policy.participations} rounds, and "
        f"epsilon would be {format_epsilon(epsilon)} where the policy's is "
        f"{format_epsilon(policy.epsilon)}"
    )


@lru_cache(maxsize=256)
def cost(policy: Policy, rounds: int) -> float:
    """Return ε of a user's first rounds together, against everyone: sampling counts for nothing.

    The noise is the policy's, on the smallest payload that it covers.
    """
    return compose({event_of(policy): rounds}, policy.delta).epsilon_unamplified


def _above_total(
    past: Sequence[Participation], task: Task, policy: Policy, total: Total
) -> str | None:
    spent = total_cost(past, total)
    if total.covers(total_cost(past, total, (task.run, event_of(policy)))):
        return None
    by = ", ".join(sorted({f"{entry.purpose} {entry.run[:16]}" for entry in past})) or "nothing yet"
    return (
        f"this phone's total of {total} would be exceeded: epsilon is "
        f"{format_epsilon(spent.epsilon)} now, spent by {by}"
    )


def total_cost(
    past: Sequence[Participation], total: Total, planned: tuple[str, RoundEvent] | None = None
) -> PrivacyCost:
    """Return what all rounds of all runs cost this phone's user together, against everyone.

    Args:
        planned: run and event of one round more.

    A round whose noise an earlier version did not keep costs ∞.
    """
    rounds: dict[str, Counter[RoundEvent]] = defaultdict(Counter)
    for entry in past:
        rounds[entry.run][event_in(entry)] += 1
    if planned is not None:
        rounds[planned[0]][planned[1]] += 1
    cost = compose_all(list(rounds.values()), total.delta)
    return replace(cost, epsilon=cost.epsilon_unamplified)


def event_of(policy: Policy) -> RoundEvent:
    """Return what a round costs one who is in it: the policy's noise, on its smallest payload."""
    return policy.event(guarantee(policy).noise_multiplier)


def event_in(entry: Participation) -> RoundEvent:
    """Return what a round's noise was; one that an earlier version did not keep costs ∞."""
    if not entry.event:
        return RoundEvent("not kept", "zero_out", "none", 0.0)
    return RoundEvent(**json.loads(entry.event))


def from_published_separation(rounds_between: int) -> int:
    """Return ``min_separation`` for a published count of the rounds between two participations."""
    return rounds_between + 1


def is_date(seconds: float) -> bool:
    """Whether this program may have run at a time; a clock that was never set tells none."""
    return EARLIEST <= seconds <= LATEST


def day(seconds: float) -> str:
    """Write a time as a day of UTC, 2025-12-31."""
    return moment(seconds)[:10]


def moment(seconds: float) -> str:
    """Write a time as a minute of UTC, 2025-12-31 23:59; one after the year 9999 as its end."""
    return time.strftime("%Y-%m-%d %H:%M", time.gmtime(min(seconds, LATEST)))
