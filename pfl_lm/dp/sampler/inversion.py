"""Which of many sorted boundaries a number lies between: inversion of a cumulative distribution.

What is here in numpy is the definition; ``native/inversion.c`` computes the same.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pfl_lm import native
from pfl_lm.dp.sampler.alias import SIGN
from pfl_lm.dp.sampler.arrays import Cells, Int64s, Integers, Longs, Words

_STEPS = 2  # boundaries passed one by one before falling back to a binary search
_LARGEST = 2**64 - 1


@dataclass(frozen=True)
class CdfTable:
    """Sorted 64-bit numbers, and where in them to begin to look.

    The magnitude of a number is ``magnitude`` less one for every boundary below it.
    """

    sorted: Longs  # padded with _STEPS + 1 times 2^64 − 1
    start: Cells  # how many lie below each cell of width 2^shift
    shift: int
    magnitude: int  # of a number below every boundary

    @classmethod
    def of(cls, ascending: Longs, cells: int) -> CdfTable:
        """Args: ascending: as many as magnitudes above 0; cells: 2^this many, 1 to 32."""
        padded = np.concatenate([ascending, np.full(_STEPS + 1, _LARGEST, dtype=np.uint64)])
        edges = np.arange(1 << cells, dtype=np.uint64) << np.uint64(64 - cells)
        start = np.searchsorted(padded, edges).astype(np.int32)
        for array in (padded, start):
            array.flags.writeable = False
        return cls(padded, start, 64 - cells, len(ascending))

    def add(self, numbers: Longs, places: Words, out: Integers) -> Words:
        """Add the magnitude of each number to a vector of integers, in place.

        Args:
            numbers: uint64[n].
            places: uint32[n], where to; negated if the highest bit is set. All differ.
            out: int32[m] or int64[m]; wraps at its width.

        Returns:
            Which numbers equal a boundary, ascending: for those nothing is added.
        """
        compiled = native.load("inversion")
        if compiled is not None:
            ties = np.empty(len(numbers), np.uint32)
            count = compiled.add_magnitudes(
                *(numbers.ctypes.data, places.ctypes.data, len(numbers)),
                *(self.sorted.ctypes.data, len(self.sorted), self.start.ctypes.data, self.shift),
                *(self.magnitude, out.itemsize, out.ctypes.data, ties.ctypes.data),
            )
            return ties[:count]
        below = self._below(numbers)
        magnitudes = self.magnitude - below
        tied = self.sorted[below] == numbers
        magnitudes[tied] = 0
        out[places & np.uint32(SIGN - 1)] += np.where(places >= SIGN, -magnitudes, magnitudes)
        return np.flatnonzero(tied).astype(np.uint32)

    def _below(self, numbers: Longs) -> Int64s:
        """Return, for each number, how many boundaries lie below it."""
        cell = (numbers >> np.uint64(self.shift)).astype(np.intp)
        passed = np.take(self.start, cell, mode="clip").astype(np.int64)
        for _ in range(_STEPS):
            passed += np.take(self.sorted, passed, mode="clip") < numbers
        far = np.flatnonzero(np.take(self.sorted, passed, mode="clip") < numbers)
        if len(far):
            passed[far] = np.searchsorted(self.sorted, numbers[far])
        return passed
