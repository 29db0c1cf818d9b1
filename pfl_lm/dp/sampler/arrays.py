"""Names for the arrays of the privacy path, and memory that is used again and again."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np

Updates = np.ndarray[Any, np.dtype[np.float32]]
Doubles = np.ndarray[Any, np.dtype[np.float64]]
Flags = np.ndarray[Any, np.dtype[np.bool_]]
Int64s = np.ndarray[Any, np.dtype[np.int64]]
Integers = np.ndarray[Any, np.dtype[np.signedinteger[Any]]]  # int32 or int64, as a ring needs
Cells = np.ndarray[Any, np.dtype[np.int32]]
Halves = np.ndarray[Any, np.dtype[np.uint16]]  # random words of 16 bits, or places in a block
Words = np.ndarray[Any, np.dtype[np.uint32]]
Longs = np.ndarray[Any, np.dtype[np.uint64]]
Octets = np.ndarray[Any, np.dtype[np.uint8]]


class Room(threading.local):
    """Memory that a thread keeps, for fresh pages at every call would cost as much as filling them.

    What is never written takes none.
    """

    def __init__(self, dtype: type[np.generic]) -> None:
        self._array: np.ndarray[Any, Any] = np.empty(0, dtype)

    def of(self, count: int) -> np.ndarray[Any, Any]:
        """Return an array (count,), which this thread's next call may write over."""
        if len(self._array) < count:
            self._array = np.empty(count, self._array.dtype)
        return self._array[:count]
