"""Local steps that hold fewer activations: a stretch of words, or a block, at a time.

    truncated   each stretch goes on from the state before it, and its gradient ends there
    recomputed  a first pass keeps what each stretch begins with and nothing else; then, from the
                last stretch to the first, activations are made again and the gradient passes on.
                The same gradient, for one more pass forward.

A recurrent model's stretches are words, its blocks are a transformer's.

Legend: A devices at work, B windows of a batch, T target tokens of a window, D width of a word's
row, P width of hidden vectors, d payload coordinates.

Source: Chen et al. 2016, "Training deep nets with sublinear memory cost" (arXiv:1604.06174);
through time, Gruslys et al. 2016 (arXiv:1606.03401); truncation, Williams and Peng 1990.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from pfl_lm.devices import output
from pfl_lm.devices.batches import Batch
from pfl_lm.devices.step import Held, Step
from pfl_lm.devices.task import Task
from pfl_lm.language import recurrent, residual, transformer
from pfl_lm.language.recurrent import State


def step_kind(task: Task) -> type[Step]:
    """Return how a local step is made: what it holds on to until its backward pass.

    Raises:
        ValueError: a model that cannot be taken apart so.
    """
    kind, activations = task.spec.kind, task.training.activations
    if activations == "kept":
        return Step
    if kind in ("cifg_lstm", "lstm"):
        return StretchStep
    if kind == "transformer" and activations == "recomputed":
        return BlockStep
    raise ValueError(
        f'activations = "{activations}" does not go with model kind = "{kind}"; use "kept"'
    )


class StretchStep(Step):
    """A step of a recurrent model, ``training.stretch`` words at a time."""

    in_place = False  # a later stretch reads what an earlier one would have written

    def __init__(self, task: Task) -> None:
        super().__init__(task)
        self.stretch = task.training.stretch
        self.truncated = task.training.activations == "truncated"

    def _add_gradient(
        self, batch: Batch, held: Held, rate: float, candidates: output.Candidates | None
    ) -> Tensor:
        """Add ``rate`` · gradient to ``held.sums``; return losses (A, B, T)."""
        loss = torch.zeros_like(batch.weight)
        pieces = list(self._cut(batch))
        starts = self._starts([piece for _, piece in pieces], held)
        passed: list[Tensor] = []  # the gradient by the state after a stretch
        for where, piece in pieces if self.truncated else reversed(pieces):
            start = [part for state in starts.pop() for part in state]
            for part in start:
                part.requires_grad_(not self.truncated)
            embedded = held.read(piece)
            weights = self.frozen | held.leaves
            vectors, after = recurrent.hidden_from(self.spec, weights, embedded, _paired(start))
            vectors = residual.add(self.spec, weights, vectors, embedded)
            loss[:, :, where], d_vectors = self._score(vectors, piece, held, rate, candidates)
            if self.truncated:
                starts.append([tuple(part.detach() for part in state) for state in after])
            flat = [part for state in after for part in state] if passed else []
            back = [] if self.truncated else start
            words = [embedded] if embedded.requires_grad else []
            found = torch.autograd.grad(
                [vectors, *flat],
                [*back, *held.leaves.values(), *words],
                [d_vectors, *passed],
                allow_unused=True,
            )
            passed = list(found[: len(back)])
            held.descend(piece, found[len(back) :], rate)
        return loss

    def _cut(self, batch: Batch) -> Iterator[tuple[slice, Batch]]:
        for first in range(0, batch.inputs.shape[2], self.stretch):
            where = slice(first, first + self.stretch)
            yield where, Batch(*(part[:, :, where].contiguous() for part in batch))

    @torch.no_grad()
    def _starts(self, pieces: Sequence[Batch], held: Held) -> list[list[State]]:
        """Return the states that stretches begin with; truncated, the first one's only."""
        devices, windows, _ = pieces[0].inputs.shape
        states = [recurrent.zero_state(self.spec, devices, windows)]
        for piece in [] if self.truncated else pieces[:-1]:
            embedded = held.embedding.read(piece.inputs)
            weights = self.frozen | held.leaves
            _, after = recurrent.hidden_from(self.spec, weights, embedded, states[-1])
            states.append([(r.clone(), c) for r, c in after])  # r is a part of all outputs
        return states


class BlockStep(Step):
    """A step of a transformer that keeps the inputs of its blocks and nothing of their insides."""

    in_place = False

    def _add_gradient(
        self, batch: Batch, held: Held, rate: float, candidates: output.Candidates | None
    ) -> Tensor:
        """Add ``rate`` · gradient to ``held.sums``; return losses (A, B, T)."""
        embedded = held.read(batch)
        weights = self.frozen | held.leaves
        stages = transformer.stages(self.spec, weights, embedded.shape)
        inputs = [embedded.detach()]
        with torch.no_grad():
            for stage in stages:
                inputs.append(stage(inputs[-1]))
            vectors = residual.add(self.spec, weights, inputs.pop(), inputs[0])
        loss, gradient = self._score(vectors, batch, held, rate, candidates)
        beside, found = self._beside(weights, embedded, held, gradient)
        held.descend(batch, found, rate)
        for stage in reversed(stages):
            x = inputs.pop().requires_grad_()
            leaves = list(held.leaves.values())
            gradient, *by_leaves = torch.autograd.grad(
                stage(x), [x, *leaves], gradient, allow_unused=True
            )
            held.descend(batch, by_leaves, rate)
        if embedded.requires_grad:
            held.embedding.add(batch.inputs, gradient + beside, rate)
        return loss

    def _beside(
        self, weights: dict[str, Tensor], embedded: Tensor, held: Held, gradient: Tensor
    ) -> tuple[Tensor, list[Tensor | None]]:
        """Return the light path's gradient by the embedded words, and by ``held.leaves``."""
        if not self.spec.residual:
            return torch.zeros_like(embedded), []
        x, leaves = embedded.detach().requires_grad_(), list(held.leaves.values())
        part = residual.add(self.spec, weights, torch.zeros_like(gradient), x)
        x_gradient, *found = torch.autograd.grad(part, [x, *leaves], gradient, allow_unused=True)
        return x_gradient, list(found)


def _paired(parts: list[Tensor]) -> list[State]:
    return [(parts[n], parts[n + 1]) for n in range(0, len(parts), 2)]
