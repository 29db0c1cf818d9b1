"""Names for the arrays of the privacy path."""

from __future__ import annotations

from typing import Any

import numpy as np

Updates = np.ndarray[Any, np.dtype[np.float32]]
Doubles = np.ndarray[Any, np.dtype[np.float64]]
Flags = np.ndarray[Any, np.dtype[np.bool_]]
Int64s = np.ndarray[Any, np.dtype[np.int64]]
Cells = np.ndarray[Any, np.dtype[np.int32]]
Halves = np.ndarray[Any, np.dtype[np.uint16]]  # random words of 16 bits, or places in a block
Words = np.ndarray[Any, np.dtype[np.uint32]]
Longs = np.ndarray[Any, np.dtype[np.uint64]]
