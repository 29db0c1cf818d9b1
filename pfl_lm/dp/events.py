"""What one round released: the one thing that an accountant, a ledger and an auditor share."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

Mechanism: TypeAlias = Literal["gaussian", "skellam", "discrete_gaussian", "none"]
Sampling: TypeAlias = Literal["none", "rotation", "poisson", "fixed"]
Neighboring: TypeAlias = Literal["zero_out", "add_remove", "replace_one"]


@dataclass(frozen=True)
class RoundEvent:
    """What one opened round released, as the ledger keeps it and an auditor recomputes it.

    Events that differ only in ``round`` are equal: they cost the same.

    Raises:
        ValueError: a number that is negative, not finite or out of range. An unknown mechanism,
            sampling or neighboring is accepted, and costs ε = ∞.
    """

    mechanism: str  # Mechanism
    neighboring: str  # Neighboring
    sampling: str  # Sampling
    noise_multiplier: float  # stddev of the honest noise on the sum ÷ clip_norm
    rate: float = 1.0  # chance to take part: Poisson; cohort ÷ population: fixed
    min_separation: int = 1  # rotation: smallest allowed difference of two rounds of a device
    dim: int = 1  # device noise: coordinates on the grid
    grid_steps: float = 8.0  # device noise: the clip is grid_steps·√dim grid units long
    reports: int = 1  # discrete_gaussian: honest shares in the sum
    boundary_probability: float = 0.0  # Poisson: chance that one report decides about opening
    round: int | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        if not 0 <= self.noise_multiplier < math.inf:
            raise ValueError(
                f"noise_multiplier must be at least 0 and finite, got {self.noise_multiplier}"
            )
        if not 0 <= self.rate <= 1:
            raise ValueError(f"rate must lie between 0 and 1, got {self.rate}")
        if not 0 <= self.boundary_probability <= 1:
            raise ValueError(f"boundary_probability must be in 0..1: {self.boundary_probability}")
        if not 0 < self.grid_steps < math.inf:
            raise ValueError(f"grid_steps must be positive and finite, got {self.grid_steps}")
        for name in ("min_separation", "dim", "reports"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
