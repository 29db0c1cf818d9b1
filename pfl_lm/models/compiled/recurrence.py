"""The recurrence of a layer in one call in C: K devices, all time steps, forward or backward.

The same numbers as ``recurrent``'s steps in torch, to float32's rounding; and a device's own are
the same to the last bit whichever devices are beside it. Used for float32 on the CPU if
``pfl_lm/native/recurrence.c`` compiles and there is a device for every thread.

Legend: K devices, T time steps, B windows, H cells, G gates · H, S width of the state, R LoRA rank.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from pfl_lm import native
from pfl_lm.models.compiled import layer as compiled
from pfl_lm.models.dense import Dense
from pfl_lm.native import bindings
from pfl_lm.native.parallel import run_parallel


def supports(*tensors: Any) -> bool:
    """Whether the kernel takes these tensors; the first has a device in each row."""
    return compiled.supports("recurrence", *tensors)


class Recurrence(torch.autograd.Function):
    """The steps of one layer from a state, and backward through time.

    Takes sums of the inputs (K, T, B, G), which are overwritten, a state r (K, B, S) and cells c
    (K, B, H), the recurrent layer and the projection or Nones; returns the states after each step
    (K, T, B, S) and the last cells.
    """

    @staticmethod
    def forward(
        ctx: Any, sums: Tensor, r: Tensor, c: Tensor, *tensors: Any
    ) -> tuple[Tensor, Tensor]:
        devices, steps, windows, _ = sums.shape
        learns = any(ctx.needs_input_grad)
        ctx.rests = steps > 1 and not ctx.needs_input_grad[1] and not r.any()
        states = sums.new_empty(devices, steps + 1, windows, r.shape[-1])
        cells = c.new_empty(devices, 1 + steps * learns, *c.shape[1:])
        states[:, 0], cells[:, 0] = r, c
        places = (devices, steps if learns else 1, windows, c.shape[-1])
        recurrent, project = Dense(*tensors[:5]), Dense(*tensors[5:])
        ctx.layers = [compiled.by_rows(layer) for layer in (recurrent, project)]
        ctx.sums, ctx.states, ctx.cells = sums.contiguous(), states, cells
        ctx.tanh_c = sums.new_empty(places)
        ctx.outputs = None if project.weight is None else sums.new_empty(places)
        ctx.inners = [_inner(layer, sums) for layer in ctx.layers]
        _run("recurrence_forward", _walk(ctx, ctx.inners, learns))
        return states[:, 1:], cells[:, -1].clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dr_all: Tensor, dc: Tensor) -> tuple[Tensor | None, ...]:
        sums, (recurrent, project) = ctx.sums, ctx.layers
        d_states, dc = dr_all.clone(memory_format=torch.contiguous_format), dc.contiguous().clone()
        d_sums, dr = torch.empty_like(sums), torch.empty_like(ctx.states[:, 0])
        inners = [_inner(layer, sums) for layer in ctx.layers]
        walk = _walk(ctx, inners, True)
        for name, made in (("d_states", d_states), ("d_sums", d_sums), ("dr", dr), ("dc", dc)):
            setattr(walk, name, made.data_ptr())
        _run("recurrence_backward", walk)
        needs = ctx.needs_input_grad[2:]
        moved = slice(sums.shape[2] if ctx.rests else 0, None)  # a state of zero has no part
        rows = [d_sums.flatten(1, 2), inners[0], ctx.states[:, :-1].flatten(1, 2), ctx.inners[0]]
        gradients = recurrent.gradients(
            *(x if x is None else x[:, moved] for x in rows), needs[1:5]
        )
        by_state = None if ctx.rests else dr
        if project.weight is None:
            return (d_sums, by_state, dc, *gradients, *(None,) * 6)
        seen = (d_states.flatten(1, 2), inners[1], ctx.outputs.flatten(1, 2), ctx.inners[1])
        return (
            d_sums,
            by_state,
            dc,
            *gradients,
            None,
            *project.gradients(*seen, needs[6:10]),
            None,
        )


def _walk(ctx: Any, inners: Sequence[Tensor | None], kept: bool) -> bindings.Recurrence:
    devices, steps, windows, gates = ctx.sums.shape
    cells = ctx.cells.shape[-1]
    layers = [compiled.describe(*pair) for pair in zip(ctx.layers, inners, strict=True)]
    held = [ctx.sums, ctx.states, ctx.cells, ctx.tanh_c, ctx.outputs]
    pointers = [None if each is None else each.data_ptr() for each in held]
    sizes = (devices, steps, windows, cells, gates // cells)
    return bindings.Recurrence(*sizes, kept, ctx.rests, *layers, *pointers)


def _inner(layer: Dense, sums: Tensor) -> Tensor | None:
    """Room for the narrow middle of a layer with factors: (K, T · B, R)."""
    if layer.a is None or layer.b is None:
        return None
    devices, steps, windows, _ = sums.shape
    return sums.new_zeros(devices, steps * windows, layer.a.shape[-2])


def _run(name: str, walk: bindings.Recurrence) -> None:
    function = getattr(native.load("recurrence"), name)
    run_parallel(walk.devices, lambda first, end: function(ctypes.byref(walk), first, end))
