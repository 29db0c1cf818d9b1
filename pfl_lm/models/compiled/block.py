"""A transformer's block in C over K devices, forward and backward.

The same numbers as ``transformer``'s block in torch, to float32's rounding; and a device's own are
the same to the last bit whichever devices are beside it. Used for float32 on the CPU if
``pfl_lm/native/block.c`` compiles and there is a device for every thread.

Legend: K devices, B windows, T tokens, D width, F inner width, h heads, e = D / h; N = B · T.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from pfl_lm import native
from pfl_lm.models.compiled import layer as compiled
from pfl_lm.models.dense import Dense, add_to_route
from pfl_lm.native.bindings import LAYERS, NORMS, Block, Layer, Norm
from pfl_lm.native.parallel import run_parallel
from pfl_lm.native.products import address, device_stride


class Shape(NamedTuple):
    """What a block is, beside its parameters; ``cos`` and ``sin`` (T, e / 2) if it is rotary."""

    windows: int
    length: int
    heads: int
    gelu: bool
    cos: Tensor | None = None
    sin: Tensor | None = None


def supports(*tensors: Any) -> bool:
    """Whether the kernel takes these tensors; the first is x (K, N, D)."""
    return tensors[0].numel() > 0 and compiled.supports("block", *tensors)


def apply(
    x: Tensor, shape: Shape, norms: Sequence[tuple[Tensor, Tensor]], layers: Sequence[Dense]
) -> Tensor:
    """Return the block's output (K, N, D) for x (K, N, D), differentiable in every tensor.

    Args:
        norms: gain and bias of the one before attention and of the one before the feed-forward
            part, (D,) or (K, D) each.
        layers: attention's projection and output, the feed-forward part's first and second.
    """
    tensors = [*(each for norm in norms for each in norm), *(t for each in layers for t in each)]
    dims = [*(1,) * (2 * NORMS), *(2, 1, 2, 2, 0) * LAYERS]
    y: Tensor = _Function.apply(x, shape, *map(_own, tensors, dims, (len(x),) * len(dims)))
    return y


def _own(tensor: Any, dims: int, devices: int) -> Any:
    """The kernel makes one gradient for each device; autograd sums them for a shared tensor."""
    if not isinstance(tensor, Tensor) or not tensor.requires_grad or tensor.dim() > dims:
        return tensor
    return tensor.expand(devices, *tensor.shape)


class _Function(torch.autograd.Function):
    """The kernel; tensors are kept on ``ctx`` itself, as ``dense`` does."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, shape: Shape, *tensors: Any) -> Tensor:
        ctx.shape, ctx.norms = shape, [tensor.contiguous() for tensor in tensors[: 2 * NORMS]]
        layers = [Dense(*tensors[at : at + 5]) for at in range(2 * NORMS, len(tensors), 5)]
        ctx.layers = [compiled.by_rows(layer) for layer in layers]
        x = x.contiguous()
        ctx.kept = {"x": x}
        ctx.inners = [None] * LAYERS
        if any(ctx.needs_input_grad):
            width, inner = x.shape[-1], ctx.layers[2].weight.shape[-2]
            widths = {"projected": 3 * width, "mixed": width, "middle": width, "hidden": inner}
            ctx.kept |= {n: x.new_empty(*x.shape[:2], wide) for n, wide in widths.items()}
            ranks = [None if each.a is None else each.a.shape[-2] for each in ctx.layers]
            ctx.inners = [None if r is None else x.new_empty(*x.shape[:2], r) for r in ranks]
        y = torch.empty_like(x)
        _run("block_forward", _describe(ctx, {"y": y}))
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        dx = torch.empty_like(ctx.kept["x"])
        block = _describe(ctx, {"dy": dy.contiguous(), "dx": dx})
        needs, devices = ctx.needs_input_grad[2:], len(dx)
        gradients: list[Tensor | None] = [None] * len(needs)
        for number, norm in enumerate(block.norms):
            if any(needs[2 * number : 2 * number + 2]):
                pair = dx.new_zeros(2, devices, dx.shape[-1]).unbind(0)
                gradients[2 * number : 2 * number + 2] = pair
                norm.d_gain, norm.d_bias = map(address, pair)
        for number, layer in enumerate(ctx.layers):
            first = 2 * NORMS + 5 * number
            for at, name in enumerate(("d_weight", "d_bias", "d_a", "d_b")):
                if needs[first + at]:
                    shape = layer[at].mT.shape if name == "d_b" else layer[at].shape
                    made = dx.new_zeros if at else dx.new_empty
                    gradient = made(devices, *shape[-2 if at != 1 else -1 :])
                    setattr(block.layers[number], name, gradient.data_ptr())
                    gradients[first + at] = gradient.mT if name == "d_b" else gradient
        _run("block_backward", block)
        for number, layer in enumerate(ctx.layers):
            at = 2 * NORMS + 5 * number
            gradients[at] = add_to_route(layer.weight, gradients[at])
        return (dx, None, *gradients)


def _describe(ctx: Any, more: dict[str, Tensor]) -> Block:
    shape: Shape = ctx.shape
    devices, _, width = ctx.kept["x"].shape
    block = Block(devices, shape.windows, shape.length, width, ctx.layers[2].weight.shape[-2])
    block.heads, block.gelu = shape.heads, shape.gelu
    for number, (layer, inner) in enumerate(zip(ctx.layers, ctx.inners, strict=True)):
        bias = layer.bias
        block.layers[number] = Layer(
            compiled.describe(layer, inner), address(bias), device_stride(bias, 2)
        )
    for number in range(NORMS):
        gain, bias = ctx.norms[2 * number : 2 * number + 2]
        strides = device_stride(gain, 2), device_stride(bias, 2)
        block.norms[number] = Norm(address(gain), address(bias), *strides)
    for name, tensor in {"cos": shape.cos, "sin": shape.sin, **ctx.kept, **more}.items():
        setattr(block, name, address(tensor))
    return block


def _run(name: str, block: Block) -> None:
    function = getattr(native.load("block"), name)
    run_parallel(block.devices, lambda first, end: function(ctypes.byref(block), first, end))
