"""Recurrent models for K devices at once: CIFG-LSTM with recurrent projection, and plain LSTM.

Input projections of all time steps are one product; the recurrence has a hand-written backward
pass that keeps the gates only and makes each weight's gradient as one product over all T · B rows.

Legend: K devices, B windows, T time steps, D input width, H cells, G gates · H, P output width
(and width of the recurrent state r of a CIFG layer; a plain LSTM's state is its output, width H).

Source: coupled input-forget gate, Greff et al. 2017 (arXiv:1503.04069), section 3; recurrent
projection, Sak et al. 2014 (arXiv:1402.1128), equations 7 to 12 without peepholes; both in the
keyboard model of Hard et al. 2018 (arXiv:1811.03604), section 3.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from pfl_lm.models import dense
from pfl_lm.models.body import Body
from pfl_lm.models.compiled import recurrence
from pfl_lm.models.dense import Dense, Linear
from pfl_lm.models.spec import ModelSpec, Role

State = tuple[Tensor, ...]  # of one layer: (K, B, P or H), (K, B, H)


class Form(NamedTuple):
    """How a recurrent family is built.

    Attributes:
        gates: 3, in the order forget, cell, output; or 4: input, forget, cell, output.
        projected: the recurrence goes through the projection, not over the cells' output.
    """

    gates: int
    projected: bool


FORMS = {"cifg_lstm": Form(3, True), "lstm": Form(4, False)}


def form(spec: ModelSpec) -> Form:
    """Return how the recurrent model of a spec is built.

    Raises:
        ValueError: the model is not recurrent.
    """
    if spec.kind not in FORMS:
        raise ValueError(
            f"model kind = {spec.kind!r}: this way of training walks word by word, as only "
            "recurrent models of pfl_lm can; use backpropagation without segments"
        )
    return FORMS[spec.kind]


def state_dim(spec: ModelSpec) -> int:
    """Return the width of the state r that a layer hands to its next step."""
    return spec.output_dim if form(spec).projected else spec.hidden_dim


def roles(spec: ModelSpec) -> dict[str, Role]:
    """Name the parameters between embedding and output, in order, with their shapes."""
    named: dict[str, Role] = {}
    projected, state = form(spec).projected, state_dim(spec)
    gates, width = form(spec).gates * spec.hidden_dim, spec.embedding_dim
    for number in range(spec.layers):
        named[f"layer{number}.input"] = Role("dense", (gates, width))
        named[f"layer{number}.input_bias"] = Role("bias", (gates,))
        named[f"layer{number}.recurrent"] = Role("dense", (gates, state))
        if projected:
            named[f"layer{number}.projection"] = Role("dense", (state, spec.hidden_dim))
        width = state
    if not projected:
        named["projection"] = Role("dense", (spec.output_dim, spec.hidden_dim))
        named["projection_bias"] = Role("bias", (spec.output_dim,))
    return named


def hidden(spec: ModelSpec, weights: Mapping[str, Tensor], embedded: Tensor) -> Tensor:
    """Run the layers over windows from a zero state: (K, B, T, D) → (K, B, T, P)."""
    devices, windows, *_ = embedded.shape
    state = zero_state(spec, devices, windows, embedded)
    return hidden_from(spec, weights, embedded, state)[0]


def hidden_from(
    spec: ModelSpec,
    weights: Mapping[str, Tensor],
    embedded: Tensor,
    state: Sequence[State],
) -> tuple[Tensor, list[State]]:
    """Run the layers over a segment of windows from a state; return the state after it, too.

    Differentiable in the state, so that a long window can be taken a segment at a time.
    """
    devices, windows, steps, _ = embedded.shape
    x = embedded.transpose(1, 2)  # (K, T, B, D): a step of time is one slice
    after: list[State] = []
    for number in range(spec.layers):
        x, c = _layer(spec, weights, number, x, state[number])
        after.append((x[:, -1], c))
    if not form(spec).projected:
        rows = x.reshape(devices, steps * windows, -1)
        x = dense.apply(rows, dense.layer(weights, "projection", spec.lora))
    return x.reshape(devices, steps, windows, -1).transpose(1, 2), after


def zero_state(spec: ModelSpec, devices: int, windows: int, like: Tensor) -> list[State]:
    """Return each layer's state (r, c) before the first word: (K, B, P or H), (K, B, H).

    Args:
        like: a tensor whose type the state has, on whose processor it lies.
    """
    widths = (state_dim(spec), spec.hidden_dim)
    return [
        tuple(like.new_zeros(devices, windows, width) for width in widths)
        for _ in range(spec.layers)
    ]


def step(
    spec: ModelSpec,
    weights: Mapping[str, Tensor],
    embedded: Tensor,
    state: Sequence[State],
    linear: Linear | None = None,
) -> tuple[Tensor, list[State]]:
    """Advance one word, as a keyboard does: (K, B, D) and the state → (K, B, P) and the next.

    Args:
        linear: how a dense layer is applied; a caller that watches the layers passes its own.
    """
    linear = linear or dense.by_name(weights, spec.lora)
    x = embedded
    after: list[State] = []
    for number, (r, c) in enumerate(state):
        name = f"layer{number}"
        z = linear(f"{name}.input", x) + linear(f"{name}.recurrent", r)
        c, _, m = _cell_forward(z, c)
        x = linear(f"{name}.projection", m) if form(spec).projected else m
        after.append((x, c))
    if not form(spec).projected:
        x = linear("projection", x)
    return x, after


def _layer(
    spec: ModelSpec, weights: Mapping[str, Tensor], number: int, x: Tensor, state: State
) -> tuple[Tensor, Tensor]:
    """One layer over x (K, T, B, ·) → (K, T, B, P or H) and the cells after it (K, B, H)."""
    devices, steps, windows, _ = x.shape
    name = f"layer{number}"
    rows = x.reshape(devices, steps * windows, -1)
    sums = dense.apply(rows, dense.layer(weights, f"{name}.input", spec.lora))
    sums = sums.view(devices, steps, windows, -1)
    recurrent = dense.layer(weights, f"{name}.recurrent", spec.lora)
    projection: tuple[Any, ...] = (None,) * 5
    if form(spec).projected:
        projection = dense.layer(weights, f"{name}.projection", spec.lora)
    compiled = recurrence.supports(sums, *state, recurrent, dense.Dense(*projection))
    walk = recurrence.Recurrence if compiled else _Recurrence
    out: tuple[Tensor, Tensor] = walk.apply(sums, *state, *recurrent, *projection)
    return out


def _cell_forward(sums: Tensor, c: Tensor) -> tuple[Tensor, Tensor, Tensor]:
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


class _Recurrence(torch.autograd.Function):
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
            c, tanh_c, m = _cell_forward(now, c)
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


class Recurrent(Body):
    """The recurrent families, as a model's body."""

    family = "recurrent"
    steps_words = True

    def roles(self, spec: ModelSpec) -> dict[str, Role]:
        return roles(spec)

    def hidden(self, spec: ModelSpec, weights: Mapping[str, Tensor], embedded: Tensor) -> Tensor:
        return hidden(spec, weights, embedded)

    def start_bias(self, spec: ModelSpec, name: str, shape: tuple[int, ...]) -> np.ndarray:
        """Zero, except that forget gates start open (bias 1), so that gradients flow at once.

        Source: Jozefowicz et al. 2015, "An empirical exploration of recurrent network
        architectures".
        """
        bias = np.zeros(shape)
        if name.endswith(".input_bias"):
            first = 0 if form(spec).projected else spec.hidden_dim
            bias[first : first + spec.hidden_dim] = 1.0
        return bias

    def inner_dim(self, spec: ModelSpec) -> int:
        return form(spec).gates * spec.hidden_dim

    def kept_dim(self, spec: ModelSpec) -> int:
        return 6 * spec.hidden_dim
