"""The steps of a recurrent layer in torch: gates, cells, and the way back through time by hand.

The way back keeps the gates only and makes each weight's gradient as one product over all T · B
rows. ``compiled.recurrence`` computes the same with C kernels where it can.

Legend: K devices, B windows, T time steps, H cells, G gates · H, P width of the recurrent state r
with a projection; without one the state is the cells' output, of width H.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from pfl_lm.models import dense
from pfl_lm.models.dense import Dense


def cell_forward(sums: Tensor, c: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Gates' sums (K, B, G) and cells c (K, B, H) → cells, tanh(cells), output m (K, B, H).

    Three gates: the input gate is 1 − forget. ``sums`` is overwritten by the gates.
    """
    cells = c.shape[-1]
    sums[..., : -2 * cells].sigmoid_()
    *sigmoids, cell, out = sums.split(cells, -1)
    cell.tanh_()
    out.sigmoid_()
    if len(sigmoids) == 1:
        c = torch.lerp(cell, c, sigmoids[0])  # f c + (1 − f) g
    else:
        take, keep = sigmoids
        c = (keep * c).addcmul_(take, cell)
    tanh_c = torch.tanh(c)
    return c, tanh_c, out * tanh_c


def _cell_backward(
    gates: Tensor, before: Tensor, tanh_c: Tensor, dm: Tensor, dc: Tensor, d_sums: Tensor
) -> None:
    """One step back: writes the sums' gradient into ``d_sums``, the cells' over ``dc``.

    ``dm``, ``dc``: gradients by the output and by the cells after the step, (K, B, H).
    """
    cells = before.shape[-1]
    *sigmoids, cell, out = gates.split(cells, -1)
    *d_sigmoids, d_cell, d_out = d_sums.split(cells, -1)
    _through_sigmoid(dm * tanh_c, out, grad_input=d_out)
    dc.add_(_through_tanh(dm * out, tanh_c))
    keep = sigmoids[-1]
    if len(sigmoids) == 1:
        _through_sigmoid(dc * (before - cell), keep, grad_input=d_sigmoids[0])
        _through_tanh(dc - dc * keep, cell, grad_input=d_cell)
    else:
        take = sigmoids[0]
        _through_sigmoid(dc * cell, take, grad_input=d_sigmoids[0])
        _through_sigmoid(dc * before, keep, grad_input=d_sigmoids[1])
        _through_tanh(dc * take, cell, grad_input=d_cell)
    dc.mul_(keep)


def _through_sigmoid(gradient: Tensor, value: Tensor, grad_input: Tensor) -> None:
    torch.ops.aten.sigmoid_backward.grad_input(gradient, value, grad_input=grad_input)


def _through_tanh(gradient: Tensor, value: Tensor, grad_input: Tensor | None = None) -> Tensor:
    into = gradient if grad_input is None else grad_input
    gradients: Tensor = torch.ops.aten.tanh_backward.grad_input(gradient, value, grad_input=into)
    return gradients


class Recurrence(torch.autograd.Function):
    """The steps of one layer from a state; backward through time by hand.

    Gates are written over the sums that come in, which no other code needs. Three gates and a
    projection make a CIFG layer, four gates and none a plain one.
    """

    @staticmethod
    def forward(
        ctx: Any, sums: Tensor, r: Tensor, c: Tensor, *tensors: Any
    ) -> tuple[Tensor, Tensor]:
        recurrent = Dense(*tensors[:5])
        project = Dense(*tensors[5:]) if tensors[5] is not None else None
        kept = _Kept(sums, [r], [c], [], [], [], [])
        learns = any(ctx.needs_input_grad)  # or nothing need be kept
        for t in range(sums.shape[1]):
            now = sums[:, t]
            dense.add_times(now, r, recurrent.weight)
            inner = recurrent.add_factors(now, r)
            c, tanh_c, m = cell_forward(now, c)
            r, projected = (m, None) if project is None else project.forward(m)
            kept.states.append(r)
            if learns:
                kept.recurrent_inner.append(inner)
                kept.project_inner.append(projected)
                kept.outputs.append(m)
                kept.tanh_c.append(tanh_c)
                kept.cells.append(c)
        if learns:
            kept.cells.pop()  # goes out, and an output that its own graph keeps is never freed
        ctx.products, ctx.kept = (recurrent, project), kept
        return torch.stack(kept.states[1:], 1), c

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dr_all: Tensor, dc: Tensor) -> tuple[Tensor | None, ...]:
        (recurrent, project), kept = ctx.products, ctx.kept
        steps = dr_all.shape[1]
        d_sums = torch.empty_like(kept.sums)
        d_states, d_recurrent, d_project = [], [], []
        dr = torch.zeros_like(kept.states[0])
        dc = dc.clone()  # written over, step by step
        for t in reversed(range(steps)):
            dm = dr.add_(dr_all[:, t])
            if project is not None:
                d_states.append(dm)
                dm, inner = project.backward(dm)
                d_project.append(inner)
            _cell_backward(kept.sums[:, t], kept.cells[t], kept.tanh_c[t], dm, dc, d_sums[:, t])
            dr, inner = recurrent.backward(d_sums[:, t])
            d_recurrent.append(inner)
        needs = ctx.needs_input_grad[2:]
        gradients = recurrent.gradients(
            d_sums.flatten(1, 2),
            _rows(d_recurrent[::-1]),
            _rows(kept.states[:-1]),
            _rows(kept.recurrent_inner),
            needs[1:5],
        )
        if project is None:
            return (d_sums, dr, dc, *gradients, *(None,) * 6)
        states = _rows(d_states[::-1])
        assert states is not None
        return (
            d_sums,
            dr,
            dc,
            *gradients,
            None,
            *project.gradients(
                states,
                _rows(d_project[::-1]),
                _rows(kept.outputs),
                _rows(kept.project_inner),
                needs[6:10],
            ),
            None,
        )


class _Kept(NamedTuple):
    """What the backward pass of a recurrence needs; lists by step, each (K, B, ·)."""

    sums: Tensor  # (K, T, B, G): the gates
    states: list[Tensor]  # r before each step, and after the last
    cells: list[Tensor]  # c before each step; none of these lists but states, where nothing learns
    tanh_c: list[Tensor]  # tanh of c after each step
    outputs: list[Tensor]  # m, what a projection sees
    recurrent_inner: list[Tensor | None]
    project_inner: list[Tensor | None]


def _rows(steps: list[Tensor]) -> Tensor | None:
    """Stack steps (K, B, ·) to rows (K, T · B, ·); None where there is nothing to stack."""
    return None if steps[0] is None else torch.stack(steps, 1).flatten(1, 2)
