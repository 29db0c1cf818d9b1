"""Which of many sorted boundaries a number lies between, for a block of numbers at a time.

What is here in numpy is the definition; ``native/boundaries.c`` finds the same.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pfl_lm.dp import loops
from pfl_lm.dp.arrays import Cells, Int64s, Longs

_STEPS = 2  # boundaries passed one by one before falling back to a binary search
_LARGEST = 2**64 - 1


@dataclass(frozen=True)
class Boundaries:
    """Sorted 64-bit numbers, and where in them to begin to look."""

    sorted: Longs  # padded with _STEPS + 1 times 2^64 − 1
    start: Cells  # how many lie below each cell of width 2^shift
    shift: int

    @classmethod
    def of(cls, ascending: Longs, cells: int) -> Boundaries:
        """Args: cells: 2^this many, 1 to 32."""
        padded = np.concatenate([ascending, np.full(_STEPS + 1, _LARGEST, dtype=np.uint64)])
        edges = np.arange(1 << cells, dtype=np.uint64) << np.uint64(64 - cells)
        start = np.searchsorted(padded, edges).astype(np.int32)
        for array in (padded, start):
            array.flags.writeable = False
        return cls(padded, start, 64 - cells)

    def below(self, numbers: Longs) -> Int64s:
        """Return, for each number, how many boundaries lie below it."""
        compiled = loops.boundaries()
        if compiled is not None:
            passed = np.empty(len(numbers), np.int64)
            arrays = (numbers, self.sorted, self.start, passed)
            source, boundaries, start, target = (array.ctypes.data for array in arrays)
            sizes = len(numbers), len(self.sorted)
            compiled.count_below(source, sizes[0], boundaries, sizes[1], start, self.shift, target)
            return passed
        cell = (numbers >> np.uint64(self.shift)).astype(np.intp)
        passed = np.take(self.start, cell, mode="clip").astype(np.int64)
        for _ in range(_STEPS):
            passed += np.take(self.sorted, passed, mode="clip") < numbers
        far = np.flatnonzero(np.take(self.sorted, passed, mode="clip") < numbers)
        if len(far):
            passed[far] = np.searchsorted(self.sorted, numbers[far])
        return passed
