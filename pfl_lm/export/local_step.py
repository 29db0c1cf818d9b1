"""One step of local training as an ordinary graph: loss and gradient, forward and backward.

A phone's plain inference runtime can run it, so a device trains without a training framework.
Loss and payload are the simulator's (``devices/training.py``); the clip of the gradient and the
step down stay with the caller, see ``on_device.py``. The weights are inputs: the file is small,
holds nothing of the model, and is as good in the last round as in the first.

Legend: B windows, T predicted tokens of a window, N = B · T, V words, k rows of the payload,
C candidates, P width of the hidden vectors, d coordinates of the payload.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pfl_lm.devices.batches import LocalTraining
from pfl_lm.devices.training import UNK
from pfl_lm.export import trunk
from pfl_lm.export.ports import Graph, Interface, Port
from pfl_lm.language.models import ModelSpec, roles
from pfl_lm.language.tokenizer import Tokenizer
from pfl_lm.payload import Payload

Loss = Callable[..., Tensor]
Lookup = Literal["index", "one_hot"]
FAR = -1e30  # a score that takes no part; float32 only, so far that its exponential is 0


def train_step(
    spec: ModelSpec,
    payload: Payload,
    training: LocalTraining,
    windows: int,
    *,
    lookup: Lookup = "index",
) -> Graph:
    """Trace loss and gradient of the payload for one batch of a device.

    Inputs: ``values`` float32[d]; ``windows`` int32[B, T + 1], padded at the end with 0;
    ``slots`` int32[V], each word's place among the payload's rows, −1 outside, if it has some
    rows; ``candidates`` int32[C] and ``log_weight`` float32[C], for NCE also ``counts``
    float32[C] and ``log_noise`` float32[V], unless the loss is the exact softmax; and
    ``frozen_…`` for each parameter that the payload does not hold whole, dots as underscores.

    Outputs: ``loss`` float32[1], the mean over the batch's targets, and ``gradient`` float32[d].

    Args:
        payload: any round's payload of the plan: the graph depends on its layout, not its words.
        windows: B, how many windows a batch holds; fewer are padded.
        lookup: how rows are read and their gradients summed: by index, or as a product with
            one-hot rows where a runtime cannot scatter (LiteRT, Core ML).

    Raises:
        ValueError: devices of this training do not follow gradients.
    """
    if training.method != "backpropagation":
        raise ValueError(
            f'training method = "{training.method}": a train_step is a gradient; devices that '
            "train otherwise need predict alone"
        )
    step = _Step(spec, payload, training, lookup)
    d = Port("values", "float32", (payload.dim,))
    others = step.ports(windows)
    start = {port.name: np.zeros(port.shape, port.dtype) for port in (d, *others)}
    start["windows"][:] = Tokenizer.eos_id  # a batch with targets: the loss of none is 0 / 0
    return gradient_graph("train_step", step.loss, d, others, start)


def gradient_graph(
    name: str,
    loss: Loss,
    values: Port,
    others: Sequence[Port],
    start: Mapping[str, np.ndarray],
) -> Graph:
    """Trace ``loss(values, *others)``, a scalar, and its gradient by ``values`` into one graph."""
    from torch._decomp import core_aten_decompositions
    from torch.fx.experimental.proxy_tensor import make_fx

    def both(flat: Tensor, *rest: Tensor) -> tuple[Tensor, Tensor]:
        gradient, found = torch.func.grad_and_value(loss)(flat, *rest)
        return found.reshape(1), gradient

    ports = (values, *others)
    examples = [torch.from_numpy(start[port.name]) for port in ports]
    traced = make_fx(both, decomposition_table=dict(core_aten_decompositions()))(*examples)
    outputs = (Port("loss", "float32", (1,)), Port("gradient", "float32", values.shape))
    return Graph(name, _Traced(traced), Interface(ports, outputs), dict(start))


class _Traced(nn.Module):
    """A traced function as a module whose outputs are a tuple."""

    def __init__(self, traced: nn.Module) -> None:
        super().__init__()
        self.traced = traced

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        return tuple(self.traced(*inputs))


@dataclass(frozen=True)
class _Table:
    """A word table, or the output bias: the payload's rows, and the rest as it lies there."""

    held: Tensor | None  # (k, P) or (k,), (V, …) if all rows travel
    frozen: Tensor | None  # (V, P) or (V,)
    slots: Tensor | None  # int32 (V,)
    lookup: Lookup

    def read(self, words: Tensor) -> Tensor:
        """Rows of words (n,) → (n, P) or (n,)."""
        words = words.to(torch.int64)  # no runtime scatters by a narrower type
        if self.held is None:
            assert self.frozen is not None
            return self.frozen[words]
        if self.slots is None:
            return self._of_held(words)
        slot = self.slots[words].to(torch.int64)
        inside = (slot >= 0).reshape(-1, *(1,) * (self.held.dim() - 1))
        assert self.frozen is not None
        return torch.where(inside, self._of_held(slot.clamp_min(0)), self.frozen[words])

    def _of_held(self, place: Tensor) -> Tensor:
        assert self.held is not None
        if self.lookup == "index":
            return self.held[place]
        here = place[:, None] == torch.arange(len(self.held), dtype=place.dtype)
        return here.to(self.held.dtype) @ self.held

    def whole(self) -> Tensor:
        """The table of all words, where every row travels or none does."""
        table = self.frozen if self.held is None else self.held
        assert table is not None
        return table


class _Step:
    """The simulator's objective in ordinary operations; see ``devices/output.py``."""

    def __init__(
        self, spec: ModelSpec, payload: Payload, training: LocalTraining, lookup: Lookup
    ) -> None:
        self.spec, self.payload, self.training, self.lookup = spec, payload, training, lookup
        self.some = payload.rows is not None and len(payload.rows) > 0
        self.exact = training.loss == "softmax" and not self.some
        held = {segment.name for segment in payload.segments if segment.rows is None}
        self.frozen = [name for name in roles(spec) if name not in held]
        words = (
            len(payload.rows) if self.some and payload.rows is not None else spec.vocabulary_size
        )
        self.candidates = words if training.loss == "softmax" else min(training.negatives, words)

    def ports(self, windows: int) -> tuple[Port, ...]:
        spec, count = self.spec, self.candidates
        found = [Port("windows", "int32", (windows, self.training.window + 1))]
        if self.some:
            found.append(Port("slots", "int32", (spec.vocabulary_size,)))
        if not self.exact:
            found.append(Port("candidates", "int32", (count,)))
            found.append(Port("log_weight", "float32", (count,)))
        if self.training.loss == "nce":
            found.append(Port("counts", "float32", (count,)))
            found.append(Port("log_noise", "float32", (spec.vocabulary_size,)))
        shapes = roles(spec)
        for name in self.frozen:
            found.append(Port(f"frozen_{name.replace('.', '_')}", "float32", shapes[name].shape))
        self.names = [port.name for port in found]
        return tuple(found)

    def loss(self, values: Tensor, *others: Tensor) -> Tensor:
        given = dict(zip(self.names, others, strict=True))
        held = self.payload.views(values)
        whole = {s.name: held[s.name] for s in self.payload.segments if s.rows is None}
        weights = {n: given[f"frozen_{n.replace('.', '_')}"] for n in self.frozen} | whole
        tables = self._tables(held, given)
        inputs, targets, weight = self._batch(given)
        embedded = tables["embedding"].read(inputs.reshape(-1)).reshape(*inputs.shape, -1)
        linear = trunk.linear_of(weights, self.spec.lora)
        weights |= trunk.turns(self.spec)
        vectors = trunk.over_windows(self.spec, linear, weights, embedded).flatten(0, 1)
        if self.exact:
            losses = self._softmax(vectors, targets, tables)
        else:
            losses = self._contrast(vectors, targets, tables, given)
        return (losses * weight).sum()

    def _tables(self, held: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> dict[str, _Table]:
        names = ["embedding", self.spec.output_table]
        names += ["output_bias"] if self.spec.output_bias else []
        slots = given.get("slots")
        return {
            name: _Table(held.get(name), given.get(f"frozen_{name}"), slots, self.lookup)
            for name in names
        }

    def _batch(self, given: Mapping[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Return inputs (B, T), targets (N,) and each target's share in the loss (N,)."""
        words = given["windows"]
        inside = (given["slots"][words.to(torch.int64)] >= 0) if self.some else None
        if inside is not None and self.payload.outside == "unk":
            words = torch.where(inside | (words == Tokenizer.pad_id), words, UNK)
        targets = words[:, 1:].reshape(-1)
        valid = (targets != Tokenizer.pad_id).to(torch.float32)
        weight = valid / valid.sum().clamp_min(1)
        if inside is not None and self.payload.outside == "skip":
            weight = weight * inside[:, 1:].reshape(-1).to(torch.float32)
        return words[:, :-1], targets, weight

    def _own(self, vectors: Tensor, targets: Tensor, tables: Mapping[str, _Table]) -> Tensor:
        own = (vectors * tables[self.spec.output_table].read(targets)).sum(-1)
        return own + tables["output_bias"].read(targets) if self.spec.output_bias else own

    def _softmax(self, vectors: Tensor, targets: Tensor, tables: Mapping[str, _Table]) -> Tensor:
        bias = tables["output_bias"].whole() if self.spec.output_bias else None
        scores = F.linear(vectors, tables[self.spec.output_table].whole(), bias)  # (N, V)
        return _log_sum(scores) - self._own(vectors, targets, tables)

    def _contrast(
        self,
        vectors: Tensor,
        targets: Tensor,
        tables: Mapping[str, _Table],
        given: Mapping[str, Tensor],
    ) -> Tensor:
        words = given["candidates"]
        bias = tables["output_bias"].read(words) if self.spec.output_bias else None
        scores = F.linear(vectors, tables[self.spec.output_table].read(words), bias)  # (N, C)
        own = self._own(vectors, targets, tables)
        if self.training.loss == "nce":
            return _nce(own, given["log_noise"][targets.to(torch.int64)], scores, given)
        hits = targets[:, None] == words[None, :]
        scores = torch.where(hits, FAR, scores + given["log_weight"])
        return _log_sum(torch.cat([own[:, None], scores], 1)) - own


def _nce(own: Tensor, log_noise: Tensor, scores: Tensor, given: Mapping[str, Tensor]) -> Tensor:
    """Tell the target from noise; a target outside the noise's support takes no part."""
    part = log_noise > FAR
    margin = torch.where(part, own - torch.where(part, log_noise, 0.0), 0.0)
    taken = torch.where(part, _softplus(-margin), 0.0)
    return taken + _softplus(scores - given["log_weight"]) @ given["counts"]


def _softplus(x: Tensor) -> Tensor:
    return x.clamp_min(0) + torch.log1p(torch.exp(-x.abs()))


def _log_sum(scores: Tensor) -> Tensor:
    """log Σ exp over the last axis, in operations that every runtime has."""
    top = scores.detach().amax(-1, keepdim=True)
    return (scores - top).exp().sum(-1).log() + top.squeeze(-1)
