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
from pfl_lm.native.products import in_rows

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


def by_rows(layer: Dense) -> Dense:
    """Lay each device's matrices out in rows, B with its long side along the memory."""
    if layer.weight is None:
        return layer
    a, b = layer.a, layer.b
    return layer._replace(
        weight=in_rows(layer.weight),
        bias=None if layer.bias is None else in_rows(layer.bias, dims=1),
        a=None if a is None else in_rows(a),
        b=None if b is None else in_rows(b.mT).mT,
    )


def describe(layer: Dense, inner: Tensor | None) -> bindings.Dense:
    """Point at a layer :func:`by_rows`; ``inner`` is room for its narrow middle."""
    if layer.weight is None:
        return bindings.Dense()
    return products.describe(layer.weight, layer.a, layer.b, layer.scale, inner)
