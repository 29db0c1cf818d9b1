"""What one round released: the one thing that an accountant, a ledger and an auditor share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

from pfl_lm.validate import at_least, in_unit, within

Sampling: TypeAlias = Literal["none", "rotation", "poisson", "fixed"]
Neighboring: TypeAlias = Literal["zero_out", "add_remove", "replace_one"]

MOST_STREAM_ROUNDS = 10_000  # what follows from a stream takes time by the square of its rounds
_LEAST, _MOST = 1e-100, 1e100  # of what accountants square: doubles end at 1e-308 and 1e308


@dataclass(frozen=True)
class StreamPlan:
    """How the noise of a run's rounds is correlated: a strategy, and for how many rounds.

    Two rounds belong to one stream if their plans are equal.

    Attributes:
        kind: a family of ``correlated.strategy``, or "tree".
        rounds: that the stream was planned for, at most 10,000; it has no further ones.
        weights, decays: the numbers of the strategy.
    """

    kind: str
    rounds: int
    weights: tuple[float, ...] = ()
    decays: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        within(1, MOST_STREAM_ROUNDS, rounds=self.rounds)
        for name in ("weights", "decays"):  # JSON has lists
            object.__setattr__(self, name, tuple(getattr(self, name)))

    @classmethod
    def read(cls, plain: StreamPlan | Mapping[str, Any] | None) -> StreamPlan | None:
        """Return a plan from what ``dataclasses.asdict`` wrote of one."""
        return cls(**plain) if isinstance(plain, Mapping) else plain


@dataclass(frozen=True)
class RoundEvent:
    """What one opened round released, as the ledger keeps it and an auditor recomputes it.

    Events that differ only in ``round`` are equal: they cost the same.

    Raises:
        ValueError: a number that is negative, not finite or out of range; so small or large, but
            for 0, that its square is not a double. An unknown mechanism, sampling or neighboring
            is accepted, and costs ε = ∞.
    """

    mechanism: str  # a name in ``mechanisms.MECHANISMS``
    neighboring: str  # Neighboring
    sampling: str  # Sampling
    # stddev of the honest noise on the sum ÷ clip_norm; of a stream: before it is correlated
    noise_multiplier: float
    rate: float = 1.0  # chance to take part: Poisson; cohort ÷ population: fixed
    min_separation: int = 1  # rotation: smallest allowed difference of two rounds of a device
    max_participations: int | None = None  # rotation: fewer rounds of a device than that leaves
    dim: int = 1  # device noise: coordinates on the grid
    grid_steps: float = 8.0  # device noise: the clip is grid_steps·√dim grid units long
    reports: int = 1  # discrete_gaussian: honest shares in the sum
    pivotal_probability: float = 0.0  # Poisson: chance that one report decides about opening
    stream: StreamPlan | None = None  # of noise that is correlated between rounds
    round: int | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        if self.noise_multiplier:
            within(_LEAST, _MOST, noise_multiplier=self.noise_multiplier)
        if self.rate:
            within(_LEAST, 1, rate=self.rate)
        within(_LEAST, _MOST, grid_steps=self.grid_steps)
        in_unit(pivotal_probability=self.pivotal_probability)
        at_least(1, min_separation=self.min_separation, dim=self.dim, reports=self.reports)
        at_least(1, max_participations=self.max_participations)
        object.__setattr__(self, "stream", StreamPlan.read(self.stream))
