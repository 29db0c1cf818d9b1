"""From a policy to what it guarantees: the noise, ε against two adversaries, a sentence."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

from pfl_lm.dp.accounting import Spent, spent
from pfl_lm.dp.calibration import noise_multiplier
from pfl_lm.dp.discrete import grid_norm
from pfl_lm.dp.policy import Policy, Reviewed

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
    epsilon: float  # against whoever sees every released model
    epsilon_unamplified: float  # against whoever also learns who took part in which round
    epsilon_server: float  # against an honest-but-curious server
    delta: float
    rho: float | None  # zCDP, where the noise is Gaussian and nothing is sampled
    accountant: str
    assumptions: tuple[str, ...]
    statement: str


@lru_cache(maxsize=64)
def guarantee(policy: Policy) -> Guarantee:
    """Derive the noise from the policy, and state what it guarantees.

    Guarantees:
        ``epsilon`` was accounted for at the returned noise multiplier and is at most
        ``policy.epsilon``. The honest-but-curious server sees every sum and who took part, so
        no sampling helps against it; where the server adds the noise it sees sums without, and
        ``epsilon_server`` is ∞.

    Raises:
        ValueError: no noise reaches the policy's ε.
    """
    if policy.noise.at == "none":
        z = 0.0
    else:
        z = noise_multiplier(policy.event(0.0), policy.participations, policy.epsilon, policy.delta)
    _check_shares(policy, z)
    cost = spent({policy.event(z): policy.participations}, policy.delta)
    on_device = policy.noise.at == "device"
    server = cost.epsilon_unamplified if on_device else math.inf
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
    )


def _carriers(policy: Policy) -> float:
    """Return by how many shares, at full attendance, the planned noise is carried."""
    if policy.excess_removed:
        return policy.report_goal * policy.honest_share
    return policy.honest_reports


def _check_shares(policy: Policy, z: float) -> None:
    """Refuse discrete Gaussian shares too narrow for their sum to be accounted for at any dim."""
    if policy.noise.kind != "discrete_gaussian":
        return
    norm = grid_norm(policy.noise.grid_steps, policy.noise.min_dim)
    share = z * norm / math.sqrt(policy.honest_reports)
    if share < 1:
        raise ValueError(
            f"noise: a discrete Gaussian share has a standard deviation of {share:.2g} grid steps "
            "and needs 1; raise grid_steps or min_dim, or use skellam, which has no such limit"
        )


def stale(reviewed: Reviewed, found: Guarantee) -> list[str]:
    """Return a line for every reviewed figure that no longer follows from the policy."""
    lines = []
    for name in ("noise_multiplier", "epsilon", "epsilon_unamplified"):
        approved, now = getattr(reviewed, name), getattr(found, name)
        if approved is not None and not math.isclose(approved, now, rel_tol=_AGREEMENT):
            lines.append(f"reviewed.{name} = {approved:g}, but it is now {now:g}")
    return lines


def _deployment(policy: Policy) -> list[str]:
    """Return the assumptions that only the policy knows of."""
    found = []
    if policy.participation.kind != "rotation":
        found.append(f"at least {policy.population:,} devices can take part in every round")
    if policy.noise.at == "device":
        found.append(
            f"of every {policy.least_reports:,} reports summed, {policy.honest_reports:,} carry "
            "an honest share of noise; secure aggregation opens no smaller sum and no part of one"
        )
        if policy.excess_removed:
            found.append(
                "noise beyond the plan is drawn from 256-bit seeds that secure aggregation shares, "
                "and is removed when they are opened; the noise that stays is drawn likewise "
                "(computational privacy), and devices without honest noise, opened or not, take "
                "none of it away"
            )
        found.append(f"no payload has fewer than {policy.noise.min_dim:,} coordinates")
    if policy.noise.at == "server":
        found.append("the server is trusted with each sum until it has added the noise")
    if policy.unit == "device":
        found.append("a person with several devices is covered once for each")
    found.append(
        "vocabulary, tokenizer, evaluation and the choice of hyperparameters use no private text"
    )
    return found


_NOISE = {"skellam": "Skellam", "discrete_gaussian": "discrete Gaussian", "gaussian": "Gaussian"}

_CHANGE = {
    "zero_out": "any one {unit}'s contributions had all been zero",
    "add_remove": "any one {unit} had not existed",
    "replace_one": "any one {unit}'s data had been entirely different",
}


def _statement(policy: Policy, z: float, cost: Spent) -> str:
    """Return one sentence to publish: to whom, what, how, and what it is without amplification."""
    if policy.noise.at == "none":
        return (
            f"No differential privacy is guaranteed for these {policy.rounds:,} rounds "
            "(no noise, ε = ∞)."
        )
    change = _CHANGE[policy.neighboring].format(unit=policy.unit)
    place = "added in shares by the devices" if policy.noise.at == "device" else "added centrally"
    return (
        f"All models released over {policy.rounds:,} rounds together are ({_ceil(cost.epsilon)}, "
        f"{policy.delta:g})-differentially private per {policy.unit}: they are almost as likely "
        f"if {change} ({policy.neighboring}); {_participation(policy)}, and the sum of each "
        f"round's reports carries {_NOISE[policy.noise.kind]} noise of {z:.4g} clip norms, "
        f"{place}; {_others(policy, cost)}."
    )


def _participation(policy: Policy) -> str:
    population, goal = f"{policy.population:,}", f"{policy.report_goal:,}"
    if policy.participation.kind == "poisson":
        return f"each of {population} {policy.unit}s joins a round with probability {policy.rate:g}"
    if policy.participation.kind == "fixed":
        return f"each round draws {goal} of {population} {policy.unit}s uniformly"
    times = "once" if policy.participations == 1 else f"{policy.participations} times"
    return f"each of {population} {policy.unit}s takes part at most {times}"


def _others(policy: Policy, cost: Spent) -> str:
    """State what holds where sampling hides nobody, and against the server."""
    on_device = policy.noise.at == "device"
    trusted = "the server, which adds the noise, is trusted with each sum"
    if policy.participation.kind == "rotation":
        return "this holds against an honest-but-curious server too" if on_device else trusted
    whom = (
        "an honest-but-curious server, which sees each sum and who took part"
        if on_device
        else "anyone who learns who took part"
    )
    plain = (
        f"against {whom}, no amplification by sampling counts and ε is "
        f"{_ceil(cost.epsilon_unamplified)} for a {policy.unit} who joins every round"
    )
    return plain if on_device else f"{plain}; {trusted}"


def _ceil(epsilon: float) -> str:
    """Print ε rounded up to three decimals."""
    return f"{math.ceil(epsilon * 1000 - 1e-6) / 1000:,g}" if epsilon < 1e5 else f"{epsilon:.1e}"
