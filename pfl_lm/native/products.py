"""Packed operands of compiled matrix products (``products.c``), from and to torch's tensors."""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from pfl_lm import native


def loops() -> ctypes.CDLL | None:
    """The compiled product, its argument types stated once; None without compiled loops."""
    found = native.library("products")
    if found is not None and found.packed_size.restype is not ctypes.c_long:
        long, pointer = ctypes.c_long, ctypes.c_void_p
        found.packed_size.restype, found.packed_size.argtypes = long, [long] * 2
        found.pack_matrix.argtypes = [long, long, pointer, long, long, pointer]
        found.multiply_packed.argtypes = (
            [long] * 3 + [pointer, long, pointer, pointer, long] + [ctypes.c_int]
        )
    return found


def suits(*tensors: Tensor | None) -> bool:
    """Whether tensors are what the loops work on: float32 in the processor's memory."""
    return all(
        x.dtype == torch.float32 and x.device.type == "cpu" for x in tensors if x is not None
    )


def pack(matrix: Tensor) -> Tensor:
    """Lay (K, N), whatever its strides, out in panels: the right operand of products to come."""
    compiled = loops()
    assert compiled is not None
    depth, columns = matrix.shape
    packed = matrix.new_empty(compiled.packed_size(depth, columns))
    compiled.pack_matrix(depth, columns, matrix.data_ptr(), *matrix.stride(), packed.data_ptr())
    return packed
