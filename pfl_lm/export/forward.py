"""The models between their tables as plain differentiable functions of one device.

The simulator's own layers (``models/recurrent.py``, ``transformer.py``) run K devices with
gradients by hand, in place; a graph for a phone needs ordinary operations. Tests hold the two
equal. ``linear(name, x)`` applies the named dense layer, so that an exporter can give modules
which quantisers know, and training can give tensors.

Legend: B windows, T tokens, D width of an embedding row, H cells, P width of the output,
C context, h heads, e = D / h.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pfl_lm.models import recurrent
from pfl_lm.models.file import Model
from pfl_lm.models.models import body_of, roles
from pfl_lm.models.spec import LoraSpec, ModelSpec, Parameters

Linear = Callable[[str, Tensor], Tensor]
State = dict[str, Tensor]

AWAY = -1e4  # added to a score that must not count: far below any score, and exact in fp16
WIDTH = 32  # every toolchain's 4-bit groups, and most fast kernels, want multiples of it


def linear_of(weights: Mapping[str, Tensor], lora: LoraSpec | None) -> Linear:
    """Dense layers given as tensors, with their biases and LoRA factors."""

    def apply(name: str, x: Tensor) -> Tensor:
        y = F.linear(x, weights[name], weights.get(f"{name}_bias"))
        if lora is None or f"{name}.lora_a" not in weights:
            return y
        inner = F.linear(x, weights[f"{name}.lora_a"])
        return y + lora.scale * F.linear(inner, weights[f"{name}.lora_b"])

    return apply


def zero_state(spec: ModelSpec) -> State:
    """Return the state of one text before its first word."""
    state: State = {}
    if spec.module:
        raise ValueError(f"model module = {spec.module!r}: a module of your own is exported by you")
    if body_of(spec).in_blocks:
        for number in range(spec.layers):
            state[f"keys{number}"] = torch.zeros(spec.context, spec.embedding_dim)
            state[f"values{number}"] = torch.zeros(spec.context, spec.embedding_dim)
        return state | {"position": torch.zeros(1, dtype=torch.int32)}
    width = recurrent.state_dim(spec)
    for number in range(spec.layers):
        state[f"r{number}"] = torch.zeros(1, width)
        state[f"c{number}"] = torch.zeros(1, spec.hidden_dim)
    return state


def step(
    spec: ModelSpec, linear: Linear, weights: Mapping[str, Tensor], x: Tensor, state: State
) -> tuple[Tensor, State]:
    """Advance one word: embedded (B, D), for a transformer (1, D), and the state → (B, P), next.

    Args:
        weights: what is no dense layer: gains and biases of norms, positions.
    """
    if body_of(spec).in_blocks:
        vector, after = _transformer_step(spec, linear, weights, x, state)
    else:
        vector, after = _recurrent_step(spec, linear, x, state)
    return _with_side_branch(spec, linear, vector, x), after


def over_windows(
    spec: ModelSpec, linear: Linear, weights: Mapping[str, Tensor], embedded: Tensor
) -> Tensor:
    """Run whole windows from an empty state: (B, T, D) → (B, T, P)."""
    if body_of(spec).in_blocks:
        vectors = _transformer_windows(spec, linear, weights, embedded)
    else:
        vectors = _recurrent_windows(spec, linear, embedded)
    return _with_side_branch(spec, linear, vectors, embedded)


def check_reads_all(spec: ModelSpec) -> None:
    """Refuse a model of which the functions above would leave a parameter out.

    Raises:
        ValueError: naming the parameter.
    """
    tables = ("embedding", "output", "output_bias")
    sizes = {name: role.shape for name, role in roles(spec).items() if name not in tables}
    zeros = {name: torch.zeros(shape) for name, shape in sizes.items()} | turns(spec)
    word = torch.zeros(1, spec.embedding_dim)
    for way in ("word by word", "over windows"):
        weights = _Watched(zeros)
        linear = linear_of(weights, spec.lora)
        if way == "word by word":
            step(spec, linear, weights, word, zero_state(spec))
        else:
            over_windows(spec, linear, weights, word[None])
        if unread := set(sizes) - weights.read:
            raise ValueError(
                f"model parameter {min(unread)!r}: an exported graph would compute without it "
                f"({way}); this version cannot export a model that has it"
            )


class _Watched(dict[str, Tensor]):
    """Tensors by name, and which of them were read."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        super().__init__(tensors)
        self.read: set[str] = set()

    def __getitem__(self, name: str) -> Tensor:
        self.read.add(name)
        return super().__getitem__(name)

    def get(self, name: str, default: Any = None) -> Any:
        self.read.add(name)
        return super().get(name, default)


def _with_side_branch(spec: ModelSpec, linear: Linear, vectors: Tensor, embedded: Tensor) -> Tensor:
    """Add the part of ``models/side_branch`` for the present words (…, D) to vectors (…, P)."""
    if not spec.side_branch:
        return vectors
    narrow = torch.relu(linear("side_branch.down", embedded))
    return vectors + linear("side_branch.up", narrow)


def _recurrent_windows(spec: ModelSpec, linear: Linear, embedded: Tensor) -> Tensor:
    state = {name: zeros.expand(len(embedded), -1) for name, zeros in zero_state(spec).items()}
    vectors = []
    for t in range(embedded.shape[1]):
        x, state = _recurrent_step(spec, linear, embedded[:, t], state)
        vectors.append(x)
    return torch.stack(vectors, 1)


def _recurrent_step(
    spec: ModelSpec, linear: Linear, x: Tensor, state: State
) -> tuple[Tensor, State]:
    after: State = {}
    for number in range(spec.layers):
        r, c = state[f"r{number}"], state[f"c{number}"]
        z = linear(f"layer{number}.input", x) + linear(f"layer{number}.recurrent", r)
        *sigmoids, cell, out = z.split(spec.hidden_dim, -1)
        keep = torch.sigmoid(sigmoids[-1])
        take = torch.sigmoid(sigmoids[0]) if len(sigmoids) == 2 else 1 - keep
        c = keep * c + take * torch.tanh(cell)
        x = torch.sigmoid(out) * torch.tanh(c)
        if recurrent.form(spec).projected:
            x = linear(f"layer{number}.projection", x)
        after |= {f"r{number}": x, f"c{number}": c}
    return (x if recurrent.form(spec).projected else linear("projection", x)), after


def _transformer_step(
    spec: ModelSpec, linear: Linear, weights: Mapping[str, Tensor], x: Tensor, state: State
) -> tuple[Tensor, State]:
    position = state["position"]
    places = torch.arange(spec.context, dtype=torch.int32)
    here, ahead = places == position, places > position
    after: State = {"position": position + 1}
    if spec.positions == "learned":
        x = x + F.embedding(position, weights["positions"])

    def attend(number: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        if spec.positions == "rotary":
            q, k = _rotated(spec, weights, q, position), _rotated(spec, weights, k, position)
        keys = torch.where(here[:, None], k, state[f"keys{number}"])  # (C, D)
        values = torch.where(here[:, None], v, state[f"values{number}"])
        after.update({f"keys{number}": keys, f"values{number}": values})
        heads = (spec.heads, spec.embedding_dim // spec.heads)
        scores = q.view(heads[0], 1, heads[1]) @ keys.view(-1, *heads).permute(1, 2, 0)
        scores = scores * heads[1] ** -0.5 + ahead.to(q.dtype) * AWAY  # (h, 1, C)
        mixed = scores.softmax(-1) @ values.view(-1, *heads).permute(1, 0, 2)  # (h, 1, e)
        return mixed.reshape(1, -1)

    return _blocks(spec, linear, weights, x, attend), after


def _transformer_windows(
    spec: ModelSpec, linear: Linear, weights: Mapping[str, Tensor], embedded: Tensor
) -> Tensor:
    windows, length, width = embedded.shape
    heads = (spec.heads, width // spec.heads)
    ahead = torch.full((length, length), AWAY).triu(1)
    x, places = embedded, torch.arange(length, dtype=torch.int32)
    if spec.positions == "learned":
        x = x + weights["positions"][:length]

    def attend(number: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        if spec.positions == "rotary":
            q, k = _rotated(spec, weights, q, places), _rotated(spec, weights, k, places)
        q, k, v = (y.view(windows, length, *heads).transpose(1, 2) for y in (q, k, v))
        scores = q @ k.transpose(-1, -2) * heads[1] ** -0.5 + ahead  # (B, h, T, T)
        return (scores.softmax(-1) @ v).transpose(1, 2).reshape(windows, length, width)

    return _blocks(spec, linear, weights, x, attend)


def _blocks(
    spec: ModelSpec,
    linear: Linear,
    weights: Mapping[str, Tensor],
    x: Tensor,
    attend: Callable[[int, Tensor, Tensor, Tensor], Tensor],
) -> Tensor:
    def norm(name: str, y: Tensor) -> Tensor:
        return F.layer_norm(y, y.shape[-1:], weights[f"{name}_gain"], weights[f"{name}_bias"])

    for number in range(spec.layers):
        block = f"block{number}"
        q, k, v = linear(f"{block}.attention", norm(f"{block}.attention_norm", x)).chunk(3, -1)
        x = x + linear(f"{block}.attention_out", attend(number, q, k, v))
        inner = linear(f"{block}.feedforward_in", norm(f"{block}.feedforward_norm", x))
        inner = F.gelu(inner) if spec.activation == "gelu" else F.relu(inner)
        x = x + linear(f"{block}.feedforward_out", inner)
    return norm("final_norm", x)


def turns(spec: ModelSpec) -> dict[str, Tensor]:
    """Cosines and sines of rotary positions, (C, e / 2) each; nothing for learned ones."""
    if not body_of(spec).in_blocks or spec.positions != "rotary":
        return {}
    half = spec.embedding_dim // spec.heads // 2
    speeds = 10_000.0 ** (-torch.arange(half, dtype=torch.float32) / half)
    angles = torch.arange(spec.context, dtype=torch.float32)[:, None] * speeds
    return {"cosines": angles.cos(), "sines": angles.sin()}


def _rotated(spec: ModelSpec, weights: Mapping[str, Tensor], x: Tensor, places: Tensor) -> Tensor:
    """Turn each pair of coordinates of (…, T, D) by its position's angle."""
    cos, sin = (F.embedding(places, weights[name]).unsqueeze(1) for name in ("cosines", "sines"))
    each = spec.embedding_dim // spec.heads
    first, second = x.reshape(*x.shape[:-1], spec.heads, each).split(each // 2, -1)
    turned = torch.cat([first * cos - second * sin, first * sin + second * cos], -1)
    return turned.reshape(x.shape)


def padded(model: Model) -> Model:
    """Widen a recurrent model to multiples of 32 with zeros; it computes the same.

    A cell whose weights are all 0 stays 0; so does a value inside a side branch. A transformer's
    norms average over the width, so a transformer is left as it is.
    """
    spec, old = model.spec, model.parameters
    if body_of(spec).in_blocks:
        return model
    cells, rows, out = (_up(n) for n in (spec.hidden_dim, spec.embedding_dim, spec.output_dim))
    branch = _up(spec.side_branch)
    wide = replace(
        spec, hidden_dim=cells, embedding_dim=rows, projection_dim=0 if out == rows else out,
        side_branch=branch,
    )  # fmt: skip
    new: Parameters = {}
    for name, value in old.items():
        part = name.rsplit(".", 1)[-1]
        if part in ("input", "recurrent", "input_bias"):
            gates = value.view(-1, spec.hidden_dim, *value.shape[1:])  # pad within each gate
            value = _zeros_at_end(gates, 1, cells).flatten(0, 1)
        if value.dim() == 2:
            value = _zeros_at_end(value, 1, _up(value.shape[1]))
        if part in ("projection", "projection_bias", "up"):
            value = _zeros_at_end(value, 0, out)
        if part == "down":
            value = _zeros_at_end(value, 0, branch)
        new[name] = value.contiguous()
    return Model(wide, new, model.origin)


def _up(width: int) -> int:
    return math.ceil(width / WIDTH) * WIDTH


def _zeros_at_end(value: Tensor, axis: int, size: int) -> Tensor:
    missing = size - value.shape[axis]
    if not missing:
        return value
    shape = (*value.shape[:axis], missing, *value.shape[axis + 1 :])
    return torch.cat([value, value.new_zeros(shape)], axis)
