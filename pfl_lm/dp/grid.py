"""The integer grid that updates are rounded to: its scale, its norm bound, its ring."""

from __future__ import annotations

import math
from dataclasses import dataclass

from pfl_lm.dp.discrete import grid_norm, rounded_norm
from pfl_lm.dp.pmf import Kind, tail_radius

_WRAP_BITS = 40  # the sum of a round wraps with probability at most 2^-40


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
        if self.dim < 1:
            raise ValueError(f"dim must be at least 1, got {self.dim}")
        if not 1e-30 <= self.clip_norm < math.inf:
            raise ValueError(f"clip_norm must be finite and at least 1e-30, got {self.clip_norm}")
        if not self.grid_steps > 0 or self.grid_steps**2 * self.dim > 2.0**44:
            raise ValueError(
                f"grid_steps must be positive with grid_steps·√dim ≤ 2^22 (so that float32 holds "
                f"every rounded coordinate), got {self.grid_steps} at dim {self.dim}"
            )
        if not 2 <= self.modulus_bits <= 63:
            raise ValueError(f"modulus_bits must lie in 2..63, got {self.modulus_bits}")

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
    ) -> Grid:
        """Choose the narrowest ring in which the sum of a round cannot be misread.

        Args:
            reports_max: the most reports that one sum may hold.
            noise_multiplier: of the noise that devices add; 0 where the server adds it.
            noise_reports: how many reports carry the whole noise (default: reports_max).

        Guarantees:
            The sum of encoded vectors alone never wraps: each coordinate is ≤ the norm bound, so
            the sum is ≤ reports_max·norm_bound < 2^(modulus_bits − 1). With the noise, the
            probability that any of ``dim`` coordinates of one round wraps is ≤ 2^-40: a union
            bound over Chernoff tails of all ``reports_max`` shares together. A wrap costs utility
            only; it is applied after the noise and reveals nothing.

        Raises:
            ValueError: nothing fits into 63 bits, or an argument is out of range.
        """
        carriers = reports_max if noise_reports is None else noise_reports
        if not 1 <= carriers <= reports_max:
            raise ValueError(
                f"need 1 ≤ noise_reports ≤ reports_max, got {carriers} and {reports_max}"
            )
        widest = cls(dim, clip_norm, grid_steps, 63)
        largest = reports_max * math.floor(widest.norm_bound)
        variance = widest.noise_variance(noise_multiplier) * reports_max / carriers
        if variance > 0:
            largest += tail_radius(kind, variance, _WRAP_BITS + 1 + math.log2(dim))
        modulus_bits = largest.bit_length() + 1
        if modulus_bits > 63:
            raise ValueError(
                f"the sum needs {modulus_bits} bits, the ring has at most 63; lower grid_steps, "
                "the noise multiplier or the number of reports"
            )
        return cls(dim, clip_norm, grid_steps, modulus_bits)
