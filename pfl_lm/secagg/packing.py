"""Vectors of b-bit fields, back to back: how reports travel and how masks are read.

Bit ``i`` of field ``j`` is bit ``(j*b + i) % 8`` of byte ``(j*b + i) // 8``: little-endian without
gaps, so that eight fields fill exactly b bytes. Fields are added to machine words as they are
read; above its b bits a word then holds rubbish, which the ring clears at the end.

What is here in numpy is the definition. ``native/packed.c`` computes the same, to the bit, ten
times faster.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pfl_lm import native
from pfl_lm.native import bindings

Words = NDArray[np.unsignedinteger[Any]]
Integers = NDArray[np.signedinteger[Any]]  # int32 or int64: a vector before it is masked
Bytes = NDArray[np.uint8]

TOGETHER = bindings.TOGETHER  # vectors that are added in one pass over the words
_SLACK = 16  # bytes behind the last field of a vector that numpy may touch
_LINE = 64  # bytes of a cache line
_GROUP = 8  # fields that fill whole bytes, whatever b is

Add = Callable[[int, int, int], None]
"""``add(first, count, vectors)``: so many of the vectors, to ``count`` words from ``first`` on."""


def packed_bytes(count: int, bits: int) -> int:
    """Bytes of ``count`` fields: ``ceil(count * bits / 8)``."""
    return (count * bits + 7) // 8


def zeros(count: int, word: np.dtype[Any]) -> Words:
    """Words to add to, that begin at a cache line: no store of a kernel is then split."""
    raw = np.zeros(count * word.itemsize + _LINE, dtype=np.uint8)
    start = -raw.ctypes.data % _LINE
    return raw[start : start + count * word.itemsize].view(word)


def add_packed(total: Words, vectors: Sequence[bytes | memoryview], bits: int) -> None:
    """Add vectors of as many fields as ``total`` has words, in place, modulo the words' size."""
    for start in range(0, len(vectors), TOGETHER):
        packed = [np.frombuffer(v, dtype=np.uint8) for v in vectors[start : start + TOGETHER]]
        adder(total, packed, bits)(0, total.size, len(packed))


def adder(total: Words, packed: Sequence[Bytes], bits: int, subtract: bool = False) -> Add:
    """What adds vectors, from buffers that are filled again and again, to parts of ``total``.

    Args:
        total: words (d,) of 4 or 8 bytes, contiguous.
        packed: up to ``TOGETHER`` buffers, each contiguous, with a vector at its beginning.
        bits: of a field, from 8 to the width of a word.
        subtract: subtract them instead.
    """
    library = native.load("packed")
    if library is None:
        operation = np.subtract if subtract else np.add

        def add(first: int, count: int, vectors: int) -> None:
            for row in packed[:vectors]:
                _add_fields(total[first : first + count], row, bits, operation)

        return add
    pointers = (ctypes.c_void_p * TOGETHER)(*(row.ctypes.data for row in packed))
    described = bindings.PackedSum(total.ctypes.data, pointers, total.itemsize, bits, subtract)
    kernel, sum_ = library.add_packed, ctypes.byref(described)

    def add_compiled(first: int, count: int, vectors: int) -> None:
        kernel(sum_, first, count, vectors)

    return add_compiled


def pack(words: Words, bits: int) -> memoryview:
    """Write the lowest ``bits`` bits of every word; the unused bits of the last byte are zero."""
    packed = np.empty(packed_bytes(words.size, bits), dtype=np.uint8)
    pack_into(packed, words, bits)
    return packed.data


def pack_into(packed: Bytes, words: Words, bits: int) -> None:
    """``pack`` into ``packed_bytes(words.size, bits)`` bytes, contiguous like the words."""
    library = native.load("packed")
    if bits == 8 * words.itemsize:
        packed[:] = words.view(np.uint8)
    elif library is None:
        packed[:] = _pack(words, bits)
    else:
        library.pack(packed.ctypes.data, words.ctypes.data, words.itemsize, words.size, bits)


def _add_fields(total: Words, row: Bytes, bits: int, operation: np.ufunc) -> None:
    """Every eighth field begins at the same bit of its byte: eight passes, each with one shift."""
    if bits == 8 * total.itemsize:
        operation(total, row[: total.nbytes].view(total.dtype), out=total)
        return
    window = np.dtype("<u4" if bits <= 25 else "<u8")  # holds a field wherever in a byte it begins
    row = np.concatenate([row[: packed_bytes(total.size, bits)], np.zeros(_SLACK, np.uint8)])
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


def _pack(words: Words, bits: int) -> Bytes:
    """Join neighbours to 64-bit numbers of several fields, and shift these into place.

    A group of eight fields fills exactly ``bits`` bytes. Its last 64-bit piece may run into the
    next group, so pieces are written from the last to the first.
    """
    padded = np.zeros(-(-words.size // _GROUP) * _GROUP, dtype=words.dtype)
    padded[: words.size] = words & words.dtype.type((1 << bits) - 1)
    fields, width = _join_neighbours(padded, bits)
    groups = fields.reshape(-1, _GROUP * bits // width)
    packed = np.zeros(len(groups) * bits + _SLACK, dtype=np.uint8)
    for start in range(0, bits, 8)[::-1]:
        piece = np.zeros(len(groups), dtype=np.uint64)
        for column, field in enumerate(groups.T):
            shift = column * width - 8 * start
            if 0 <= shift < 64:
                piece |= field << np.uint64(shift)
            elif -width < shift < 0:
                piece |= field >> np.uint64(-shift)
        _every(packed, start, np.dtype("<u8"), len(groups), bits)[:] = piece
    return packed[: packed_bytes(words.size, bits)]


def _join_neighbours(words: Words, width: int) -> tuple[NDArray[np.uint64], int]:
    """Join neighbouring ``width``-bit fields into 64-bit numbers; return them and their width."""
    while words.itemsize < 8:
        half = 8 * words.itemsize
        wide = words.view(np.dtype(f"<u{2 * words.itemsize}"))
        words = (wide & wide.dtype.type((1 << half) - 1)) | (wide >> half) << width
        width *= 2
    return words.view(np.uint64), width
