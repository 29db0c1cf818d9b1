"""Dense products for K devices at once, each weight shared by all of them or held per device.

The shapes say which: a weight (O, I) is shared, and its product is ONE matrix multiplication over
the rows of all devices; a weight (K, O, I) is per device, a batched one. A weight (K, O, I) whose
first stride is 0 (``tensor.expand``) is per device and still equal everywhere, as in the first
local step: its forward product is shared, its gradient is per device.

Legend: K devices, N rows of a device (batch · time), I input width, O output width, R LoRA rank.

Source: LoRA, Hu et al. 2021 (arXiv:2106.09685), equation 3.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from pfl_lm.language.spec import LoraSpec


class Dense(NamedTuple):
    """A layer y = x Wᵀ + bias + scale · (x Aᵀ) Bᵀ, without ever forming W + scale · B A."""

    weight: Tensor  # (O, I) or (K, O, I)
    bias: Tensor | None = None  # (O,) or (K, O)
    a: Tensor | None = None  # (R, I) or (K, R, I)
    b: Tensor | None = None  # (O, R) or (K, O, R)
    scale: float = 1.0


def layer(weights: Mapping[str, Tensor], name: str, lora: LoraSpec | None) -> Dense:
    """Collect the tensors of the dense layer ``name``: its weight, its bias, its factors if any."""
    return Dense(
        weights[name],
        weights.get(f"{name}_bias"),
        weights.get(f"{name}.lora_a"),
        weights.get(f"{name}.lora_b"),
        lora.scale if lora else 1.0,
    )


def apply(x: Tensor, dense: Dense) -> Tensor:
    """Return the layer's output (K, N, O) for x (K, N, I), differentiable in every tensor."""
    y: Tensor = _Product.apply(x, dense.weight, dense.bias)
    if dense.a is not None:
        y = y + dense.scale * _Product.apply(_Product.apply(x, dense.a, None), dense.b, None)
    return y


def times(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return x Wᵀ (+ bias): (K, N, I) → (K, N, O)."""
    devices, rows, _ = x.shape
    one = _the_one(weight)
    if one is None:
        y = torch.bmm(x, weight.mT)
        return y if bias is None else y.add_(_by_device(bias))
    flat = x.reshape(devices * rows, -1)
    if bias is not None and bias.dim() == 1:
        return torch.addmm(bias, flat, one.mT).view(devices, rows, -1)
    y = torch.mm(flat, one.mT).view(devices, rows, -1)
    return y if bias is None else y.add_(_by_device(bias))


def times_back(dy: Tensor, weight: Tensor) -> Tensor:
    """Return dy W, the gradient with respect to x: (K, N, O) → (K, N, I)."""
    devices, rows, _ = dy.shape
    one = _the_one(weight)
    if one is None:
        return torch.bmm(dy, weight)
    return torch.mm(dy.reshape(devices * rows, -1), one).view(devices, rows, -1)


def weight_gradient(dy: Tensor, x: Tensor, weight: Tensor) -> Tensor:
    """Return dyᵀ x in the weight's shape: per device, or summed over devices if it is shared."""
    if weight.dim() == 2:
        return torch.mm(dy.reshape(-1, dy.shape[-1]).mT, x.reshape(-1, x.shape[-1]))
    return torch.bmm(dy.mT, x)


def _the_one(weight: Tensor) -> Tensor | None:
    """The matrix (O, I) that all devices hold, or None where theirs may differ."""
    if weight.dim() == 2:
        return weight
    return weight[0] if weight.shape[0] == 1 or weight.stride(0) == 0 else None


def _by_device(bias: Tensor) -> Tensor:
    return bias if bias.dim() == 1 else bias.unsqueeze(1)  # (O,) or (K, 1, O)


class _Product(torch.autograd.Function):
    """x Wᵀ + bias with the gradients of the two cases above."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.saved = (x, weight, bias)
        return times(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, bias = ctx.saved
        needs_x, needs_weight, needs_bias = ctx.needs_input_grad
        dy = dy.contiguous()
        return (
            times_back(dy, weight) if needs_x else None,
            weight_gradient(dy, x, weight) if needs_weight else None,
            dy.sum(1 if bias.dim() == 2 else (0, 1)) if needs_bias else None,
        )
