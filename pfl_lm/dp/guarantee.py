"""From a policy to what it guarantees: the noise, ε against two adversaries, a sentence."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from pfl_lm.dp.accounting.accountant import PrivacyCost, compose
from pfl_lm.dp.accounting.calibration import noise_multiplier
from pfl_lm.dp.accounting.divergences import DIVERGENCES
from pfl_lm.dp.accounting.streams import stream_sensitivity
from pfl_lm.dp.events import StreamPlan
from pfl_lm.dp.grid_norms import grid_norm
from pfl_lm.dp.mechanisms import MECHANISMS
from pfl_lm.dp.policy import Policy, Reviewed
from pfl_lm.numbers import format_epsilon, rounded_up

_AGREEMENT = 1e-4  # relative; covers the rounding of another machine's mathematical library


@dataclass(frozen=True)
class Guarantee:
    """What follows from a policy."""

    noise_multiplier: float  # stddev of the noise on the sum of honest_reports shares ÷ clip_norm
    # Stddev ÷ clip_norm of what one device adds, less what is removed at full attendance; 0 unless
    # at the device.
    share_multiplier: float
    least_reports: int
    most_reports: int | None
    honest_reports: int
    participations: int  # the most rounds one user can be in
    epsilon: float  # against those who see every released model
    epsilon_unamplified: float  # and also learn who took part in which round
    epsilon_server: float  # against an honest-but-curious server
    delta: float
    rho: float | None  # zCDP, where the noise is Gaussian and nothing is sampled
    accountant: str
    assumptions: tuple[str, ...]
    statement: str
    stream: StreamPlan | None = None  # of noise that is correlated between rounds
    sensitivity: float = 1.0  # of the released stream, in clip norms of one round
    indicator_weight: float = 0.0  # of adaptive clipping: length of an indicator ÷ clip_norm


def guarantee(policy: Policy) -> Guarantee:
    """Derive the noise from the policy, and state what it guarantees.

    Guarantees:
        ``epsilon`` was accounted for at the returned noise multiplier and is at most
        ``policy.epsilon``. The honest-but-curious server sees every sum and who took part, so
        no sampling helps against it; where the server adds the noise it sees sums without, and
        ``epsilon_server`` is ∞.

    Raises:
        ValueError: no noise reaches the policy's ε, the policy relies on secret coins and does
            not accept what holds against the server, or indicators would crowd out updates.
    """
    return _derived(policy, frozenset(DIVERGENCES.items()), frozenset(MECHANISMS.items()))


@lru_cache(maxsize=64)
def _derived(policy: Policy, *registered: frozenset[Any]) -> Guarantee:
    """Derive what follows from a policy, the proofs and the mechanisms that are registered now."""
    if policy.noise.at == "none":
        z = 0.0
    else:
        z = noise_multiplier(policy.event(0.0), policy.participations, policy.epsilon, policy.delta)
    _check_shares(policy, z)
    cost = compose({policy.event(z): policy.participations}, policy.delta)
    on_device = policy.noise.at == "device"
    server = cost.epsilon_unamplified if on_device else math.inf
    _check_accepted(policy, server)
    return Guarantee(
        noise_multiplier=z,
        share_multiplier=z / math.sqrt(_carriers(policy)) if on_device else 0.0,
        least_reports=policy.least_reports,
        most_reports=policy.most_reports,
        honest_reports=policy.honest_reports,
        participations=policy.participations,
        epsilon=cost.epsilon,
        epsilon_unamplified=cost.epsilon_unamplified,
        epsilon_server=server,
        delta=policy.delta,
        rho=cost.rho,
        accountant=cost.accountant,
        assumptions=(*cost.assumptions, *_deployment(policy)),
        statement=_statement(policy, z, cost),
        stream=policy.event(z).stream,
        sensitivity=stream_sensitivity(policy.event(z)),
        indicator_weight=_indicator_weight(policy, z),
    )


def _indicator_weight(policy: Policy, z: float) -> float:
    return 0.0 if policy.clipping is None else policy.clipping.weight(z, policy.report_goal)


def _check_accepted(policy: Policy, server: float) -> None:
    """Refuse a policy that relies on secret coins and hides what holds against the server."""
    accepted = policy.accepted_server_epsilon
    if accepted is None and not policy.amplified:
        return
    if accepted is None or server > accepted * (1 + _AGREEMENT):
        stated = "is missing" if accepted is None else f"is {accepted:g}"
        raise ValueError(
            f"accepted_server_epsilon {stated}, but ε against the server is "
            f"{format_epsilon(server)}: write accepted_server_epsilon = {rounded_up(server):.6g} "
            "to accept that, or use "
            'participation.kind = "rotation" with noise.at = "device"'
        )


def _carriers(policy: Policy) -> float:
    """Return by how many shares, at full attendance, the planned noise is carried."""
    if policy.excess_removed:
        return policy.report_goal * policy.honest_share
    return policy.honest_reports


def _check_shares(policy: Policy, z: float) -> None:
    """Refuse shares that the mechanism has no proof for at the smallest payload."""
    if policy.noise.at != "device":
        return
    norm = grid_norm(policy.noise.grid_steps, policy.noise.min_dim)
    policy.mechanism.check_share(z * norm / math.sqrt(policy.honest_reports))


def stale(reviewed: Reviewed, current: Guarantee) -> list[str]:
    """Return a line for every reviewed figure that no longer follows from the policy."""
    lines = []
    for name in ("noise_multiplier", "epsilon", "epsilon_unamplified", "rho"):
        approved, now = getattr(reviewed, name), getattr(current, name)
        if approved is None:
            continue
        if now is None or not math.isclose(approved, now, rel_tol=_AGREEMENT):
            shown = "no figure of this policy" if now is None else f"now {now:g}"
            lines.append(f"reviewed.{name} = {approved:g}, but it is {shown}")
    return lines


def _deployment(policy: Policy) -> list[str]:
    """Return the assumptions that only the policy knows of."""
    conditions = []
    if policy.participation.kind != "rotation":
        conditions.append(f"at least {policy.population:,} devices can take part in every round")
    if policy.noise.at == "device":
        conditions.append(
            f"of every {policy.least_reports:,} reports summed, {policy.honest_reports:,} carry "
            "an honest share of noise; secure aggregation opens no smaller sum and no part of one"
        )
        if policy.excess_removed:
            conditions.append(
                "noise beyond the plan is drawn from 256-bit seeds that secure aggregation shares, "
                "and is removed when they are opened; the noise that stays is drawn likewise "
                "(computational privacy), and devices without honest noise, opened or not, take "
                "none of it away"
            )
        if policy.groups > 1:
            conditions.append(
                f"each report is in one of a round's {policy.groups} public groups, drawn at "
                "random, and what is said of honest reports holds in every group"
            )
        conditions += _device_rules(policy)
        conditions.append(f"no payload has fewer than {policy.noise.min_dim:,} coordinates")
    if policy.noise.at == "server":
        conditions.append("the server is trusted with each sum until it has added the noise")
    if policy.clipping is not None:
        conditions.append(
            "the clip norm of a round follows from what earlier rounds released and from nothing "
            "else; devices tell it by an indicator inside the clipped vector"
        )
    if policy.unit == "device":
        conditions.append("a person with several devices is covered once for each")
    return [
        *conditions,
        "vocabulary, tokenizer and the choice of hyperparameters use no private text",
        (
            "figures of people's text beside the models, such as losses, lengths of updates and "
            "evaluations, carry no noise and are published to nobody"
        ),
    ]


def _device_rules(policy: Policy) -> list[str]:
    """Return what devices of a deployment check themselves, and what they cannot notice."""
    rules = policy.devices
    sentences = [
        (
            "each device compares the server's numbers with its own copy of this policy and leaves "
            f"if one promises less; secure aggregation withstands {_SERVER[rules.adversary]} and "
            f"{100 * rules.corrupt:g}% corrupt devices in a cohort, and the authority that "
            "certifies devices does not collude with the server"
        )
    ]
    if policy.participation.kind == "rotation":
        sentences.append(
            "each device writes a participation on its disk before it reports and refuses rounds "
            "by that record; a phone without a record waits "
            f"{rules.trust_days:g} days; a record put back from a backup, and a second phone of "
            "the same user, are not noticed"
        )
    return sentences


_SERVER = {"active": "an active server", "semi-honest": "a semi-honest server"}

_CHANGE = {
    "zero_out": "any one {unit}'s contributions had all been zero",
    "add_remove": "any one {unit} had not existed",
    "replace_one": "any one {unit}'s data had been entirely different",
}


def _statement(policy: Policy, z: float, cost: PrivacyCost) -> str:
    """Return one sentence to publish, whose first figure is the largest: to whom, what, how."""
    rounds = "one round" if policy.rounds == 1 else f"{policy.rounds:,} rounds together"
    if policy.noise.at == "none":
        return f"No differential privacy is guaranteed over {rounds} (no noise, ε = ∞)."
    change = _CHANGE[policy.neighboring].format(unit=policy.unit)
    place = "added in shares by the devices" if policy.noise.at == "device" else "added centrally"
    first, whom = _adversaries(policy, cost)
    return (
        f"{first}ll models released over {rounds} are "
        f"({format_epsilon(cost.epsilon)}, {policy.delta:g})-differentially private per "
        f"{policy.unit} {whom}: they are almost as likely if {change} ({policy.neighboring}); "
        f"{_participation(policy)}, and {_sums(policy)} carries "
        f"{policy.mechanism.label} noise of {z:.4g} clip norms, {place}{_clip(policy)}."
    )


def _clip(policy: Policy) -> str:
    clipping = policy.clipping
    if clipping is None:
        return ""
    return (
        f"; the clip norm follows the {clipping.quantile:g} quantile of update norms between "
        f"{clipping.lowest:g} and {clipping.highest:g}, by a share of short updates that each sum "
        f"tells with noise of {clipping.indicator_noise:g}, at no further ε"
    )


def _sums(policy: Policy) -> str:
    if policy.groups == 1:
        return "the sum of each round's reports"
    return f"the sum of each of a round's {policy.groups} public groups of reports"


def _adversaries(policy: Policy, cost: PrivacyCost) -> tuple[str, str]:
    """Return what is said before the released models' figure, and against whom that one holds."""
    if policy.noise.at == "device":
        return "A", "against everyone, the honest-but-curious server included"
    trusted = "The server is trusted: it adds the noise and sees each sum without (ε = ∞)"
    if not policy.amplified:
        return f"{trusted}; a", "against everyone else"
    known = (
        f"{trusted}; against a person who learns who took part or how many reported, ε is "
        f"{format_epsilon(cost.epsilon_unamplified)} for a {policy.unit} who joins every round"
    )
    return f"{known}; a", "against a person who sees the models and nothing else"


def _participation(policy: Policy) -> str:
    population, goal = f"{policy.population:,}", f"{policy.report_goal:,}"
    plain = "" if policy.amplified else ", which is not counted on"
    if policy.participation.kind == "poisson":
        return (
            f"each of {population} {policy.unit}s joins a round with probability "
            f"{policy.rate:g}{plain}"
        )
    if policy.participation.kind == "fixed":
        return f"each round draws {goal} of {population} {policy.unit}s uniformly{plain}"
    times = "once" if policy.participations == 1 else f"{policy.participations} times"
    return f"each of {population} {policy.unit}s takes part at most {times}"
