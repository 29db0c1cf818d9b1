"""What a run must keep for devices of full strength: compared field by field with their policy.

The server checks it before it opens the port, and each device checks it again with the policy that
it holds itself. A server can state more protection than the policy, never less.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

from pfl_lm.dp.clipping import Clip
from pfl_lm.dp.cohort import CohortRule
from pfl_lm.dp.policy import Policy
from pfl_lm.payload.layout import Payload
from pfl_lm.run.privacy import RunPrivacy
from pfl_lm.secagg.config import DevicePolicy, RoundConfig
from pfl_lm.secagg.errors import Refused
from pfl_lm.secagg.keys import KEY_BYTES
from pfl_lm.secagg.parameters import Adversary, at_best

_TRIAL = "only a trial runs so"


ONE_SUM = "over the network a round has one sum; choose a policy with groups = 1"


class RunTerms(Protocol):
    """What a run of training, or a question, states of its rounds; a scenario has these fields."""

    @property
    def reproducible(self) -> bool: ...

    @property
    def cohort(self) -> int: ...

    @property
    def rounds(self) -> int: ...

    @property
    def clip_norm(self) -> float: ...

    @property
    def secure_aggregation(self) -> str: ...

    @property
    def adversary(self) -> str | None: ...

    @property
    def corrupt(self) -> float: ...

    @property
    def dropout(self) -> float: ...


def check_run(policy: Policy | None, scenario: RunTerms, enrolled: int) -> None:
    """Refuse a run that promises less than the policy.

    | what the guarantee stands on      | accepted                                   |
    |-----------------------------------|--------------------------------------------|
    | noise                             | at the device, never from a seed           |
    | participation                     | rotation: it needs no secret coins         |
    | population                        | enrolled ≥ the policy's                    |
    | public groups                     | none: a round has one sum                  |
    | cohort                            | = report_goal                              |
    | rounds                            | ≤ the policy's                             |
    | clip norm of round 0, if it moves | within the policy's bounds                 |
    | secure aggregation                | the protocol, against ≥ the adversary      |
    | corrupt share                     | ≥ the policy's, and ≥ 1 − honest_fraction  |
    | dropout                           | ≤ the tolerated one                        |

    Args:
        policy: the checking side's own copy.
        enrolled: devices that may be invited.

    Raises:
        ValueError: naming every field that promises too little.
    """
    if policy is None or policy.noise.at == "none":
        raise ValueError(f"there is no privacy policy: {_TRIAL}")
    if policy.noise.at == "server":
        raise ValueError(
            'noise.at = "server": the server would see each sum without noise, so the policy\'s ε '
            f"does not hold against it; {_TRIAL}"
        )
    if policy.participation.kind != "rotation":
        raise ValueError(
            f'participation.kind = "{policy.participation.kind}": the seed of the sampling coins '
            "is public, so the policy's ε does not hold against the server; choose a policy of "
            f'kind = "rotation"; {_TRIAL}'
        )
    if differences := [*_differences(policy, scenario, enrolled)]:
        raise ValueError(f"{'; '.join(differences)}; {_TRIAL}")


def _differences(policy: Policy, scenario: RunTerms, enrolled: int) -> Iterator[str]:
    """Yield a line for every number that promises less than the policy."""
    rules, noise = policy.devices, policy.noise
    if policy.groups > 1:
        yield f"groups = {policy.groups}: {ONE_SUM}"
    if scenario.reproducible:
        yield "reproducible = true: noise that can be repeated protects nobody"
    if scenario.cohort != policy.report_goal:
        yield (
            f"cohort = {scenario.cohort} is not the policy's report_goal = {policy.report_goal}: "
            "the noise would fall short"
        )
    if enrolled < policy.population:
        yield (
            f"population: {enrolled:,} devices are enrolled, the policy needs "
            f"{policy.population:,}: min_separation would not hold"
        )
    if scenario.rounds > policy.rounds:
        yield f"rounds = {scenario.rounds:,} exceeds the policy's {policy.rounds:,}"
    clip = policy.clipping
    if clip is not None and not clip.lowest <= scenario.clip_norm <= clip.highest:
        yield (
            f"clip_norm = {scenario.clip_norm:g} lies outside the policy's clipping.lowest = "
            f"{clip.lowest:g} to clipping.highest = {clip.highest:g}"
        )
    if scenario.secure_aggregation != "protocol":
        yield f'secure_aggregation = "{scenario.secure_aggregation}" is not "protocol"'
    if rules.adversary == "active" and scenario.adversary != "active":
        yield f'adversary = "{scenario.adversary}" is weaker than the policy\'s "active"'
    if scenario.corrupt < (least := least_corrupt(policy)):
        yield f"corrupt = {scenario.corrupt:g} is below the policy's {least:g}"
    if scenario.dropout > noise.tolerated_dropout:
        yield (
            f"dropout = {scenario.dropout:g} exceeds the policy's tolerated_dropout = "
            f"{noise.tolerated_dropout:g}"
        )


def check_rule(policy: Policy, rule: CohortRule) -> None:
    """Refuse a cohort rule that invites a device more often than the policy allows.

    Raises:
        ValueError: naming ``min_separation``.
    """
    if rule.kind != "rotation" or rule.min_separation < policy.least_separation:
        raise ValueError(
            f"min_separation = {rule.min_separation} is below the policy's "
            f"{policy.least_separation}; {_TRIAL}"
        )


def check_round(policy: Policy, config: RoundConfig) -> None:
    """Refuse a server's own round, if devices of full strength would.

    Raises:
        ValueError: naming what they would refuse.
    """
    try:
        device_policy(policy, bytes(KEY_BYTES)).check(config)
    except Refused as error:
        raise ValueError(f"devices would refuse every round: {error}; {_TRIAL}") from error


def check_payload(policy: Policy, payload: Payload) -> None:
    """Refuse a payload that the policy's accounting does not cover.

    Raises:
        Refused: naming ``noise.min_dim``.
    """
    if payload.dim < policy.noise.min_dim:
        raise Refused(
            f"the payload has {payload.dim:,} coordinates, the policy's noise.min_dim is "
            f"{policy.noise.min_dim:,}"
        )


def check_clip(privacy: RunPrivacy, round: int, stated: float) -> Clip | None:
    """Return the clip of a round that an invitation states; None: the task configuration's.

    It begins at the task configuration's and moves by a bounded factor in a round,
    within the bounds of the device's own copy of the policy. What a device sends is noised by the
    same multiple of any clip norm, so no statement of the server can make the noise less.

    Raises:
        Refused: naming clip_norm, and what it may be.
    """
    clipping, first = privacy.clipping, privacy.clip_norm
    if stated == 0:
        return None
    if clipping is None:
        raise Refused(f"the server states clip_norm = {stated:g}; the policy's does not move")
    least, largest = clipping.reach(first, round)
    if not least <= stated <= largest:
        raise Refused(
            f"the server states clip_norm = {stated:g}; in round {round} the policy allows "
            f"{least:.4g} to {largest:.4g}"
        )
    return Clip(stated)


def least_corrupt(policy: Policy) -> float:
    """Return the least share of a cohort that secure aggregation must withstand as corrupt."""
    return max(policy.devices.corrupt, 1 - policy.noise.honest_fraction)


def device_policy(policy: Policy, authority: bytes) -> DevicePolicy:
    """Return what a device insists on in each round of secure aggregation.

    The neighbours are those of ``parameters.at_best`` for the policy's own numbers.
    """
    adversary = Adversary(policy.devices.adversary)
    graph = at_best(
        policy.report_goal,
        least_corrupt(policy),
        policy.noise.tolerated_dropout,
        adversary,
        policy.devices.least_neighbours,
    )
    least = max(2, policy.least_reports)
    return DevicePolicy(
        least_reports=least,
        least_cohort=max(3, least),
        least_neighbours=graph.neighbours,
        adversary=adversary,
        authority=authority,
    )
