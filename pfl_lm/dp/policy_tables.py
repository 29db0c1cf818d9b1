"""The tables of a policy file: how people take part, who adds which noise, what was reviewed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pfl_lm.dp.mechanisms import MECHANISMS, kinds_at
from pfl_lm.validate import above_zero_in_unit, at_least, below_one, positive, refuse, typed, within


@dataclass(frozen=True)
class Participation:
    """How a user comes to be in a round.

    ``poisson``: each device joins every round by its own coin, with chance report_goal ÷
    population. ``rotation``: a device joins whenever it is invited, but no two of its rounds lie
    closer than ``min_separation`` (r₂ − r₁ ≥ min_separation), and it joins ``max_participations``
    rounds at most, by its own count. ``fixed``: the cohort is a uniform subset of report_goal
    devices.

    Attributes:
        kind: how the devices of a round are chosen: by their own coins, in rotation, or as a subset
            of fixed size.
        min_separation: smallest allowed difference r₂ − r₁ of the numbers of two rounds that one
            device takes part in; for ``rotation`` alone.
        max_participations: most rounds of one device, which it counts itself; for ``rotation``
            alone. None: as many as the separation leaves.
    """

    kind: Literal["poisson", "rotation", "fixed"]
    min_separation: int | None = None
    max_participations: int | None = None

    def __post_init__(self) -> None:
        typed(self)
        if self.kind == "rotation" and (
            self.min_separation is None or not self.min_separation >= 1
        ):
            refuse("min_separation must be stated and at least 1 under rotation")
        if self.kind != "rotation" and self.min_separation is not None:
            refuse(f"min_separation belongs to rotation, not to {self.kind!r}")
        at_least(1, max_participations=self.max_participations)
        if self.kind != "rotation" and self.max_participations is not None:
            refuse(f"max_participations belongs to rotation, not to {self.kind!r}")


@dataclass(frozen=True)
class Noise:
    """Who adds which noise, and how many shares may go missing before it is too little.

    Each share is widened so that the least count of reports carries the whole noise. What the
    reports of a round carry beyond it is ``kept``: ε was planned for the least count, and more
    reports are noisier than they need be. Or it is ``removed`` after the round (XNoise): devices
    add removable components, and the sum carries the planned noise at every tolerated dropout.

    Attributes:
        at: who adds the noise: each ``device`` its share, the ``server`` all of it (it must then be
            trusted), or ``none``.
        kind: the distribution: ``skellam`` or ``discrete_gaussian`` at the device, ``gaussian`` at
            the server, ``none`` where nobody adds any.
        tolerated_dropout: a round opens with (1 − this) · report_goal reports or more.
        excess: what becomes of noise beyond the plan: ``kept``, or ``removed`` after the round.
        levels: removable components of a device, at most; more of them remove the excess more
            finely.
        honest_fraction: share of the reports that open a round whose noise is counted on.
        grid_steps: the clip is grid_steps · √dim units of the integer grid long.
        min_dim: coordinates of the smallest payload that the policy covers.
    """

    at: Literal["device", "server", "none"]
    kind: str
    tolerated_dropout: float = 0.0
    excess: Literal["kept", "removed"] = "kept"
    levels: int = 16
    honest_fraction: float = 1.0
    grid_steps: float = 8.0
    min_dim: int = 1024

    def __post_init__(self) -> None:
        typed(self)
        allowed = kinds_at(self.at)
        if self.kind not in allowed:
            expected = " or ".join(allowed)
            refuse(f"kind must be {expected} where noise is at {self.at!r}")
        below_one(tolerated_dropout=self.tolerated_dropout)
        above_zero_in_unit(honest_fraction=self.honest_fraction)
        if self.at != "device" and (self.tolerated_dropout > 0 or self.honest_fraction < 1):
            refuse(
                "tolerated_dropout and honest_fraction concern shares of noise; leave them out "
                f"where noise is at {self.at!r}"
            )
        self._check_excess()
        positive(grid_steps=self.grid_steps)
        at_least(1, min_dim=self.min_dim)

    def _check_excess(self) -> None:
        within(1, 65_535, levels=self.levels)
        if self.excess == "kept":
            return
        if not MECHANISMS[self.kind].closed_under_sums:
            closed = [name for name, kind in MECHANISMS.items() if kind.closed_under_sums]
            refuse(
                f'excess = "removed" needs kind = {" or ".join(closed)}: what stays is a sum of '
                f"components, and {self.kind} noise is not closed under sums"
            )
        if not self.tolerated_dropout > 0:
            refuse('excess = "removed" needs a tolerated_dropout: there is no excess')


@dataclass(frozen=True)
class Reviewed:
    """Figures a person has approved; `pfl-lm check` recomputes them, and stale ones are errors.

    Attributes:
        noise_multiplier: standard deviation of the noise on a sum ÷ clip_norm.
        epsilon: ε against everyone who sees the released models.
        epsilon_unamplified: ε against everyone who also knows who took part in which round.
        rho: ρ of zero-concentrated privacy, where the noise is Gaussian and nothing is sampled.
    """

    noise_multiplier: float | None = None
    epsilon: float | None = None
    epsilon_unamplified: float | None = None
    rho: float | None = None

    def __post_init__(self) -> None:
        typed(self)
