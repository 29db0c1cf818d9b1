"""Who was invited: the run's own cohorts, held against the separation that is counted."""

from __future__ import annotations

from collections.abc import Sequence

from pfl_lm.audit.findings import Finding
from pfl_lm.run import availability
from pfl_lm.run.context import RunContext

_NAME = "separation of a user's rounds"


def separation(context: RunContext, rounds: Sequence[int], claimed: bool) -> list[Finding]:
    """Draw the cohorts of a rotation again: no user twice within the policy's separation.

    Args:
        rounds: that were opened.
        claimed: the run guarantees something of its own model. A simulation of too few users has
            the separation that they allow.
    """
    policy, rule = context.privacy.policy, context.privacy.rule
    if policy is None or policy.participation.min_separation is None:
        return []
    least = policy.least_separation
    if not claimed:
        least = min(least, rule.population // int(rule.size_or_rate))
    if rule.min_separation < least:
        text = f"The run invites a user again after {rule.min_separation} rounds, not {least}."
        return [Finding(_NAME, False, text)]
    last: dict[int, int] = {}
    for number in sorted(rounds):
        users = availability.rules.cohort(rule, context.scenario.seed, number).tolist()
        if len(set(users)) < len(users):
            return [Finding(_NAME, False, f"Round {number} invites a user twice.")]
        soon = [user for user in users if number - last.get(user, -least) < least]
        if soon:
            text = (
                f"Round {number} invites a user again, {number - last[soon[0]]} rounds "
                f"after the last time; the cost is counted for {least} or more."
            )
            return [Finding(_NAME, False, text)]
        last.update(dict.fromkeys(users, number))
    text = f"In {len(rounds)} rounds no user is invited twice within {least}"
    if least < policy.least_separation:
        text += f", all that so few users allow; the policy's {policy.least_separation} cannot be "
        return [Finding(_NAME, None, text + "tested.")]
    return [Finding(_NAME, True, text + ".")]
