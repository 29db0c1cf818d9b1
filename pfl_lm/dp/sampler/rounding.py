"""An update's squared norm, and its rounding at random with noise on top.

What is here in numpy is the definition; ``native/encode.c`` computes the same numbers, to the last
bit, in one pass over memory. So what a reproducible run learns depends neither on the machine nor
on its compiler.
"""

from __future__ import annotations

import ctypes

import numpy as np

from pfl_lm import native
from pfl_lm.dp.sampler.alias import Alias, room_for_places
from pfl_lm.dp.sampler.arrays import Halves, Integers, Updates, Words
from pfl_lm.dp.sampler.random_bits import RandomBits

_BLOCK = 1 << 14  # coordinates at a time, for numpy's temporaries to stay in a cache
_LANES = 256  # of a norm's sum; part of what a reproducible run means, never change
_STRETCH = 1 << 16  # floats that a norm's sum is taken over at a time; likewise


def sum_of_squares(values: Updates) -> float:
    """Sum the squares of float32[n] in float64, in one order on every machine.

    Stretch by stretch of 2^16; in each, coordinate i goes into sum i mod 256, and the sums are
    folded in halves.
    """
    compiled = native.load("encode")
    if compiled is not None:
        return float(compiled.sum_of_squares(values.ctypes.data, len(values)))
    starts = range(0, len(values), _STRETCH)
    return float(sum(_sum_of_stretch(values[start : start + _STRETCH]) for start in starts))


def _sum_of_stretch(values: Updates) -> float:
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
    values: Updates,
    factor: float,
    bits: RandomBits,
    out: Integers,
    alias: Alias | None = None,
    past_caches: bool = False,
) -> tuple[int, Words]:
    """Round values·factor up with a probability equal to its fraction, as b random bits decide.

    out = ⌊values·factor + (dither + ½)/2^b⌋, in float32, product and sum each rounded; plus what
    the alias table chooses. Without a table b is 16, of a word of its own. With one, a word of 32
    bits serves both: b is what the table spares, 2 to 11.

    Args:
        values: float32[n], contiguous.
        out: int32[n] or int64[n], contiguous. An int32 wraps, as every ring does that it serves.
        alias: the noise's; None for none.
        past_caches: nobody will read ``out`` soon, so it need not pass through the caches.

    Returns:
        The sum of squares before the noise, exact below 2^53 and at least 2^53 otherwise; and the
        places that the alias table left to the rest, as :meth:`Alias.add` notes them.
    """
    random = bits.octets((2 if alias is None else 4) * len(values))
    compiled = native.load("encode")
    if compiled is None:
        if alias is None:
            return _round(values, factor, random.view(np.uint16), 16, out), room_for_places(0)
        words = random.view(np.uint32)
        dither = words >> np.uint32(1) & np.uint32((1 << alias.spare_bits) - 1)
        squares = _round(values, factor, dither, alias.spare_bits, out)
        return squares, alias.add_words(words, out)
    left, noted = room_for_places(0 if alias is None else len(values)), ctypes.c_int64()
    entries, low_bits = (None, 0) if alias is None else (alias.entries.ctypes.data, alias.low_bits)
    squares = compiled.round_at_random(
        *(values.ctypes.data, factor, len(values), random.ctypes.data),
        *(entries, low_bits, left.ctypes.data, ctypes.byref(noted)),
        *(past_caches, out.itemsize, out.ctypes.data),
    )
    return int(squares), left[: noted.value]


def _round(
    values: Updates, factor: float, dither: Halves | Words, dither_bits: int, out: Integers
) -> int:
    """Write the rounding; return its sum of squares."""
    squares = 0
    unit = np.float32(0.5**dither_bits)
    for begin in range(0, len(values), _BLOCK):
        part = values[begin : begin + _BLOCK]
        scaled = np.empty(len(part), np.float32)
        scale(part, factor, scaled)
        offset = dither[begin : begin + _BLOCK] * unit
        offset += unit / 2
        scaled += offset
        np.floor(scaled, out=scaled)
        out[begin : begin + _BLOCK] = scaled.astype(np.int32)  # by way of int32 it is faster
        squares += _exact_squares(scaled)
    return squares


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
