"""Training by forward passes alone: the error goes in again at the front, never backwards.

    1. a clean pass gives the error e of the output and its projection on the width of a word;
    2. a second pass reads the words with that projection of the error added; each dense layer
       moves by (its clean output − its modulated output) ⊗ its modulated input, at the words that
       have a target: not in the padding behind a text, where the two passes differ as well;
    3. the output rows move by their exact gradient, which needs no backward pass.

The clean outputs of step 2 are made again beside the modulated ones, so that of every layer only
the present inputs and outputs exist (MEMPEPITA: three forward passes, no activation kept). A
recurrent model is stepped word by word and keeps one state; a transformer takes window by window.

It is not the gradient, and need not lead where SGD leads; ``benchmarks/RESULTS.md`` says how far
it came. Each movement is local to a layer, so a payload that lacks a layer costs nothing there.

Legend: K devices, B windows of a batch, T target tokens of a window, P width of hidden vectors, D
width of a word's row, N rows of a device at a time, d payload coordinates.

Source: PEPITA, Dellaferrera and Kreiman 2022 (arXiv:2201.11665), algorithm 1; on language models
and with the outputs made again, Pau and Aymone 2024, "Forward learning of large language models by
consumer devices" (Electronics 13(2):402), section 3. There the error of all words is projected by
one random matrix; here by the output rows and then a random matrix, so that no (V, D) matrix of
random numbers lies on a phone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from pfl_lm.devices import output
from pfl_lm.devices.batches import Batch, Schedule
from pfl_lm.devices.tables import Table, slots_of
from pfl_lm.devices.task import Task
from pfl_lm.devices.trace import Trace
from pfl_lm.dp.encoding import norms
from pfl_lm.models import dense, recurrent, side_branch, transformer
from pfl_lm.models import quantised as low_bit
from pfl_lm.models.dense import Linear
from pfl_lm.models.models import ModelSpec, body_of, hidden, roles
from pfl_lm.streams import stream

Weights = dict[str, Tensor]


def train_forward_only(
    task: Task, windows: Sequence[np.ndarray], users: Sequence[int]
) -> tuple[Tensor, list[Trace]]:
    """Train each device by forward passes; arguments and results are those of ``train``."""
    require_layers(task.spec)
    step, values, training = _Step(task.in_few_bits()), task.values, task.training
    updates, traces = [], []
    for own, user in zip(windows, users, strict=True):
        trained = torch.from_numpy(values.copy()).unsqueeze(0)  # (1, d)
        loss, tokens, steps = 0.0, 0, 0
        for batch in Schedule([own], training, task.seed, task.round, [user]):
            candidates = step.objective.draw(steps)
            loss += step(trained, batch, training.learning_rate * training.decay**steps, candidates)
            tokens, steps = tokens + int(batch.weight.count_nonzero()), steps + 1
        update = trained[0].numpy() - values
        norm = float(norms(update[None])[0])
        updates.append(update)
        traces.append(Trace(user, loss / max(tokens, 1), tokens, steps, norm))
    return torch.from_numpy(np.stack(updates)), traces


def require_layers(spec: ModelSpec) -> None:
    """Refuse a model whose dense layers cannot be watched: one of the user's own."""
    if not (body_of(spec).steps_words or body_of(spec).in_blocks):
        raise ValueError('method = "forward_only" watches dense layers, which a module hides')


class _Step:
    """One local step of one device."""

    def __init__(self, task: Task) -> None:
        spec, parameters, payload = task.spec, task.parameters, task.payload
        training = task.training
        self.spec, self.parameters, self.payload = spec, parameters, payload
        self.objective = output.Objective(task)
        self.gradient_clip = training.gradient_clip
        rows = None if payload.rows is None else torch.from_numpy(payload.rows)
        self._slots = slots_of(rows, spec.vocabulary_size)
        self._roles = {n: role for n, role in roles(spec).items() if role.kind != "rows"}
        self._frozen = {name: parameters[name] for name in self._roles}
        self._bits = training.weight_bits
        shape = (spec.output_dim, spec.embedding_dim)
        draw = stream(task.seed, "error projection").standard_normal(shape, np.float32)
        scale = training.modulation / spec.output_dim**0.5
        self._projection = torch.from_numpy(draw) * scale  # (P, D)

    @torch.no_grad()
    def __call__(
        self, trained: Tensor, batch: Batch, rate: float, candidates: output.Candidates | None
    ) -> float:
        """Move ``trained`` (1, d) in place; return the batch's losses, summed over tokens."""
        moves = torch.zeros_like(trained)
        held, sums = self.payload.views(trained), self.payload.views(moves)
        embedding = Table(self.parameters, held, {}, "embedding", self._slots)
        weights = self._frozen | {
            name: low_bit.as_used(name, role, held[name], self._bits)
            for name, role in self._roles.items()
            if name in held
        }
        loss = 0.0
        for piece in self._pieces(batch):
            words = embedding.read(piece.inputs)  # (1, B, T, D)
            error = []
            for vectors, (targets, weight) in self._passes(weights, words, piece):
                part, gradient = self._output(vectors, targets, weight, held, sums, candidates)
                loss += float(part.sum())
                error.append(gradient @ self._projection)
            self._modulated(weights, words, self._joined(error, piece), piece.weight > 0, sums)
        if self.gradient_clip is not None:
            norm = torch.linalg.vector_norm(moves)
            moves.mul_((self.gradient_clip / norm).clamp_max(1.0))
        trained.sub_(moves, alpha=rate)
        return loss

    def _pieces(self, batch: Batch) -> Iterator[Batch]:
        """Yield what goes through the model at a time: a transformer's windows, one by one.

        They do not look at each other, so one window's activations are all that ever exist. A
        recurrent model takes them side by side, and holds one word's.
        """
        windows = batch.inputs.shape[1]
        width = 1 if body_of(self.spec).in_blocks else max(1, windows)
        for start in range(0, windows, width):
            yield Batch(*(part[:, start : start + width].contiguous() for part in batch))

    def _output(
        self,
        vectors: Tensor,
        targets: Tensor,
        weight: Tensor,
        held: Weights,
        sums: Weights,
        candidates: output.Candidates | None,
    ) -> tuple[Tensor, Tensor]:
        """Losses (1, N) and their gradient by the vectors; the output rows' joins ``sums``."""
        table = Table(self.parameters, held, sums, self.spec.output_table, self._slots)
        bias = None
        if self.spec.output_bias:
            bias = Table(self.parameters, held, sums, "output_bias", self._slots)
        return self.objective(vectors, targets, weight, table, bias, 1.0, candidates)

    def _passes(
        self, weights: Weights, embedded: Tensor, batch: Batch
    ) -> Iterator[tuple[Tensor, tuple[Tensor, Tensor]]]:
        """Yield hidden vectors (1, N, P) with targets and weights (1, N), a segment at a time."""
        if body_of(self.spec).in_blocks:
            vectors = hidden(self.spec, weights, embedded)
            yield vectors.flatten(1, 2), (batch.targets.flatten(1), batch.weight.flatten(1))
            return
        for t, vectors in enumerate(_words(self.spec, weights, embedded)):
            yield vectors, (batch.targets[:, :, t].contiguous(), batch.weight[:, :, t])

    def _joined(self, error: list[Tensor], batch: Batch) -> Tensor:
        """Lay the projected errors out as the words lie: (1, B, T, D)."""
        if body_of(self.spec).in_blocks:
            return error[0].view(*batch.inputs.shape, -1)
        return torch.stack(error, 2)

    def _modulated(
        self, weights: Weights, embedded: Tensor, error: Tensor, has_target: Tensor, sums: Weights
    ) -> None:
        """Run clean and modulated words side by side; add what each dense layer moves by.

        Args:
            embedded, error: (1, B, T, D).
            has_target: bool (1, B, T); the other words, padding mostly, move nothing.
        """
        both = torch.cat([embedded, embedded + error], 1)  # (1, 2B, T, D)
        apply = dense.by_name(weights, self.spec.lora)

        def watch(counts: Tensor) -> Linear:  # bool (1, N, 1), of the rows that a layer sees
            def watched(name: str, x: Tensor) -> Tensor:
                y = apply(name, x)
                layer = dense.layer(weights, name, self.spec.lora)
                half = x.shape[1] // 2
                difference = (y[:, :half] - y[:, half:]) * counts
                _add_moves(layer, name, difference, x[:, half:], sums)
                return y

            return watched

        if body_of(self.spec).in_blocks:
            seen = has_target.flatten(1).unsqueeze(-1)
            transformer.hidden(self.spec, weights, both, watch(seen))
        else:
            for _ in _words(self.spec, weights, both, [watch(t) for t in has_target.split(1, 2)]):
                pass


def _words(
    spec: ModelSpec,
    weights: Weights,
    embedded: Tensor,
    linear: Sequence[Linear] | None = None,
) -> Iterator[Tensor]:
    """Step a recurrent model over windows (1, B, T, D), yielding vectors (1, B, P).

    Args:
        linear: how each word's dense layers are applied, if in another way than usual.
    """
    state = recurrent.zero_state(spec, 1, embedded.shape[1], embedded)
    for t in range(embedded.shape[2]):
        word = embedded[:, :, t]
        applied = None if linear is None else linear[t]
        vectors, state = recurrent.step(spec, weights, word, state, applied)
        yield side_branch.add(spec, weights, vectors, word)


def _add_moves(layer: dense.Dense, name: str, difference: Tensor, x: Tensor, sums: Weights) -> None:
    """Add difference ⊗ input to those of a layer's tensors that travel.

    LoRA's factors move as the chain rule has it within the layer, which is local too.
    """
    names = (name, f"{name}_bias", f"{name}.lora_a", f"{name}.lora_b")
    needs = [travels in sums for travels in names]
    if not any(needs):
        return
    inner = None if layer.a is None else dense.times(x, layer.a).mul_(layer.scale)
    gradients = layer.gradients(difference, layer.inner_gradient(difference), x, inner, needs)
    for travels, move in zip(names, gradients, strict=True):
        if move is not None and travels in sums:
            sums[travels].add_(move)
