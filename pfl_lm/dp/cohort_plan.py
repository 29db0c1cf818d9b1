"""How many phones report in a round, for how many rounds: what an ε leaves of a round's mean."""

from __future__ import annotations

from dataclasses import dataclass

from pfl_lm.dp.guarantee import guarantee
from pfl_lm.dp.policy import Policy
from pfl_lm.dp.policy_tables import Noise, Participation


@dataclass(frozen=True)
class People:
    """A population, and what each person in it is promised, against the server too.

    Attributes:
        population: how many there are.
        reachable: how many of them a rotation may count on; no more than all.
        epsilon, delta: of the whole training, per user, under zero-out adjacency.
    """

    population: int
    reachable: int
    epsilon: float
    delta: float

    def __post_init__(self) -> None:
        if not 1 <= self.reachable <= self.population:
            raise ValueError(
                f"reachable = {self.reachable} must be 1 to population = {self.population}"
            )


@dataclass(frozen=True)
class CohortPlan:
    """A training in rotation whose phones add their own noise.

    Attributes:
        reports: of a round.
        separation: rounds after which a phone may join again: all reachable ones come first.
        joins: rounds that a phone is in, at most.
        noise_multiplier: on the sum of a round's reports, in clip norms.
    """

    rounds: int
    reports: int
    separation: int
    joins: int
    noise_multiplier: float

    @property
    def noise_of_mean(self) -> float:
        """Standard deviation of the noise in each coordinate of a round's mean, in clip norms.

        Over T rounds of n reports of N phones it is close to T · z₁ ÷ (N √k), for k joins a phone
        and z₁ the noise multiplier of one: a larger cohort is worth more than the noise that its
        phones' further joins cost.
        """
        return self.noise_multiplier / self.reports


def plan(people: People, reports: int, rounds: int) -> CohortPlan:
    """Plan a training under Skellam noise of the phones, every one of them as rarely as can be.

    Raises:
        ValueError: there are fewer people than reports, or no noise keeps the ε.
    """
    if reports > people.reachable:
        raise ValueError(
            f"reports = {reports:,} of a round exceed the {people.reachable:,} reachable people"
        )
    separation = min(people.reachable // reports, rounds)
    policy = Policy(
        unit="user",
        neighboring="zero_out",
        epsilon=people.epsilon,
        delta=people.delta,
        population=people.population,
        report_goal=reports,
        rounds=rounds,
        participation=Participation("rotation", min_separation=separation),
        noise=Noise("device", "skellam"),
    )
    noise = guarantee(policy).noise_multiplier
    return CohortPlan(rounds, reports, separation, policy.participations, noise)
