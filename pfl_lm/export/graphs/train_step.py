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

from pfl_lm.devices.local_losses import LOSSES
from pfl_lm.devices.local_training import LocalTraining
from pfl_lm.devices.training import UNK
from pfl_lm.export import forward
from pfl_lm.export.signature import ExportGraph, Signature, TensorSpec
from pfl_lm.models.models import ModelSpec, roles
from pfl_lm.payload.layout import Payload
from pfl_lm.text.tokenizer import Tokenizer

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
) -> ExportGraph:
    """Trace loss and gradient of the payload for one batch of a device.

    Inputs: ``values`` float32[d]; ``windows`` int32[B, T + 1], padded at the end with 0;
    ``slots`` int32[V], each word's place among the payload's rows, −1 outside, if it has some
    rows; ``candidates`` int32[C] and ``log_weight`` float32[C], unless the loss is the exact
    softmax; with some rows also ``inclusion`` float32[C], or for NCE ``counts`` float32[C] and
    ``log_noise`` float32[V]; and ``frozen_…`` for each parameter that the payload does not hold
    whole, dots as underscores.

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
    forward.check_reads_all(spec)
    step = _Objective(spec, payload, training, lookup)
    d = TensorSpec("values", "float32", (payload.dim,))
    others = step.inputs(windows)
    start = {tensor.name: np.zeros(tensor.shape, tensor.dtype) for tensor in (d, *others)}
    start["windows"][:] = Tokenizer.eos_id  # a batch with targets: the loss of none is 0 / 0
    return gradient_graph("train_step", step.loss, d, others, start)


def gradient_graph(
    name: str,
    loss: Loss,
    values: TensorSpec,
    others: Sequence[TensorSpec],
    start: Mapping[str, np.ndarray],
) -> ExportGraph:
    """Trace ``loss(values, *others)``, a scalar, and its gradient by ``values`` into one graph."""
    from torch._decomp import core_aten_decompositions
    from torch.fx.experimental.proxy_tensor import make_fx

    def both(flat: Tensor, *rest: Tensor) -> tuple[Tensor, Tensor]:
        gradient, value = torch.func.grad_and_value(loss)(flat, *rest)
        return value.reshape(1), gradient

    tensors = (values, *others)
    examples = [torch.from_numpy(start[tensor.name]) for tensor in tensors]
    traced = make_fx(both, decomposition_table=dict(core_aten_decompositions()))(*examples)
    outputs = (TensorSpec("loss", "float32", (1,)), TensorSpec("gradient", "float32", values.shape))
    return ExportGraph(name, _Traced(traced), Signature(tensors, outputs), dict(start))


class _Traced(nn.Module):
    """A traced function as a module whose outputs are a tuple."""

    def __init__(self, traced: nn.Module) -> None:
        super().__init__()
        self.traced = traced

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        return tuple(self.traced(*inputs))


@dataclass(frozen=True)
class _WordTable:
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

    def read_weighted(self, words: Tensor, share: Tensor | None) -> Tensor:
        """The same, with ``share`` (n,) of the gradient; None: all of it.

        In value row + share · (row − row), in derivative share: autograd sees the first and the
        last row as constants.
        """
        rows = self.read(words)
        if share is None or self.held is None:
            return rows
        constant = rows.detach()
        return constant + share.reshape(-1, *(1,) * (rows.dim() - 1)) * (rows - constant)

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


class _Objective:
    """The simulator's objective in ordinary operations; see ``devices/output.py``."""

    def __init__(
        self, spec: ModelSpec, payload: Payload, training: LocalTraining, lookup: Lookup
    ) -> None:
        self.spec, self.payload, self.training, self.lookup = spec, payload, training, lookup
        self.some = payload.some_rows
        loss = LOSSES[training.loss]
        self.weighted, self.exact = loss.weighted, loss.exact(self.some)
        held = {segment.name for segment in payload.segments if segment.rows is None}
        self.frozen = [name for name in roles(spec) if name not in held]
        words = (
            len(payload.rows) if self.some and payload.rows is not None else spec.vocabulary_size
        )
        self.candidates = loss.scored(words, training.negatives)
        if not self.exact and training.loss not in _CONTRASTS:
            raise ValueError(
                f"training.loss = {training.loss!r} has no graph of local training: add its "
                "arithmetic to _CONTRASTS of export/graphs/train_step.py"
            )

    def inputs(self, windows: int) -> tuple[TensorSpec, ...]:
        spec, count = self.spec, self.candidates
        specs = [TensorSpec("windows", "int32", (windows, self.training.window + 1))]
        if self.some:
            specs.append(TensorSpec("slots", "int32", (spec.vocabulary_size,)))
        if not self.exact:
            specs.append(TensorSpec("candidates", "int32", (count,)))
            specs.append(TensorSpec("log_weight", "float32", (count,)))
        if self.some and self.weighted:
            specs.append(TensorSpec("inclusion", "float32", (count,)))
        if not self.weighted:
            specs.append(TensorSpec("counts", "float32", (count,)))
            specs.append(TensorSpec("log_noise", "float32", (spec.vocabulary_size,)))
        shapes = roles(spec)
        for name in self.frozen:
            specs.append(
                TensorSpec(f"frozen_{name.replace('.', '_')}", "float32", shapes[name].shape)
            )
        self.names = [tensor.name for tensor in specs]
        return tuple(specs)

    def loss(self, values: Tensor, *others: Tensor) -> Tensor:
        given = dict(zip(self.names, others, strict=True))
        held = self.payload.views(values)
        whole = {s.name: held[s.name] for s in self.payload.segments if s.rows is None}
        weights = {n: given[f"frozen_{n.replace('.', '_')}"] for n in self.frozen} | whole
        tables = self._tables(held, given)
        inputs, targets, weight = self._batch(given)
        embedded = tables["embedding"].read(inputs.reshape(-1)).reshape(*inputs.shape, -1)
        linear = forward.linear_of(weights, self.spec.lora)
        weights |= forward.turns(self.spec)
        vectors = forward.over_windows(self.spec, linear, weights, embedded).flatten(0, 1)
        if self.exact:
            losses = self._softmax(vectors, targets, tables)
        else:
            losses = self._contrast(vectors, targets, tables, given)
        return (losses * weight).sum()

    def _tables(
        self, held: Mapping[str, Tensor], given: Mapping[str, Tensor]
    ) -> dict[str, _WordTable]:
        names = ["embedding", self.spec.output_table]
        names += ["output_bias"] if self.spec.output_bias else []
        slots = given.get("slots")
        return {
            name: _WordTable(held.get(name), given.get(f"frozen_{name}"), slots, self.lookup)
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

    def _own(self, vectors: Tensor, targets: Tensor, tables: Mapping[str, _WordTable]) -> Tensor:
        own = (vectors * tables[self.spec.output_table].read(targets)).sum(-1)
        return own + tables["output_bias"].read(targets) if self.spec.output_bias else own

    def _softmax(
        self, vectors: Tensor, targets: Tensor, tables: Mapping[str, _WordTable]
    ) -> Tensor:
        bias = tables["output_bias"].whole() if self.spec.output_bias else None
        scores = F.linear(vectors, tables[self.spec.output_table].whole(), bias)  # (N, V)
        return _log_sum(scores) - self._own(vectors, targets, tables)

    def _contrast(
        self,
        vectors: Tensor,
        targets: Tensor,
        tables: Mapping[str, _WordTable],
        given: Mapping[str, Tensor],
    ) -> Tensor:
        words, share = given["candidates"], given.get("inclusion")
        rows = tables[self.spec.output_table].read_weighted(words, share)
        bias = None
        if self.spec.output_bias:
            bias = tables["output_bias"].read_weighted(words, share)
        scores = F.linear(vectors, rows, bias)  # (N, C)
        own = self._own(vectors, targets, tables)
        return _CONTRASTS[self.training.loss](own, targets, scores, given)


def _sampled(own: Tensor, targets: Tensor, scores: Tensor, given: Mapping[str, Tensor]) -> Tensor:
    """The softmax over the target and the candidates that are not the target."""
    hits = targets[:, None] == given["candidates"][None, :]
    scores = torch.where(hits, FAR, scores + given["log_weight"])
    return _log_sum(torch.cat([own[:, None], scores], 1)) - own


def _nce(own: Tensor, targets: Tensor, scores: Tensor, given: Mapping[str, Tensor]) -> Tensor:
    """Tell the target from noise; a target outside the noise's support takes no part."""
    log_noise = given["log_noise"][targets.to(torch.int64)]
    part = log_noise > FAR
    margin = torch.where(part, own - torch.where(part, log_noise, 0.0), 0.0)
    taken = torch.where(part, _softplus(-margin), 0.0)
    return taken + _softplus(scores - given["log_weight"]) @ given["counts"]


_CONTRASTS = {"softmax": _sampled, "sampled": _sampled, "nce": _nce}


def _softplus(x: Tensor) -> Tensor:
    return x.clamp_min(0) + torch.log1p(torch.exp(-x.abs()))


def _log_sum(scores: Tensor) -> Tensor:
    """log Σ exp over the last axis, in operations that every runtime has."""
    top = scores.detach().amax(-1, keepdim=True)
    return (scores - top).exp().sum(-1).log() + top.squeeze(-1)
