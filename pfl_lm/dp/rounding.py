"""The loops over an update: its squared norm, and its rounding at random, a block at a time.

What is here in numpy is the definition; ``native/encode.c`` computes the same numbers, to the last
bit, in fewer passes over memory. So what a reproducible run learns depends neither on the machine
nor on its compiler.
"""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np

from pfl_lm import native
from pfl_lm.dp.look_up import Halves, Int64s

Updates = np.ndarray[Any, np.dtype[np.float32]]

_LANES = 256  # of a norm's sum; part of what a reproducible run means, never change


def sum_of_squares(values: Updates) -> float:
    """Sum the squares of float32[n] in float64, in one order whoever computes it.

    Coordinate i goes into sum i mod 256; then the sums are folded in halves.
    """
    loops = _native()
    if loops is not None:
        return float(loops.sum_of_squares(values.ctypes.data, len(values)))
    wide = np.zeros((-(-len(values) // _LANES), _LANES))
    wide.reshape(-1)[: len(values)] = values
    np.multiply(wide, wide, out=wide)
    lanes = np.add.reduce(wide, axis=0)
    while len(lanes) > 1:
        lanes = lanes[: len(lanes) // 2] + lanes[len(lanes) // 2 :]
    return float(lanes[0])


def scale(values: Updates, factor: float, out: Updates) -> None:
    """Write values·factor; in float64 where the factor would lose bits as a float32."""
    if factor < 2.0**-64:
        np.multiply(values, np.float64(factor), out=out, casting="same_kind")
    else:
        np.multiply(values, np.float32(factor), out=out)


def round_at_random(
    values: Updates, factor: float, words: Halves, out: Int64s, scratch: tuple[Updates, Updates]
) -> int:
    """Round values·factor up with a probability equal to its fraction, as 16 bits each decide.

    out = ⌊values·factor + words/2^16 + 2^-17⌋, in float32 from the left, each step rounded.

    Args:
        values: float32[n], contiguous.
        words: uint16[n], uniform.
        out: int64[n].
        scratch: two float32[>= n].

    Returns:
        The sum of squares of ``out``, exact below 2^53 and at least 2^53 otherwise.
    """
    loops = _native()
    if loops is not None:
        source, dither, target = (array.ctypes.data for array in (values, words, out))
        return int(loops.round_at_random(source, factor, dither, len(values), target))
    scaled, dithers = (array[: len(values)] for array in scratch)
    scale(values, factor, scaled)
    np.multiply(words, np.float32(2.0**-16), out=dithers)
    scaled += dithers
    scaled += np.float32(2.0**-17)
    np.floor(scaled, out=scaled)
    np.copyto(out, scaled.astype(np.int32))  # by way of int32 it is faster
    return _exact_squares(scaled)


def _exact_squares(integers: Updates) -> int:
    """Return the exact sum of squares of whole numbers up to 2^23, given as float32.

    A sum of whole numbers that stays below 2^24 is exact in float32 in any order, and one that
    does not ends at 2^24 or above; likewise 2^53 in float64.
    """
    quick = float(np.dot(integers, integers))
    if quick < 2.0**24:
        return int(quick)
    wide = integers.astype(np.float64)
    return int(np.dot(wide, wide))


def _native() -> ctypes.CDLL | None:
    """The compiled loops, which are told how to take their arguments; None without them."""
    pointer, size, double = ctypes.c_void_p, ctypes.c_int64, ctypes.c_double
    return native.functions(
        "encode",
        sum_of_squares=(double, pointer, size),
        round_at_random=(double, pointer, double, pointer, size, pointer),
    )
