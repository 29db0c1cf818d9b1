"""A privacy policy: every number ε depends on; and the guarantee that follows from it.

Noise is derived, never typed: a policy states ε, δ and how people take part.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

from pfl_lm.dp.events import Neighboring, RoundEvent


@dataclass(frozen=True)
class Participation:
    """How a user comes to be in a round.

    ``poisson``: each device joins every round by its own coin, with chance report_goal ÷
    population. ``rotation``: a device joins whenever it is invited, but no two of its rounds lie
    closer than ``min_separation`` (r₂ − r₁ ≥ min_separation). ``fixed``: the cohort is a uniform
    subset of report_goal devices.
    """

    kind: Literal["poisson", "rotation", "fixed"]
    min_separation: int | None = None  # rounds

    def __post_init__(self) -> None:
        if self.kind == "rotation" and (self.min_separation is None or self.min_separation < 1):
            raise ValueError("min_separation must be stated and at least 1 under rotation")
        if self.kind != "rotation" and self.min_separation is not None:
            raise ValueError(f"min_separation belongs to rotation, not to {self.kind!r}")


@dataclass(frozen=True)
class Noise:
    """Who adds which noise, and how many shares may go missing before it is too little.

    Each share is widened so that the least count of reports carries the whole noise. What the
    reports of a round carry beyond it is ``kept``: ε was planned for the least count, and more
    reports are noisier than they need be. Or it is ``removed`` after the round (XNoise): devices
    add removable components, and the sum carries the planned noise at every tolerated dropout.
    """

    at: Literal["device", "server", "none"]
    kind: Literal["skellam", "discrete_gaussian", "gaussian", "none"]
    tolerated_dropout: float = 0.0  # a round opens with (1 − this)·report_goal reports or more
    excess: Literal["kept", "removed"] = "kept"
    levels: int = 16  # removable components of a device, at most: what is removed is so fine
    honest_fraction: float = 1.0  # of the reports that open a round: their noise is counted
    grid_steps: float = 8.0  # the clip is grid_steps·√dim grid units long
    min_dim: int = 1024  # coordinates of the smallest payload that the policy covers

    def __post_init__(self) -> None:
        allowed = {
            "device": ("skellam", "discrete_gaussian"),
            "server": ("gaussian",),
            "none": ("none",),
        }[self.at]
        if self.kind not in allowed:
            expected = " or ".join(allowed)
            raise ValueError(f"kind must be {expected} where noise is at {self.at!r}")
        if not 0 <= self.tolerated_dropout < 1:
            raise ValueError(f"tolerated_dropout must be in [0, 1), got {self.tolerated_dropout}")
        if not 0 < self.honest_fraction <= 1:
            raise ValueError(f"honest_fraction must be in (0, 1], got {self.honest_fraction}")
        if self.at != "device" and (self.tolerated_dropout > 0 or self.honest_fraction < 1):
            raise ValueError(
                "tolerated_dropout and honest_fraction concern shares of noise; leave them out "
                f"where noise is at {self.at!r}"
            )
        self._check_excess()
        if not 0 < self.grid_steps < math.inf:
            raise ValueError(f"grid_steps must be positive and finite, got {self.grid_steps}")
        if self.min_dim < 1:
            raise ValueError(f"min_dim must be at least 1, got {self.min_dim}")

    def _check_excess(self) -> None:
        if not 1 <= self.levels < 1 << 16:
            raise ValueError(f"levels must lie in 1..65535, got {self.levels}")
        if self.excess == "kept":
            return
        if self.kind != "skellam":
            raise ValueError(
                'excess = "removed" needs kind = "skellam": what stays is a sum of components, and '
                "only Skellam noise is closed under sums"
            )
        if not self.tolerated_dropout > 0:
            raise ValueError('excess = "removed" needs a tolerated_dropout: there is no excess')


@dataclass(frozen=True)
class Reviewed:
    """Figures a person has approved; `pfl-lm check` recomputes them, and stale ones are errors."""

    noise_multiplier: float | None = None
    epsilon: float | None = None
    epsilon_unamplified: float | None = None


@dataclass(frozen=True)
class Policy:
    """What is promised, to whom, and how people take part, for one deployment.

    Raises:
        ValueError: at construction, naming the field and what would be right.
    """

    unit: Literal["user", "device"]
    neighboring: Neighboring
    epsilon: float  # inf only where noise is at "none"
    delta: float
    population: int  # users who may take part
    report_goal: int  # reports a round aims at; the denominator of the mean, always
    rounds: int
    participation: Participation
    noise: Noise
    reviewed: Reviewed = field(default_factory=Reviewed)

    def __post_init__(self) -> None:
        for name in ("population", "report_goal", "rounds"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.report_goal > self.population:
            raise ValueError(f"report_goal {self.report_goal} exceeds population {self.population}")
        if not 0 < self.delta <= 1 / self.population:
            raise ValueError(
                f"delta must be positive and at most 1/population = {1 / self.population:.1e}, "
                f"got {self.delta}"
            )
        if not self.epsilon > 0:
            raise ValueError(f"epsilon must be above 0, got {self.epsilon}")
        if math.isinf(self.epsilon) != (self.noise.at == "none"):
            raise ValueError('epsilon must be inf where noise is at "none", and finite otherwise')
        if self.noise.at == "device" and self.neighboring == "add_remove":
            raise ValueError(
                "neighboring: removing a device removes its share of the noise too, for which no "
                "bound is proven; use zero_out"
            )
        self._check_rotation()
        if self.honest_reports < 1 or not self.honest_share > 0:
            raise ValueError("noise.honest_fraction leaves no honest report in a round")
        self._check_boundary()

    def _check_rotation(self) -> None:
        if self.participation.min_separation is None:
            return
        needed = self.report_goal * min(self.participation.min_separation, self.rounds)
        if needed > self.population:
            raise ValueError(
                f"participation.min_separation: {self.report_goal} reports in every round, each "
                f"device once in {self.participation.min_separation}, need a population of "
                f"{needed}, not {self.population}"
            )

    def _check_boundary(self) -> None:
        """Refuse a least count that a Poisson cohort is likely to land on; see `boundary`."""
        if self.rounds * self.boundary_probability <= self.delta / 10:
            return
        for percent in range(1, 100):
            least = _least(self.report_goal, percent / 100)
            if self.rounds * boundary(self.rate, self.population, least) <= self.delta / 10:
                raise ValueError(
                    "noise.tolerated_dropout: Poisson cohorts vary, and a round that just misses "
                    "its least count betrays who took part; "
                    f"use at least {percent / 100} for a report_goal of {self.report_goal}"
                )
        raise ValueError(
            f"report_goal: {self.report_goal} is too few for Poisson participation with noise at "
            "the device; raise it, or use rotation"
        )

    @property
    def rate(self) -> float:
        """Chance of a user to be in a given round: report_goal ÷ population."""
        return self.report_goal / self.population

    @property
    def participations(self) -> int:
        """The most rounds one user can be in: 1 + ⌊(rounds − 1)/min_separation⌋, or all."""
        if self.participation.min_separation is None:
            return self.rounds
        return 1 + (self.rounds - 1) // self.participation.min_separation

    @property
    def least_reports(self) -> int:
        """The public least count: a round with fewer reports is abandoned unopened.

        0 where the server adds the noise: it opens whatever came, were it noise alone.
        """
        if self.noise.at != "device":
            return 0
        return _least(self.report_goal, self.noise.tolerated_dropout)

    @property
    def most_reports(self) -> int | None:
        """Reports beyond this are dropped; None under Poisson sampling, which a cap would break."""
        return None if self.participation.kind == "poisson" else self.report_goal

    @property
    def honest_reports(self) -> int:
        """Of the least count, the shares of noise that are relied on: what a share is divided by.

        1 where the server adds the noise.
        """
        if self.noise.at != "device":
            return 1
        return math.floor(self.least_reports * self.noise.honest_fraction)

    @property
    def excess_removed(self) -> bool:
        """Does the sum carry the planned noise whatever the dropout (XNoise)?"""
        return self.noise.excess == "removed"

    @property
    def honest_share(self) -> float:
        """The least share of a sum's noise that is honest, where the excess is removed.

        Of r ≥ least_reports reports ⌊r·honest_fraction⌋ are honest, which is more than
        r·honest_fraction − 1; all carry the same noise.
        """
        fraction = self.noise.honest_fraction
        return 1.0 if fraction == 1 else fraction - 1 / max(1, self.least_reports)

    @property
    def boundary_probability(self) -> float:
        """Chance, per round, that one report decides whether the round is opened."""
        if self.participation.kind != "poisson" or self.noise.at != "device":
            return 0.0
        return boundary(self.rate, self.population, self.least_reports)

    def event(
        self,
        noise_multiplier: float,
        *,
        reports: int | None = None,
        dim: int | None = None,
        round: int | None = None,
    ) -> RoundEvent:
        """Return what one round of this policy releases.

        Args:
            noise_multiplier: planned, on the sum of ``honest_reports`` shares; where the excess
                is removed, the honest noise on every opened sum.
            reports: reports summed; None plans for the least count. Fewer carry less noise.
                More carry more, which is counted only where their number is fixed beforehand
                and the excess is not removed.
            dim: coordinates on the grid; None plans for ``noise.min_dim``.
            round: number of the round.
        """
        honest = self.honest_reports
        if reports is not None and self.excess_removed:
            noise_multiplier *= math.sqrt(min(1.0, reports / self.least_reports))
        elif reports is not None and self.noise.at == "device":
            honest = math.floor(reports * self.noise.honest_fraction)
            if self.participation.kind == "poisson":
                honest = min(honest, self.honest_reports)
            noise_multiplier *= math.sqrt(honest / self.honest_reports)
        on_device = self.noise.at == "device"
        return RoundEvent(
            mechanism=self.noise.kind,
            neighboring=self.neighboring,
            sampling=self.participation.kind,
            noise_multiplier=noise_multiplier,
            rate=1.0 if self.participation.kind == "rotation" else self.rate,
            min_separation=self.participation.min_separation or 1,
            dim=(dim or self.noise.min_dim) if on_device else 1,
            grid_steps=self.noise.grid_steps if on_device else 8.0,
            reports=max(1, honest) if self.noise.kind == "discrete_gaussian" else 1,
            boundary_probability=self.boundary_probability,
            round=round,
        )


def boundary(rate: float, population: int, least_reports: int) -> float:
    """Return P[Bin(population − 1, rate) = least_reports − 1].

    Then, and only then, does one user's coin decide whether a round is opened: opening or not
    would say whether he was drawn, and sampling would not amplify. Rounds are accounted for
    outside this event, whose chance goes to δ. Device dropouts that are independent of the data
    move the mean of the count towards the least one; the chance stated is that at full attendance.
    """
    trials, successes = population - 1, least_reports - 1
    if rate >= 1 or not 0 <= successes <= trials:
        return 0.0
    ways = (
        math.lgamma(trials + 1) - math.lgamma(successes + 1) - math.lgamma(trials - successes + 1)
    )
    return math.exp(ways + successes * math.log(rate) + (trials - successes) * math.log1p(-rate))


def _least(report_goal: int, tolerated_dropout: float) -> int:
    # 5000·(1 − 0.1) is 4500.000…: rounding up must not turn it into 4501.
    return math.ceil(report_goal * (1 - tolerated_dropout) - 1e-9)
