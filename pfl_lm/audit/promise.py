"""What a run promised, read from its manifest and turned into phases by the auditor's own rules."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

from pfl_lm.audit.evidence import Claim
from pfl_lm.audit.phases import Phase


@dataclass(frozen=True)
class Promise:
    """A policy, the noise that was derived from it, and the ε that was stated.

    Attributes:
        noise_multiplier: stddev of the noise of ``honest_reports`` shares on the sum ÷ clip_norm.
        share_multiplier: of one device's share; None where it is not stated.
        stated_epsilon, stated_server_epsilon: as published; ∞ where the manifest holds none.
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
    honest_fraction: float
    grid_steps: float
    min_dim: int
    noise_multiplier: float
    share_multiplier: float | None
    stated_epsilon: float
    stated_server_epsilon: float

    @classmethod
    def of(cls, claim: Claim) -> Promise | None:
        """Read what a run or a policy promises; None without a policy, or without noise.

        Raises:
            ValueError: the policy or the guarantee lacks a number.
        """
        policy = claim.policy
        if policy is None or policy["noise"]["at"] == "none":
            return None
        try:
            return _promise(policy, claim.guarantee)
        except (KeyError, TypeError) as error:
            where = claim.where
            raise ValueError(f"{where}: policy or guarantee is incomplete: {error}") from error

    @property
    def participations(self) -> int:
        """The most rounds one user can be in."""
        return 1 + (self.rounds - 1) // self.min_separation

    @property
    def rate(self) -> float:
        return self.report_goal / self.population

    @property
    def least_reports(self) -> int:
        if self.at != "device":
            return 0
        return math.ceil(self.report_goal * (1 - self.tolerated_dropout) - 1e-9)

    @property
    def honest_reports(self) -> int:
        """Shares of noise that are relied on; 1 where the server adds the noise."""
        if self.at != "device":
            return 1
        return math.floor(self.least_reports * self.honest_fraction)

    @property
    def honest_share(self) -> float:
        """The least honest share of a sum's noise, at any count of reports that may be opened."""
        whole = self.honest_fraction == 1
        return 1.0 if whole else self.honest_fraction - 1 / self.least_reports

    def carried(self, shares: float) -> float:
        """Return the noise of so many shares in a sum of the least count, as a multiplier.

        Where the excess is removed, the least count carries what the report goal does.
        """
        assert self.share_multiplier is not None
        if self.excess == "removed":
            shares = shares / self.least_reports * self.report_goal
        return self.share_multiplier * math.sqrt(shares)

    def phase(self, rounds: int | None = None, **changes: Any) -> Phase:
        """Return the planned rounds as they touch one user; ``changes`` replace fields."""
        sampled = self.participation in ("poisson", "fixed")
        planned = Phase(
            mechanism=self.mechanism,
            neighboring=self.neighboring,
            sampling=self.participation if sampled else "none",
            noise_multiplier=self.noise_multiplier,
            rounds=self.participations if rounds is None else rounds,
            rate=self.rate if sampled else 1.0,
            population=self.population,
            least_reports=self.least_reports if self.participation == "poisson" else 0,
            dim=self.min_dim if self.at == "device" else 1,
            grid_steps=self.grid_steps,
            shares=self.honest_reports,
        )
        return replace(planned, **changes)


def _promise(policy: dict[str, Any], guarantee: dict[str, Any]) -> Promise:
    noise, participation = policy["noise"], policy["participation"]
    infinite = {None: math.inf}
    return Promise(
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
        honest_fraction=noise["honest_fraction"],
        grid_steps=noise["grid_steps"],
        min_dim=noise["min_dim"],
        noise_multiplier=guarantee["noise_multiplier"],
        share_multiplier=guarantee.get("share_multiplier"),
        stated_epsilon=infinite.get(guarantee["epsilon"], guarantee["epsilon"]),
        stated_server_epsilon=infinite.get(
            guarantee["epsilon_server"], guarantee["epsilon_server"]
        ),
    )
