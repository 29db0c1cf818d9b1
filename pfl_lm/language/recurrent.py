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
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from pfl_lm.language import dense
from pfl_lm.language.dense import Dense
from pfl_lm.language.spec import ModelSpec, Role

State = tuple[Tensor, ...]  # of one layer: (K, B, P or H), (K, B, H)

GATES = {"cifg_lstm": 3, "lstm": 4}  # order: forget, cell, output; input, forget, cell, output


def roles(spec: ModelSpec) -> dict[str, Role]:
    """Name the parameters between embedding and output, in order, with their shapes."""
    found: dict[str, Role] = {}
    coupled = spec.kind == "cifg_lstm"
    gates, width = GATES[spec.kind] * spec.hidden_dim, spec.embedding_dim
    for number in range(spec.layers):
        state = spec.output_dim if coupled else spec.hidden_dim
        found[f"layer{number}.input"] = Role("dense", (gates, width))
        found[f"layer{number}.input_bias"] = Role("bias", (gates,))
        found[f"layer{number}.recurrent"] = Role("dense", (gates, state))
        if coupled:
            found[f"layer{number}.projection"] = Role("dense", (state, spec.hidden_dim))
        width = state
    if not coupled:
        found["projection"] = Role("dense", (spec.output_dim, spec.hidden_dim))
        found["projection_bias"] = Role("bias", (spec.output_dim,))
    return found


def hidden(spec: ModelSpec, weights: Mapping[str, Tensor], embedded: Tensor) -> Tensor:
    """Run the layers over windows from a zero state: (K, B, T, D) → (K, B, T, P)."""
    devices, windows, steps, _ = embedded.shape
    x = embedded.transpose(1, 2)  # (K, T, B, D): a step of time is one slice
    for number in range(spec.layers):
        x = _layer(spec, weights, number, x)
    if spec.kind == "lstm":
        rows = x.reshape(devices, steps * windows, -1)
        x = dense.apply(rows, dense.layer(weights, "projection", spec.lora))
    return x.reshape(devices, steps, windows, -1).transpose(1, 2)


def zero_state(
    spec: ModelSpec, devices: int, windows: int, dtype: torch.dtype = torch.float32
) -> list[State]:
    """Return each layer's state (r, c) before the first word: (K, B, P or H), (K, B, H)."""
    state = spec.output_dim if spec.kind == "cifg_lstm" else spec.hidden_dim
    widths = (state, spec.hidden_dim)
    return [
        tuple(torch.zeros(devices, windows, width, dtype=dtype) for width in widths)
        for _ in range(spec.layers)
    ]


def step(
    spec: ModelSpec,
    weights: Mapping[str, Tensor],
    embedded: Tensor,
    state: Sequence[State],
) -> tuple[Tensor, list[State]]:
    """Advance one word, as a keyboard does: (K, B, D) and the state → (K, B, P) and the next."""
    x = embedded
    after: list[State] = []
    for number, (r, c) in enumerate(state):
        name = f"layer{number}"
        z = dense.apply(x, dense.layer(weights, f"{name}.input", spec.lora))
        z = z + dense.apply(r, dense.layer(weights, f"{name}.recurrent", spec.lora))
        _, c, _, m = _cell_forward(z, c)
        x = m
        if spec.kind == "cifg_lstm":
            x = dense.apply(m, dense.layer(weights, f"{name}.projection", spec.lora))
        after.append((x, c))
    if spec.kind == "lstm":
        x = dense.apply(x, dense.layer(weights, "projection", spec.lora))
    return x, after


def _layer(spec: ModelSpec, weights: Mapping[str, Tensor], number: int, x: Tensor) -> Tensor:
    """One layer over x (K, T, B, ·) → (K, T, B, P or H)."""
    devices, steps, windows, _ = x.shape
    name = f"layer{number}"
    rows = x.reshape(devices, steps * windows, -1)
    z = dense.apply(rows, dense.layer(weights, f"{name}.input", spec.lora))
    z = z.view(devices, steps, windows, -1)
    recurrent = dense.layer(weights, f"{name}.recurrent", spec.lora)
    projection = Dense(x)  # unused by a plain LSTM
    if spec.kind == "cifg_lstm":
        projection = dense.layer(weights, f"{name}.projection", spec.lora)
    coupled = spec.kind == "cifg_lstm"
    out: Tensor = _Recurrence.apply(
        coupled,
        recurrent.scale,
        z,
        recurrent.weight,
        recurrent.a,
        recurrent.b,
        projection.weight if coupled else None,
        projection.a,
        projection.b,
    )
    return out


def _cell_forward(z: Tensor, c: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gates' sums z (K, B, G) and cells c (K, B, H) → gates, cells, tanh(cells), output m.

    Three gates: the input gate is 1 − forget. ``z`` is overwritten by the gates.
    """
    cells = c.shape[-1]
    *sigmoids, cell, out = z.split(cells, -1)
    for gate in (*sigmoids, out):
        gate.sigmoid_()
    cell.tanh_()
    if len(sigmoids) == 1:
        c = torch.lerp(cell, c, sigmoids[0])  # f c + (1 − f) g
    else:
        take, keep = sigmoids
        c = torch.addcmul(keep * c, take, cell)
    bent = torch.tanh(c)
    return z, c, bent, out * bent


def _cell_backward(
    gates: Tensor, before: Tensor, bent: Tensor, dm: Tensor, dc: Tensor, dz: Tensor
) -> Tensor:
    """Gradient of one step: writes dz (K, B, G), returns the gradient of the cells before it.

    ``dm``, ``dc``: gradients of the output and of the cells after the step, (K, B, H).
    """
    cells = before.shape[-1]
    *sigmoids, cell, out = gates.split(cells, -1)
    *d_sigmoids, d_cell, d_out = dz.split(cells, -1)
    dc = dc + dm * out * (1 - bent * bent)
    d_out.copy_(dm * bent * (out * (1 - out)))
    keep = sigmoids[-1]
    if len(sigmoids) == 1:
        d_sigmoids[0].copy_(dc * (before - cell) * (keep * (1 - keep)))
        take = 1 - keep
    else:
        take = sigmoids[0]
        d_sigmoids[0].copy_(dc * cell * (take * (1 - take)))
        d_sigmoids[1].copy_(dc * before * (keep * (1 - keep)))
    d_cell.copy_(dc * take * (1 - cell * cell))
    return dc * keep


class _Factored:
    """A product inside the recurrence: W and, if there are factors, B A beside it.

    Remembers x Aᵀ of every step, which the factors' gradients need.
    """

    def __init__(self, weight: Tensor, a: Tensor | None, b: Tensor | None, scale: float) -> None:
        self.weight, self.a, self.b, self.scale = weight, a, b, scale
        self.inner: list[Tensor] = []  # T × (K, B, R), scale · x Aᵀ

    def forward(self, x: Tensor) -> Tensor:
        y = dense.times(x, self.weight)
        if self.a is None or self.b is None:
            return y
        self.inner.append(dense.times(x, self.a).mul_(self.scale))
        return y.add_(dense.times(self.inner[-1], self.b))

    def backward(self, dy: Tensor) -> Tensor:
        dx = dense.times_back(dy, self.weight)
        if self.a is None or self.b is None:
            return dx
        return dx.add_(dense.times_back(self._inner_gradient(dy), self.a))

    def gradients(self, dy: Tensor, x: Tensor, needs: tuple[bool, ...]) -> list[Tensor | None]:
        """Gradients of W, A, B from all steps' dy (K, T·B, O) and x (K, T·B, I)."""
        found: list[Tensor | None] = [None, None, None]
        if needs[0]:
            found[0] = dense.weight_gradient(dy, x, self.weight)
        if self.a is not None and needs[1]:
            found[1] = dense.weight_gradient(self._inner_gradient(dy), x, self.a)
        if self.b is not None and needs[2]:
            inner = torch.stack(self.inner, 1).flatten(1, 2)  # (K, T·B, R)
            found[2] = dense.weight_gradient(dy, inner, self.b)
        return found

    def _inner_gradient(self, dy: Tensor) -> Tensor:
        assert self.b is not None
        return dense.times_back(dy, self.b).mul_(self.scale)


class _Recurrence(torch.autograd.Function):
    """The steps of one layer from a zero state; backward through time by hand."""

    @staticmethod
    def forward(ctx: Any, coupled: bool, scale: float, z: Tensor, *tensors: Any) -> Tensor:
        weight, a, b, projection, projection_a, projection_b = tensors
        recurrent = _Factored(weight, a, b, scale)
        project = _Factored(projection, projection_a, projection_b, scale) if coupled else None
        devices, steps, windows, gates = z.shape
        c = z.new_zeros(devices, windows, gates // (3 if coupled else 4))
        r = z.new_zeros(devices, windows, weight.shape[-1])
        states, cells, opened, bents, outputs = [r], [c], [], [], []
        for t in range(steps):
            sums = recurrent.forward(r).add_(z[:, t])
            gate, c, bent, m = _cell_forward(sums, c)
            r = m if project is None else project.forward(m)
            opened.append(gate)
            bents.append(bent)
            cells.append(c)
            outputs.append(m)
            states.append(r)
        ctx.products = (recurrent, project)
        ctx.kept = (states[:-1], cells[:-1], opened, bents, outputs if coupled else [])
        return torch.stack(states[1:], 1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dr_all: Tensor) -> tuple[Tensor | None, ...]:
        recurrent, project = ctx.products
        states, cells, opened, bents, outputs = ctx.kept
        devices, steps, windows, width = dr_all.shape
        dz = dr_all.new_empty(devices, steps, windows, opened[0].shape[-1])
        drs = dr_all.new_empty(dr_all.shape) if project is not None else dr_all
        dr = dr_all.new_zeros(devices, windows, width)
        dc = torch.zeros_like(cells[0])
        for t in reversed(range(steps)):
            dm = dr + dr_all[:, t]
            if project is not None:
                drs[:, t] = dm
                dm = project.backward(dm)
            dc = _cell_backward(opened[t], cells[t], bents[t], dm, dc, dz[:, t])
            dr = recurrent.backward(dz[:, t])
        needs = ctx.needs_input_grad
        before = torch.stack(states, 1).flatten(1, 2)  # (K, T·B, width)
        found = recurrent.gradients(dz.flatten(1, 2), before, needs[3:6])
        if project is None:
            return (None, None, dz, *found, None, None, None)
        m = torch.stack(outputs, 1).flatten(1, 2)  # (K, T·B, H)
        return (None, None, dz, *found, *project.gradients(drs.flatten(1, 2), m, needs[6:9]))
