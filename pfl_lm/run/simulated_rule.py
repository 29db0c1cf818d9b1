"""Who is invited in a simulation: a policy's participation at the scale of fewer users."""

from __future__ import annotations

import math

from pfl_lm.dp.cohort import CohortRule
from pfl_lm.dp.policy import Policy


def simulated_rule(
    policy: Policy | None, population: int, cohort: int, asked: float = 1.0
) -> CohortRule:
    """Scale a policy's participation to fewer users.

    Under rotation users come again sooner than the policy says where there are too few of them;
    such a run guarantees nothing (``RunPrivacy.simulated``).

    Args:
        population: users who may be invited.
        asked: users that a fleet's server asks, as a multiple of the cohort.

    Raises:
        ValueError: they are fewer than the cohort, or the policy counts on sampling
            where a fleet decides who takes part.
    """
    users = users_asked(cohort, asked)
    if users > population:
        raise ValueError(
            f"cohort = {cohort} exceeds the {population} users who may be invited"
            if users == cohort
            else f"cohort = {cohort}: a fleet's server asks {users} users for as many reports, and "
            f"the population has {population}; lower cohort or the fleet's check_in, or have more "
            "users"
        )
    kind = "poisson" if policy is None else policy.participation.kind
    if asked > 1:
        if policy is None:
            return CohortRule("fixed", population, users)
        if kind != "rotation":
            raise ValueError(
                f'participation.kind = "{kind}" with a fleet: who is free, charging and fast '
                "decides then, not a coin, so sampling amplifies nothing; choose a policy of "
                'kind = "rotation"'
            )
    if kind == "poisson":
        return CohortRule("poisson", population, cohort / population)
    if kind == "fixed":
        return CohortRule("fixed", population, cohort)
    assert policy is not None
    if policy.participations < policy.separated_rounds:
        raise ValueError(
            f"participation.max_participations = {policy.participations} is below the "
            f"{policy.separated_rounds} rounds that min_separation leaves: a run of this package "
            "invites by the separation alone; raise min_separation, or leave max_participations out"
        )
    stated = policy.participation.min_separation or 1
    return CohortRule("rotation", population, users, min(stated, population // users))


def users_asked(cohort: int, asked: float) -> int:
    """Return how many users a server asks that asks ``asked`` times the cohort."""
    return math.ceil(cohort * asked)


def largest_cohort(users: int, asked: float) -> int:
    """Return the largest cohort for which such a server asks no more than ``users``."""
    cohort = math.floor(users / asked)
    return cohort if users_asked(cohort, asked) <= users else cohort - 1
