"""Public random directions: a subspace of the model in which a device's update is a few numbers.

A direction is a vector of signs ±1/√n, named by (seed, round, number): a device that knows the name
makes it again, so only its coefficient travels. Zeroth-order training (``devices/zeroth_order``)
moves along directions and never needs a gradient.

Source: simultaneous perturbation with random signs, Spall 1992 (IEEE TAC 37(3)); updates as seeds
and scalars, Qin et al. 2024, "Federated full-parameter tuning of billion-sized language models
with communication cost under 18 kilobytes" (FedKSeed, arXiv:2312.06353), section 3.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from pfl_lm.streams import stream

Floats = npt.NDArray[np.float32]

_CHUNK = 1 << 16  # coordinates whose signs are unpacked at a time


@dataclass(frozen=True)
class Directions:
    """``count`` unit vectors of ``size`` coordinates.

    Any two are nearly orthogonal: their inner product has standard deviation 1/√size. So the norm
    of a combination is that of its coefficients, up to a relative √(count / size).
    """

    count: int
    size: int
    seed: int
    round: int

    def signs(self, number: int) -> npt.NDArray[np.uint8]:
        """Return direction ``number`` as bits, uint8[⌈size / 8⌉]; 1 is +, 0 is −."""
        if not 0 <= number < self.count:
            raise IndexError(f"direction {number}: there are {self.count}")
        draw = stream(self.seed, "direction", self.round, number)
        return np.frombuffer(draw.bytes(-(-self.size // 8)), np.uint8)

    def add(self, values: Any, bits: npt.NDArray[np.uint8], amount: float) -> None:
        """Move ``values`` (float32[size], in place) by ``amount`` along a direction's signs."""
        step = np.float32(amount / np.sqrt(self.size))
        for start in range(0, self.size, _CHUNK):
            part = bits[start // 8 : (start + _CHUNK) // 8]
            stretch = values[start : start + _CHUNK]
            ones = np.unpackbits(part, count=len(stretch))
            moves = np.multiply(ones, 2 * step, dtype=np.float32)
            moves -= step
            stretch += moves

    def project(self, values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """Return the inner product of values float64[size] with each direction, float64[count]."""
        found = np.empty(self.count)
        for number in range(self.count):
            ones = np.unpackbits(self.signs(number), count=self.size)
            found[number] = (2 * values[ones == 1].sum() - values.sum()) / np.sqrt(self.size)
        return found

    def combine(self, coefficients: Floats) -> Floats:
        """Return Σ coefficient · direction, float32[size].

        Raises:
            ValueError: not one coefficient for each direction.
        """
        if coefficients.shape != (self.count,):
            raise ValueError(
                f"coefficients have shape {coefficients.shape}; there are {self.count} directions"
            )
        total = np.zeros(self.size, np.float32)
        for number in np.flatnonzero(coefficients):
            self.add(total, self.signs(int(number)), float(coefficients[number]))
        return total
