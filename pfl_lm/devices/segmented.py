"""Local steps that hold fewer activations: a segment of words, or a block, at a time.

    truncated   each segment goes on from the state before it, and its gradient ends there
    recomputed  a first pass keeps what each segment begins with and nothing else; then, from the
                last segment to the first, activations are made again and the gradient passes on.
                The same gradient, for one more pass forward.

A recurrent model's segments are words, its blocks are a transformer's.

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
from pfl_lm.devices.step import Step, StepTensors
from pfl_lm.devices.task import Task
from pfl_lm.models import recurrent, side_branch, transformer
from pfl_lm.models.models import ModelSpec, body_of
from pfl_lm.models.recurrent import State
from pfl_lm.models.slopes import along


def step_kind(spec: ModelSpec, activations: str) -> type[Step]:
    """Return how a local step is made: what it holds on to until its backward pass.

    Args:
        activations: see ``LocalTraining``.

    Raises:
        ValueError: a model that cannot be taken apart so.
    """
    body = body_of(spec)
    if activations == "kept":
        return Step
    if body.steps_words:
        return SegmentStep
    if body.in_blocks and activations == "recomputed":
        return BlockStep
    raise ValueError(
        f'activations = "{activations}" does not go with model kind = "{spec.kind}"; use "kept"'
    )


class SegmentStep(Step):
    """A step of a recurrent model, ``training.segment_length`` words at a time."""

    in_place = False  # a later segment reads what an earlier one would have written

    def __init__(self, task: Task) -> None:
        super().__init__(task)
        self.segment_length = task.training.segment_length
        self.truncated = task.training.activations == "truncated"

    def _add_gradient(
        self, batch: Batch, tensors: StepTensors, rate: float, candidates: output.Candidates | None
    ) -> Tensor:
        """Add ``rate`` · gradient to ``tensors.sums``; return losses (A, B, T)."""
        loss = torch.zeros_like(batch.weight)
        pieces = list(self._cut(batch))
        starts = self._starts([piece for _, piece in pieces], tensors)
        passed: list[Tensor] = []  # the gradient by the state after a segment
        for where, piece in pieces if self.truncated else reversed(pieces):
            start = [part for state in starts.pop() for part in state]
            for part in start:
                part.requires_grad_(not self.truncated)
            embedded = tensors.read(piece)
            weights = self.frozen | tensors.leaves
            vectors, after = recurrent.hidden_from(self.spec, weights, embedded, _paired(start))
            vectors = side_branch.add(self.spec, weights, vectors, embedded)
            loss[:, :, where], d_vectors = self._score(vectors, piece, tensors, rate, candidates)
            if self.truncated:
                starts.append([tuple(part.detach() for part in state) for state in after])
            flat = [part for state in after for part in state] if passed else []
            back = [] if self.truncated else start
            words = [embedded] if embedded.requires_grad else []
            gradients = torch.autograd.grad(
                along([vectors, *flat], [d_vectors, *passed]),
                [*back, *tensors.leaves.values(), *words],
                allow_unused=True,
            )
            passed = list(gradients[: len(back)])
            tensors.apply_gradients(piece, gradients[len(back) :], rate)
        return loss

    def _cut(self, batch: Batch) -> Iterator[tuple[slice, Batch]]:
        for first in range(0, batch.inputs.shape[2], self.segment_length):
            where = slice(first, first + self.segment_length)
            yield where, Batch(*(part[:, :, where].contiguous() for part in batch))

    @torch.no_grad()
    def _starts(self, pieces: Sequence[Batch], tensors: StepTensors) -> list[list[State]]:
        """Return the states that segments begin with; truncated, the first one's only."""
        devices, windows, _ = pieces[0].inputs.shape
        states = [recurrent.zero_state(self.spec, devices, windows, pieces[0].weight)]
        for piece in [] if self.truncated else pieces[:-1]:
            embedded = tensors.embedding.read(piece.inputs)
            weights = self.frozen | tensors.leaves
            _, after = recurrent.hidden_from(self.spec, weights, embedded, states[-1])
            states.append([(r.clone(), c) for r, c in after])  # r is a part of all outputs
        return states


class BlockStep(Step):
    """A step of a transformer that keeps the inputs of its blocks and nothing of their insides."""

    in_place = False

    def _add_gradient(
        self, batch: Batch, tensors: StepTensors, rate: float, candidates: output.Candidates | None
    ) -> Tensor:
        """Add ``rate`` · gradient to ``tensors.sums``; return losses (A, B, T)."""
        embedded = tensors.read(batch)
        weights = self.frozen | tensors.leaves
        stages = transformer.stages(self.spec, weights, embedded.shape)
        inputs = [embedded.detach()]
        with torch.no_grad():
            for stage in stages:
                inputs.append(stage(inputs[-1]))
            vectors = side_branch.add(self.spec, weights, inputs.pop(), inputs[0])
        loss, gradient = self._score(vectors, batch, tensors, rate, candidates)
        beside, gradients = self._beside(weights, embedded, tensors, gradient)
        tensors.apply_gradients(batch, gradients, rate)
        for stage in reversed(stages):
            x = inputs.pop().requires_grad_()
            leaves = list(tensors.leaves.values())
            gradient, *by_leaves = torch.autograd.grad(
                along([stage(x)], [gradient]), [x, *leaves], allow_unused=True
            )
            tensors.apply_gradients(batch, by_leaves, rate)
        if embedded.requires_grad:
            tensors.embedding.add(batch.inputs, gradient + beside, rate)
        return loss

    def _beside(
        self, weights: dict[str, Tensor], embedded: Tensor, tensors: StepTensors, gradient: Tensor
    ) -> tuple[Tensor, list[Tensor | None]]:
        """Return the side branch's gradient by the embedded words, and by ``tensors.leaves``."""
        if not self.spec.side_branch:
            return torch.zeros_like(embedded), []
        x, leaves = embedded.detach().requires_grad_(), list(tensors.leaves.values())
        part = side_branch.add(self.spec, weights, torch.zeros_like(gradient), x)
        x_gradient, *gradients = torch.autograd.grad(
            along([part], [gradient]), [x, *leaves], allow_unused=True
        )
        return x_gradient, list(gradients)


def _paired(parts: list[Tensor]) -> list[State]:
    return [(parts[n], parts[n + 1]) for n in range(0, len(parts), 2)]
