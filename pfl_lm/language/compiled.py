"""Dense layers as compiled loops over K devices take them (``pfl_lm/native/layer.h``).

Legend: K devices, O width of a layer's output, I of its input, R LoRA rank.
"""

from __future__ import annotations

import ctypes
from typing import Any

import torch
from torch import Tensor

from pfl_lm import native
from pfl_lm.language.dense import Dense
from pfl_lm.native.products import address, apart


class DenseLayer(ctypes.Structure):
    """``dense`` in layer.h."""

    _fields_ = (
        *((name, ctypes.c_long) for name in ("outputs", "inputs", "rank")),
        *((name, ctypes.c_void_p) for name in ("weight", "a", "b")),
        *((name, ctypes.c_long) for name in ("weight_apart", "a_apart", "b_apart")),
        ("inner", ctypes.c_void_p),
        ("scale", ctypes.c_float),
    )


def suits(library: str, *tensors: Any) -> bool:
    """Whether compiled loops may work on these tensors; the first has a device in each row.

    They do for float32 on the processor, if there is a device for every thread.
    """
    found = [tensor for tensor in tensors if isinstance(tensor, Tensor)]
    return (
        all(x.dtype == torch.float32 and x.device.type == "cpu" for x in found)
        and len(found[0]) >= torch.get_num_threads()
        and native.library(library) is not None
    )


def in_rows(layer: Dense) -> Dense:
    """Lay each device's matrices out in rows, B with its long side along the memory."""
    if layer.weight is None:
        return layer
    a, b = layer.a, layer.b
    return layer._replace(
        weight=_contiguous(layer.weight, 2),
        bias=None if layer.bias is None else _contiguous(layer.bias, 1),
        a=None if a is None else _contiguous(a, 2),
        b=None if b is None else _contiguous(b.mT, 2).mT,
    )


def describe(layer: Dense, inner: Tensor | None) -> DenseLayer:
    """Point at a layer :func:`in_rows`; ``inner`` is room for its narrow middle."""
    if layer.weight is None:
        return DenseLayer()
    outputs, inputs = layer.weight.shape[-2:]
    held = DenseLayer(
        outputs, inputs, weight=layer.weight.data_ptr(), weight_apart=apart(layer.weight, 3)
    )
    if layer.a is not None and layer.b is not None:
        held.rank, held.scale = layer.a.shape[-2], layer.scale
        held.inner = address(inner)
        held.a, held.a_apart = layer.a.data_ptr(), apart(layer.a, 3)
        held.b, held.b_apart = layer.b.data_ptr(), apart(layer.b, 3)
    return held


def _contiguous(tensor: Tensor, dims: int) -> Tensor:
    """Each device's own part, of ``dims`` axes, contiguous."""
    rows = tensor.stride(-1) == 1 and (dims == 1 or tensor.stride(-2) == tensor.shape[-1])
    return tensor if rows else tensor.contiguous()
