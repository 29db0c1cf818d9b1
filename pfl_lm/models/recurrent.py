"""Recurrent models for K devices at once: CIFG-LSTM with recurrent projection, and plain LSTM.

Input projections of all time steps are one product, and the steps are then walked (``recurrence``).

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
from torch import Tensor

from pfl_lm.models import dense
from pfl_lm.models.body import Body
from pfl_lm.models.compiled import recurrence as compiled
from pfl_lm.models.dense import Dense, Linear
from pfl_lm.models.recurrence import Recurrence, cell_forward
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
        c, _, m = cell_forward(z, c)
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
    fast = compiled.supports(sums, *state, recurrent, Dense(*projection))
    walk = compiled.Recurrence if fast else Recurrence
    out: tuple[Tensor, Tensor] = walk.apply(sums, *state, *recurrent, *projection)
    return out


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
