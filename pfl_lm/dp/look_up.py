"""Two look-ups, a block of numbers at a time: in a guide by 16 bits, and among sorted boundaries.

What is here in numpy is the definition; ``native/look_up.c`` finds the same.
"""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np

from pfl_lm import native

Integers = np.ndarray[Any, np.dtype[Any]]
Int64s = np.ndarray[Any, np.dtype[np.int64]]
Words = np.ndarray[Any, np.dtype[np.uint64]]
Halves = np.ndarray[Any, np.dtype[np.uint16]]
Cells = np.ndarray[Any, np.dtype[np.int32]]
Guide = np.ndarray[Any, np.dtype[np.int16]]

UNDECIDED = np.iinfo(np.int16).min  # what a guide says where 16 bits do not decide
STEPS = 2  # boundaries passed one by one before falling back to a binary search


def look_up(guide: Guide, words: Halves, out: Integers, places: Halves) -> Halves:
    """Add ``guide[words]`` to ``out`` where the guide decides; return the places where not.

    Args:
        guide: int16[2^16].
        words: uint16[n], n up to 2^16.
        out: int32[n] or int64[n].
        places: uint16[>= n], scratch for what is returned, in ascending order.
    """
    loops = _native()
    if loops is not None:
        loop = loops.look_up_32 if out.dtype == np.int32 else loops.look_up_64
        source, answers, noted = (array.ctypes.data for array in (words, guide, places))
        return places[: loop(out.ctypes.data, source, len(out), answers, noted)]
    drawn = np.take(guide, words.astype(np.intp), mode="clip")
    undecided = np.flatnonzero(drawn == UNDECIDED)
    drawn[undecided] = 0
    out += drawn
    return undecided.astype(np.uint16)


def pass_boundaries(boundaries: Words, start: Cells, shift: int, uniform: Words) -> Int64s:
    """Return, for each number of ``uniform``, how many of the sorted boundaries lie below it.

    Args:
        boundaries: ending in ``STEPS + 1`` times 2^64 - 1.
        start: how many boundaries lie below each cell of width 2^shift.
    """
    loops = _native()
    if loops is not None:
        passed = np.empty(len(uniform), np.int64)
        arrays = (uniform, boundaries, start, passed)
        numbers, sorted_, cells, target = (array.ctypes.data for array in arrays)
        sizes = (len(uniform), len(boundaries))
        loops.pass_boundaries(numbers, sizes[0], sorted_, sizes[1], cells, shift, target)
        return passed
    cell = (uniform >> np.uint64(shift)).astype(np.intp)
    passed = np.take(start, cell, mode="clip").astype(np.int64)
    for _ in range(STEPS):
        passed += np.take(boundaries, passed, mode="clip") < uniform
    far = np.flatnonzero(np.take(boundaries, passed, mode="clip") < uniform)
    if len(far):
        passed[far] = np.searchsorted(boundaries, uniform[far])
    return passed


def _native() -> ctypes.CDLL | None:
    """The compiled loops, which are told how to take their arguments; None without them."""
    pointer, size = ctypes.c_void_p, ctypes.c_int64
    looking = (size, pointer, pointer, size, pointer, pointer)
    passing = (None, pointer, size, pointer, size, pointer, ctypes.c_int, pointer)
    return native.functions(
        "look_up", look_up_32=looking, look_up_64=looking, pass_boundaries=passing
    )
