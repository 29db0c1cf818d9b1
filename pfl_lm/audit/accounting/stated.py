"""What a run promised, read from its manifest; its rounds grouped by the auditor's own rules."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

from pfl_lm.audit.accounting.round_groups import RoundGroup
from pfl_lm.audit.accounting.streams import STREAMS, sensitivity
from pfl_lm.audit.accounting.values import check_values
from pfl_lm.audit.artifacts import AuditTarget


@dataclass(frozen=True)
class StatedGuarantee:
    """A policy, the noise that was derived from it, and the ε that was stated.

    Attributes:
        noise_multiplier: stddev of the noise of ``honest_reports`` shares on the sum ÷ clip_norm.
        share_multiplier: of one device's share; None where it is not stated.
        stated_epsilon, stated_server_epsilon: as published; ∞ where the manifest holds none.
        max_participations: the most rounds of a user, by the device's own count; 0: not stated.
        groups: public groups of a round, each with a sum of its own; counts of reports that open a
            sum, and of honest ones, are those of a group.
        stream: the numbers of noise that is correlated between rounds; None: there is none.
        clipping: how the clip norm follows the updates; None: it is fixed.
        stated_indicator_weight: length of an indicator ÷ clip norm, as published.
        Others: see ``pfl_lm.dp.policy.Policy``; the numbers are those of the deployment.
    """

    unit: str
    neighboring: str
    epsilon: float
    delta: float
    population: int
    report_goal: int
    rounds: int
    participation: str
    min_separation: int
    mechanism: str
    at: str
    tolerated_dropout: float
    excess: str
    levels: int
    honest_fraction: float
    grid_steps: float
    min_dim: int
    noise_multiplier: float
    share_multiplier: float | None
    stated_epsilon: float
    stated_server_epsilon: float
    max_participations: int = 0
    groups: int = 1
    stream: dict[str, Any] | None = None
    clipping: dict[str, Any] | None = None
    stated_indicator_weight: float | None = None

    @classmethod
    def of(cls, target: AuditTarget) -> StatedGuarantee | None:
        """Read what a run or a policy promises; None without a policy, or without noise.

        Raises:
            ValueError: the policy or the guarantee lacks a number, or holds one that is none or
                is out of range; names the file and the key.
        """
        policy, where = target.policy, target.where
        if policy is None:
            return None
        try:
            check_values(policy, None)
            if policy["noise"]["at"] == "none":
                return None
            check_values(policy, target.guarantee)
            stated = _stated(policy, target.guarantee)
        except (KeyError, TypeError) as error:
            raise ValueError(f"{where}: policy or guarantee is incomplete: {error}") from error
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from error
        if stated.honest_reports < 1 or not stated.honest_share > 0:
            raise ValueError(
                f"{where}: noise.honest_fraction = {stated.honest_fraction} is refused: it leaves "
                f"no honest report of {stated.least_reports}; expected more"
            )
        return stated

    @property
    def participations(self) -> int:
        """The most rounds one user can be in: all, unless a rotation keeps them apart."""
        if self.participation != "rotation":
            return self.rounds
        separated = 1 + (self.rounds - 1) // self.min_separation
        return min(separated, self.max_participations or separated)

    @property
    def least_separation(self) -> int:
        """How far apart two rounds of a user lie, so that nobody exceeds ``participations``."""
        return min(self.min_separation, self.rounds)

    @property
    def rate(self) -> float:
        return self.report_goal / self.population

    @property
    def amplified(self) -> bool:
        """Whether sampling counts: a least count decides about opening where devices add noise.

        Opening then tells of one user's coin, at some attendance likely, and nothing amplifies.
        """
        return self.participation != "rotation" and self.at == "server"

    @property
    def least_reports(self) -> int:
        if self.at != "device":
            return 0
        return math.ceil(self.report_goal // self.groups * (1 - self.tolerated_dropout) - 1e-9)

    @property
    def honest_reports(self) -> int:
        """Shares of noise that are relied on; 1 where the server adds the noise."""
        if self.at != "device":
            return 1
        return math.floor(self.least_reports * self.honest_fraction)

    @property
    def honest_share(self) -> float:
        """The least honest share of a sum's noise, at any count of reports that may be opened."""
        whole = self.at != "device" or self.honest_fraction == 1
        return 1.0 if whole else self.honest_fraction - 1 / self.least_reports

    @property
    def expected_share(self) -> float:
        """Deviation of one device's share ÷ clip norm, as it follows from the planned noise.

        What is removed at full attendance is left out; 0 where the server adds the noise.
        """
        if self.at != "device":
            return 0.0
        removed = self.excess == "removed"
        shares = self.report_goal * self.honest_share if removed else self.honest_reports
        return self.noise_multiplier / math.sqrt(shares)

    def sum_multiplier(self, divisor: int) -> float:
        """Return the planned noise on a sum of ``divisor`` reports ÷ clip norm.

        The mean of a simulation is as noisy as that of ``report_goal`` reports in the deployment.
        """
        goal = self.noise_multiplier
        if self.at == "device":
            goal = self.expected_share * math.sqrt(self.report_goal)
        return goal * divisor / self.report_goal

    @property
    def indicator_weight(self) -> float:
        """Length of an indicator ÷ clip norm; 0 where the clip norm is fixed.

        The noise on the count of short updates, half a clip norm of the indicator apart, is the
        allowed one: Andrew et al. 2021 (arXiv:1905.03871), Theorem 1.
        """
        if self.clipping is None:
            return 0.0
        return self.noise_multiplier / (2 * self.report_goal * self.clipping["indicator_noise"])

    def summed(self, dim: int) -> int:
        """Return how many coordinates are summed for ``dim`` of a payload."""
        return dim if self.clipping is None else dim + 1

    def carried(self, shares: float) -> float:
        """Return the noise of so many shares in a sum of the least count, as a multiplier.

        Where the excess is removed, the least count carries what the report goal does.
        """
        assert self.share_multiplier is not None
        if self.excess == "removed":
            shares = shares / self.least_reports * self.report_goal
        return self.share_multiplier * math.sqrt(shares)

    def round_group(self, rounds: int | None = None, **changes: Any) -> RoundGroup:
        """Return the planned rounds as they touch one user; ``changes`` replace fields.

        A stream of correlated noise is one Gaussian release at noise ÷ sensitivity, whatever the
        number of its rounds that a user is in.
        """
        if self.stream is not None:
            return self._one_release(rounds, **changes)
        sampled = self.amplified
        planned = RoundGroup(
            mechanism=self.mechanism,
            neighboring=self.neighboring,
            sampling=self.participation if sampled else "none",
            noise_multiplier=self.noise_multiplier,
            rounds=self.participations if rounds is None else rounds,
            rate=self.rate if sampled else 1.0,
            population=self.population,
            dim=self.min_dim if self.at == "device" else 1,
            grid_steps=self.grid_steps,
            shares=self.honest_reports,
        )
        return replace(planned, **changes)

    def _one_release(self, rounds: int | None, **changes: Any) -> RoundGroup:
        assert self.stream is not None
        times = self.participations if rounds is None else min(rounds, self.participations)
        noise = changes.get("noise_multiplier", self.noise_multiplier)
        moved = sensitivity(self.stream, self.min_separation, max(1, times))
        return RoundGroup("gaussian", self.neighboring, "none", noise / moved, min(1, times))


def _stated(policy: dict[str, Any], guarantee: dict[str, Any]) -> StatedGuarantee:
    noise, participation = policy["noise"], policy["participation"]
    infinite = {None: math.inf}
    return StatedGuarantee(
        unit=policy["unit"],
        neighboring=policy["neighboring"],
        epsilon=infinite.get(policy["epsilon"], policy["epsilon"]),
        delta=policy["delta"],
        population=policy["population"],
        report_goal=policy["report_goal"],
        rounds=policy["rounds"],
        participation=participation["kind"],
        min_separation=participation["min_separation"] or 1,
        mechanism=noise["kind"],
        at=noise["at"],
        tolerated_dropout=noise["tolerated_dropout"],
        excess=noise.get("excess", "kept"),
        levels=noise.get("levels", 16),
        honest_fraction=noise["honest_fraction"],
        grid_steps=noise["grid_steps"],
        min_dim=noise["min_dim"],
        noise_multiplier=guarantee["noise_multiplier"],
        share_multiplier=guarantee.get("share_multiplier"),
        stated_epsilon=infinite.get(guarantee["epsilon"], guarantee["epsilon"]),
        stated_server_epsilon=infinite.get(
            guarantee["epsilon_server"], guarantee["epsilon_server"]
        ),
        max_participations=participation.get("max_participations") or 0,
        groups=policy.get("groups", 1),
        stream=_stream(noise["kind"], policy["rounds"], guarantee),
        clipping=policy.get("clipping"),
        stated_indicator_weight=guarantee.get("indicator_weight"),
    )


def _stream(kind: str, rounds: int, guarantee: dict[str, Any]) -> dict[str, Any] | None:
    """Return the stated numbers of correlated noise; None where rounds are independent.

    Raises:
        KeyError: they are missing.
    """
    if kind not in STREAMS:
        return None
    stream = dict(guarantee["stream"])
    if stream["rounds"] != rounds:
        raise KeyError(f"a stream of {rounds} rounds, not of {stream['rounds']}")
    return {name: list(v) if isinstance(v, tuple) else v for name, v in stream.items()}
