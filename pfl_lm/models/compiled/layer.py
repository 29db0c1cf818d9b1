"""Dense layers as the C kernels over K devices take them (``pfl_lm/native/layer.h``).

Legend: K devices, O width of a layer's output, I of its input, R LoRA rank.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pfl_lm import native
from pfl_lm.models.dense import Dense
from pfl_lm.native import bindings, products
from pfl_lm.native.products import address, device_stride

_PRECISIONS = (torch.float32, torch.bfloat16)


def supports(library: str, *tensors: Any) -> bool:
    """Whether a library's kernels take these tensors, layers too; the first has a row a device.

    They take float32 on the CPU, if there is a device for every thread; a layer's weight also in
    bfloat16, where the processor multiplies it.
    """
    layers = [layer for layer in tensors if isinstance(layer, Dense) and layer.weight is not None]
    given = [each for each in tensors if isinstance(each, Tensor)]
    given += [each for layer in layers for each in layer[1:] if isinstance(each, Tensor)]
    weights = [layer.weight for layer in layers]
    if not products.has_bfloat16():
        given, weights = given + weights, []
    return (
        all(x.dtype == torch.float32 and x.device.type == "cpu" for x in given)
        and all(x.dtype in _PRECISIONS and x.device.type == "cpu" for x in weights)
        and len(given[0]) >= torch.get_num_threads()
        and native.load(library) is not None
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


def describe(layer: Dense, inner: Tensor | None) -> bindings.Dense:
    """Point at a layer :func:`in_rows`; ``inner`` is room for its narrow middle."""
    if layer.weight is None:
        return bindings.Dense()
    outputs, inputs = layer.weight.shape[-2:]
    held = bindings.Dense(outputs, inputs, weight=layer.weight.data_ptr())
    held.weight_device_stride = device_stride(layer.weight, 3)
    held.low = layer.weight.dtype == torch.bfloat16
    if layer.a is not None and layer.b is not None:
        held.rank, held.scale = layer.a.shape[-2], layer.scale
        held.inner = address(inner)
        held.a, held.a_device_stride = layer.a.data_ptr(), device_stride(layer.a, 3)
        held.b, held.b_device_stride = layer.b.data_ptr(), device_stride(layer.b, 3)
    return held


def _contiguous(tensor: Tensor, dims: int) -> Tensor:
    """Each device's own part, of ``dims`` axes, contiguous."""
    rows = tensor.stride(-1) == 1 and (dims == 1 or tensor.stride(-2) == tensor.shape[-1])
    return tensor if rows else tensor.contiguous()
