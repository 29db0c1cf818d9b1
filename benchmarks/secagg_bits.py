"""How many bits the job of ``benchmarks.secagg client`` needs, by the product's own check.

A round of n devices opens at most n reports. What a sum of so many can be, noise included, follows
from the grid: the step of one coordinate. Flower rounds to 2^22 steps on ±8, whatever the update's
norm, and leaves room for n times 2^22. Here the step is the clip norm ÷ (8 √d), far below what the
noise of a policy blurs; and a sum is bounded by its norm, not by d times the largest coordinate.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt
from pathlib import Path
from typing import Any

from benchmarks.peer_flower import COHORT, FLOWER_BITS, FLOWER_CLIP, FLOWER_LEVELS

POLICY = Path(__file__).resolve().parents[1] / "privacy" / "keyboard_small_cohorts.toml"
CLIP_NORM = 0.5  # of the shipped simulations


@dataclass(frozen=True)
class Job:
    """A ring, the grid that it is for, and why so wide."""

    grid: Any
    rotated: bool
    why: str

    @property
    def bits(self) -> int:
        return int(self.grid.modulus_bits)


def jobs(dim: int) -> list[Job]:
    """Flower's ring, one for Flower's step, the policy's, and the policy's with rotation."""
    from pfl_lm.dp.grid import Grid
    from pfl_lm.dp.guarantee import guarantee
    from pfl_lm.dp.policy import Policy
    from pfl_lm.recipes import load

    policy = load(Policy, POLICY)
    noise = guarantee(policy).share_multiplier * sqrt(COHORT)  # of the sum, in clip norms
    step = 2 * FLOWER_CLIP / FLOWER_LEVELS

    def job(why: str, steps: float, noise: float, rotated: bool = False, fixed: int = 0) -> Job:
        grid = Grid.choose(
            dim,
            CLIP_NORM,
            reports_max=COHORT,
            noise_multiplier=noise,
            grid_steps=steps,
            rotated=rotated,
            modulus_bits=fixed or None,
        )
        return Job(grid, rotated, why)

    fine, ours = CLIP_NORM / step / sqrt(dim), policy.noise.grid_steps
    rounding = sqrt(COHORT) / 2 / (ours * sqrt(dim))  # of the sum, at most, in clip norms
    blurred = f"the noise of {POLICY.stem} is {noise / rounding:,.0f} times the rounding"
    return [
        job("Flower's modulus", ours, noise, fixed=FLOWER_BITS),
        job(f"Flower's step, {step:.1e}, without noise", fine, 0.0),
        job(f"the policy's grid: {blurred}", ours, noise),
        job("the same, rotated", ours, noise, rotated=True),
    ]
