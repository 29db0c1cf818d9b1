"""The integer grid that updates are rounded to: its scale, its norm bound, its ring."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from pfl_lm.dp.grid_norms import grid_norm, rounded_norm
from pfl_lm.dp.rotation import block_of
from pfl_lm.dp.sampler.pmf import Kind, joint_radius, parameter_of, tail_radius
from pfl_lm.validate import at_least, within

NARROW_BITS = 31  # the widest ring whose vectors are held in integers of 32 bits
WRAP_BITS = 40  # the sum of a round wraps with probability at most 2^-40


@dataclass(frozen=True)
class Grid:
    """How float updates become integers, known to everybody before the round.

    Raises:
        ValueError: at construction, naming the field.
    """

    dim: int  # coordinates of the payload
    clip_norm: float  # in model units
    grid_steps: float  # grid steps per coordinate and clip norm, as a root mean square
    modulus_bits: int  # the ring of the sum is the integers mod 2^modulus_bits

    def __post_init__(self) -> None:
        at_least(1, dim=self.dim)
        at_least(1e-30, clip_norm=self.clip_norm)
        if not self.grid_steps > 0 or self.grid_steps**2 * self.dim > 2.0**44:
            raise ValueError(
                f"grid_steps must be positive with grid_steps·√dim ≤ 2^22 (so that float32 holds "
                f"every rounded coordinate), got {self.grid_steps} at dim {self.dim}"
            )
        within(2, 63, modulus_bits=self.modulus_bits)

    @property
    def scale(self) -> float:
        """Grid steps per model unit: grid_steps·√dim ÷ clip_norm."""
        return grid_norm(self.grid_steps, self.dim) / self.clip_norm

    @property
    def norm_bound(self) -> float:
        """ℓ2 norm, in grid steps, that no encoded vector exceeds: the sensitivity of the sum.

        Source: Kairouz, Liu, Steinke 2021 (arXiv:2102.06387), Proposition 22.
        """
        return rounded_norm(grid_norm(self.grid_steps, self.dim), self.dim)

    @property
    def norm_bound_squared(self) -> int:
        """The same squared, rounded down, as encoding checks it."""
        return math.floor(self.norm_bound**2)

    @property
    def integer(self) -> np.dtype[Any]:
        """The signed integers that hold vectors before they are masked: of 32 bits, or of 64.

        A vector of a ring of at most 31 bits needs no more: integers of 32 bits wrap modulo 2^32,
        and so modulo every smaller power of two. An opened sum, which noise may still be added to
        at the server, is always int64.
        """
        return np.dtype(np.int32 if self.modulus_bits <= NARROW_BITS else np.int64)

    def noise_variance(self, noise_multiplier: float) -> float:
        """Variance of the noise on the sum, in squared grid steps: (multiplier·clip·scale)²."""
        if not 0 <= noise_multiplier < math.inf:
            raise ValueError(f"noise_multiplier must be finite and ≥ 0, got {noise_multiplier}")
        return (noise_multiplier * grid_norm(self.grid_steps, self.dim)) ** 2

    @classmethod
    def choose(
        cls,
        dim: int,
        clip_norm: float,
        *,
        reports_max: int,
        noise_multiplier: float = 0.0,
        noise_reports: int | None = None,
        kind: Kind = "skellam",
        grid_steps: float = 8.0,
        rotated: bool = False,
        modulus_bits: int | None = None,
    ) -> Grid:
        """Choose the narrowest ring in which the sum of a round cannot be misread.

        Args:
            reports_max: the most reports that one sum may hold.
            noise_multiplier: of the noise that devices add; 0 where the server adds it.
            noise_reports: how many reports carry the whole noise (default: reports_max).
            rotated: updates are rotated at random before they are rounded (``dp.rotation``).
            modulus_bits: a width that was fixed; wider than needed wastes bytes, narrower is
                refused.

        Guarantees:
            The probability that any of ``dim`` coordinates of one round wraps is ≤ 2^-40: a union
            bound over Chernoff tails of all ``reports_max`` shares of noise together. Without
            noise it is 0: each coordinate is ≤ the norm bound, so the sum is ≤
            reports_max·norm_bound < 2^(modulus_bits − 1). With rotation the tail is that of noise
            and rotated sum together, provided that no update depends on the rotation's signs.
            A wrap costs utility only; it is applied after the noise and reveals nothing.

        Raises:
            ValueError: nothing fits into 63 bits or into the fixed width (the message says how
                many bits are needed), or an argument is out of range.
        """
        carriers = reports_max if noise_reports is None else noise_reports
        if not 1 <= carriers <= reports_max:
            raise ValueError(
                f"need 1 ≤ noise_reports ≤ reports_max, got {carriers} and {reports_max}"
            )
        widest = cls(dim, clip_norm, grid_steps, 63)
        variance = widest.noise_variance(noise_multiplier) * reports_max / carriers
        if variance > 0:  # tails are those of the parameter of a share
            share = variance / reports_max
            variance *= parameter_of(kind, share) / share
        largest = _largest_sum(widest, reports_max, variance, kind, rotated)
        needed = largest.bit_length() + 1
        if needed > 63:
            raise ValueError(
                f"the sum needs {needed} bits, the ring has at most 63; lower grid_steps, "
                "the noise multiplier or the number of reports"
            )
        if modulus_bits is not None and modulus_bits < needed:
            remedy = "raise it" if rotated else "raise it, or rotate"
            raise ValueError(
                f"modulus_bits = {modulus_bits} is too few: the sum of {reports_max:,} reports of "
                f"{dim:,} coordinates needs {needed} bits to wrap with probability below "
                f"2^-{WRAP_BITS}; {remedy}, or leave it out"
            )
        return cls(dim, clip_norm, grid_steps, modulus_bits or needed)


def _largest_sum(grid: Grid, reports: int, variance: float, kind: Kind, rotated: bool) -> int:
    """Bound every coordinate of a round's noisy sum, but for probability 2^-WRAP_BITS.

    The rotation's signs make a coordinate of the rotated sum, of norm at most reports·g·√dim,
    subgaussian with that norm squared ÷ block as its variance proxy; rounding moves each report's
    coordinate by less than one step.
    """
    surely = reports * math.floor(grid.norm_bound)
    tail_bits = WRAP_BITS + 1 + math.log2(grid.dim)
    plain = surely + (tail_radius(kind, variance, tail_bits) if variance > 0 else 0)
    if not rotated:
        return plain
    proxy = (reports * grid_norm(grid.grid_steps, grid.dim)) ** 2 / block_of(grid.dim)
    return min(plain, reports + joint_radius(kind, proxy, variance, tail_bits))
