"""Vectors of b-bit fields, back to back: how reports travel and how masks are read.

Bit ``i`` of field ``j`` is bit ``(j*b + i) % 8`` of byte ``(j*b + i) // 8``: little-endian without
gaps, so that eight fields fill exactly b bytes. Fields are added to machine words as they are
read; above its b bits a word then holds rubbish, which the ring clears at the end.

What is here in numpy is the definition. ``native/packed.c`` computes the same, to the bit, ten
times faster.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pfl_lm import native

Words = NDArray[np.unsignedinteger[Any]]
Bytes = NDArray[np.uint8]

SLACK = 16  # bytes behind the last field of a vector that reading it in numpy may touch
_LINE = 64  # bytes of a cache line
_GROUP = 8  # fields that fill whole bytes, whatever b is

Add = Callable[[int, int, int], None]
"""``add(first, count, vectors)``: the first ``vectors`` rows, to ``count`` words from ``first``."""


def packed_bytes(count: int, bits: int) -> int:
    """Bytes of ``count`` fields: ``ceil(count * bits / 8)``."""
    return (count * bits + 7) // 8


def zeros(count: int, word: np.dtype[Any]) -> Words:
    """Words to add to, at the beginning of a cache line: loops then split none of their stores."""
    raw = np.zeros(count * word.itemsize + _LINE, dtype=np.uint8)
    start = -raw.ctypes.data % _LINE
    return raw[start : start + count * word.itemsize].view(word)


def add_packed(total: Words, packed: bytes | memoryview, bits: int) -> None:
    """Add a vector of as many fields as ``total`` has words, in place, modulo the words' size."""
    row = np.frombuffer(packed, dtype=np.uint8)
    if _native() is None:
        row = np.concatenate([row, np.zeros(SLACK, np.uint8)])
    adder(total, row[None], bits)(0, total.size, 1)


def adder(total: Words, rows: Bytes, bits: int, subtract: bool = False) -> Add:
    """What adds vectors from a buffer that is filled again and again to parts of ``total``.

    Args:
        total: words (d,) of 2, 4 or 8 bytes, contiguous.
        rows: uint8 (vectors, bytes), contiguous: one vector in each row, and ``SLACK`` bytes more.
        bits: of a field, from 8 to the width of a word.
        subtract: subtract them instead.
    """
    library = _native()
    if library is None:
        operation = np.subtract if subtract else np.add

        def add(first: int, count: int, vectors: int) -> None:
            for row in rows[:vectors]:
                _add_fields(total[first : first + count], row, bits, operation)

        return add
    described = _Sum(
        total.ctypes.data,
        rows.ctypes.data,
        rows.shape[1],
        total.itemsize,
        bits,
        subtract,
    )
    loop, sum_ = library.add_packed, ctypes.byref(described)

    def add_compiled(first: int, count: int, vectors: int) -> None:
        loop(sum_, first, count, vectors)

    return add_compiled


def pack(words: Words, bits: int) -> bytes | memoryview:
    """Write the lowest ``bits`` bits of every word; the unused bits of the last byte are zero.

    Words that are ``bits`` wide are not copied.
    """
    if bits == 8 * words.itemsize:
        return words.data.cast("B")
    library = _native()
    if library is None:
        return _pack(words, bits)
    packed = bytearray(packed_bytes(words.size, bits))
    target = (ctypes.c_char * len(packed)).from_buffer(packed)
    library.pack(target, words.ctypes.data, words.itemsize, words.size, bits)
    return memoryview(packed)


def _add_fields(total: Words, row: Bytes, bits: int, operation: np.ufunc) -> None:
    """Every eighth field begins at the same bit of its byte: eight passes, each with one shift."""
    if bits == 8 * total.itemsize:
        operation(total, row[: total.nbytes].view(total.dtype), out=total)
        return
    window = np.dtype("<u4" if bits <= 25 else "<u8")  # holds a field wherever in a byte it begins
    for column in range(min(_GROUP, total.size)):
        part = total[column::_GROUP]
        at, shift = divmod(column * bits, 8)
        fields = _every(row, at, window, part.size, bits) >> window.type(shift)
        if shift + bits > 64:
            last = _every(row, at + 8, np.dtype(np.uint8), part.size, bits)
            fields |= last.astype(np.uint64) << np.uint64(64 - shift)
        operation(part, fields.astype(total.dtype, copy=False), out=part)


def _every(row: Bytes, at: int, dtype: np.dtype[Any], count: int, stride: int) -> NDArray[Any]:
    """View ``count`` numbers that begin at byte ``at`` and every ``stride`` bytes on."""
    return np.ndarray((count,), dtype, buffer=row, offset=at, strides=(stride,))


def _pack(words: Words, bits: int) -> memoryview:
    """Join neighbours to 64-bit numbers of several fields, and shift these into place.

    A group of eight fields fills exactly ``bits`` bytes. Its last 64-bit piece may run into the
    next group, so pieces are written from the last to the first.
    """
    padded = np.zeros(-(-words.size // _GROUP) * _GROUP, dtype=words.dtype)
    padded[: words.size] = words & words.dtype.type((1 << bits) - 1)
    fields, width = _join_neighbours(padded, bits)
    groups = fields.reshape(-1, _GROUP * bits // width)
    packed = np.zeros(len(groups) * bits + SLACK, dtype=np.uint8)
    for start in range(0, bits, 8)[::-1]:
        piece = np.zeros(len(groups), dtype=np.uint64)
        for column, field in enumerate(groups.T):
            shift = column * width - 8 * start
            if 0 <= shift < 64:
                piece |= field << np.uint64(shift)
            elif -width < shift < 0:
                piece |= field >> np.uint64(-shift)
        _every(packed, start, np.dtype("<u8"), len(groups), bits)[:] = piece
    return packed.data[: packed_bytes(words.size, bits)]


def _join_neighbours(words: Words, width: int) -> tuple[NDArray[np.uint64], int]:
    """Join neighbouring ``width``-bit fields into 64-bit numbers; return them and their width."""
    while words.itemsize < 8:
        half = 8 * words.itemsize
        wide = words.view(np.dtype(f"<u{2 * words.itemsize}"))
        words = (wide & wide.dtype.type((1 << half) - 1)) | (wide >> half) << width
        width *= 2
    return words.view(np.uint64), width


class _Sum(ctypes.Structure):
    """``struct sum`` of ``native/packed.c``."""

    _fields_ = (
        ("total", ctypes.c_void_p),
        ("packed", ctypes.c_void_p),
        ("stride", ctypes.c_int64),
        ("width", ctypes.c_int),
        ("bits", ctypes.c_int),
        ("subtract", ctypes.c_int),
    )


def _native() -> ctypes.CDLL | None:
    """The compiled loops, which are told how to take their arguments; None without them."""
    pointer, size, number = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int
    return native.functions(
        "packed",
        add_packed=(None, pointer, size, size, size),
        pack=(None, pointer, pointer, number, size, number),
    )
