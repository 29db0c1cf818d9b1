"""A transformer's block in compiled loops over K devices, forward and backward.

The same numbers as ``transformer``'s block in torch, to float32's rounding; and a device's own are
the same to the last bit whichever devices are beside it. Taken for float32 on the processor where
the loops compile (``pfl_lm/native/block.c``) and there is a device for every thread.

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
from pfl_lm.language import compiled
from pfl_lm.language.dense import Dense
from pfl_lm.native import threads
from pfl_lm.native.products import address, apart

NORMS, LAYERS = 2, 4
_PLACES = ("x", "y", "projected", "mixed", "middle", "bent", "dy", "dx")


class Shape(NamedTuple):
    """What a block is, beside its parameters; ``cos`` and ``sin`` (T, e / 2) if it is rotary."""

    windows: int
    length: int
    heads: int
    gelu: bool
    cos: Tensor | None = None
    sin: Tensor | None = None


class _Norm(ctypes.Structure):
    """``norm`` in block.c."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("gain", "bias")),
        *((name, ctypes.c_long) for name in ("gain_apart", "bias_apart")),
        *((name, ctypes.c_void_p) for name in ("d_gain", "d_bias")),
    )


class _Layer(ctypes.Structure):
    """``layer`` in block.c."""

    _fields_ = (
        ("dense", compiled.DenseLayer),
        ("bias", ctypes.c_void_p),
        ("bias_apart", ctypes.c_long),
        *((name, ctypes.c_void_p) for name in ("d_weight", "d_bias", "d_a", "d_b")),
    )


class _Block(ctypes.Structure):
    """``block`` in block.c."""

    _fields_ = (
        *((n, ctypes.c_long) for n in ("devices", "windows", "length", "width", "inner", "heads")),
        ("gelu", ctypes.c_long),
        ("layers", _Layer * LAYERS),
        ("norms", _Norm * NORMS),
        *((name, ctypes.c_void_p) for name in ("cos", "sin", *_PLACES)),
    )


def suits(*tensors: Any) -> bool:
    """Whether the compiled loops may work on these tensors; the first is x (K, N, D)."""
    return tensors[0].numel() > 0 and compiled.suits("block", *tensors)


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
    """One gradient for each device is what the loops make; autograd sums them for a shared one."""
    if not isinstance(tensor, Tensor) or not tensor.requires_grad or tensor.dim() > dims:
        return tensor
    return tensor.expand(devices, *tensor.shape)


class _Function(torch.autograd.Function):
    """The loops; tensors are kept on ``ctx`` itself, as ``dense`` does."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, shape: Shape, *tensors: Any) -> Tensor:
        ctx.shape, ctx.norms = shape, [tensor.contiguous() for tensor in tensors[: 2 * NORMS]]
        found = [Dense(*tensors[at : at + 5]) for at in range(2 * NORMS, len(tensors), 5)]
        ctx.layers = [compiled.in_rows(layer) for layer in found]
        x = x.contiguous()
        ctx.places = {"x": x}
        ctx.inners = [None] * LAYERS
        if any(ctx.needs_input_grad):
            width, inner = x.shape[-1], ctx.layers[2].weight.shape[-2]
            widths = {"projected": 3 * width, "mixed": width, "middle": width, "bent": inner}
            ctx.places |= {n: x.new_empty(*x.shape[:2], wide) for n, wide in widths.items()}
            ranks = [None if each.a is None else each.a.shape[-2] for each in ctx.layers]
            ctx.inners = [None if r is None else x.new_empty(*x.shape[:2], r) for r in ranks]
        y = torch.empty_like(x)
        _run("block_forward", _describe(ctx, {"y": y}))
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        dx = torch.empty_like(ctx.places["x"])
        block = _describe(ctx, {"dy": dy.contiguous(), "dx": dx})
        needs, devices = ctx.needs_input_grad[2:], len(dx)
        found: list[Tensor | None] = [None] * len(needs)
        for number, norm in enumerate(block.norms):
            if any(needs[2 * number : 2 * number + 2]):
                gradients = dx.new_zeros(2, devices, dx.shape[-1]).unbind(0)
                found[2 * number : 2 * number + 2] = gradients
                norm.d_gain, norm.d_bias = map(address, gradients)
        for number, layer in enumerate(ctx.layers):
            first = 2 * NORMS + 5 * number
            for at, name in enumerate(("d_weight", "d_bias", "d_a", "d_b")):
                if needs[first + at]:
                    shape = layer[at].mT.shape if name == "d_b" else layer[at].shape
                    made = dx.new_zeros if at else dx.new_empty
                    gradient = made(devices, *shape[-2 if at != 1 else -1 :])
                    setattr(block.layers[number], name, gradient.data_ptr())
                    found[first + at] = gradient.mT if name == "d_b" else gradient
        _run("block_backward", block)
        return (dx, None, *found)


def _describe(ctx: Any, places: dict[str, Tensor]) -> _Block:
    shape: Shape = ctx.shape
    devices, _, width = ctx.places["x"].shape
    block = _Block(devices, shape.windows, shape.length, width, ctx.layers[2].weight.shape[-2])
    block.heads, block.gelu = shape.heads, shape.gelu
    for number, (layer, inner) in enumerate(zip(ctx.layers, ctx.inners, strict=True)):
        bias = layer.bias
        block.layers[number] = _Layer(
            compiled.describe(layer, inner), address(bias), apart(bias, 2)
        )
    for number in range(NORMS):
        gain, bias = ctx.norms[2 * number : 2 * number + 2]
        strides = apart(gain, 2), apart(bias, 2)
        block.norms[number] = _Norm(address(gain), address(bias), *strides)
    for name, tensor in {"cos": shape.cos, "sin": shape.sin, **ctx.places, **places}.items():
        setattr(block, name, address(tensor))
    return block


def _run(name: str, block: _Block) -> None:
    function = getattr(native.library("block"), name)
    threads.over(block.devices, lambda first, end: function(ctypes.byref(block), first, end))
