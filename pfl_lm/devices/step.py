"""One local SGD step of K devices at once: the innermost part of training.

Legend: K devices, A ≤ K still at work in the step, B windows of a batch, T target tokens of a
window, P width of hidden vectors, d payload coordinates.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from pfl_lm.devices import output
from pfl_lm.devices.batches import Batch
from pfl_lm.devices.tables import Table, slots_of
from pfl_lm.devices.task import Task
from pfl_lm.models import dense
from pfl_lm.models import quantised as low_bit
from pfl_lm.models.lora import is_layer
from pfl_lm.models.models import hidden, roles
from pfl_lm.models.slopes import along

Weights = dict[str, Tensor]


class StepTensors(NamedTuple):
    """What the devices read in a step, and where its gradients are added."""

    embedding: Table
    output: Table
    bias: Table | None
    leaves: Weights  # dense parameters that travel, (A, …) each, as the products use them
    sums: Weights  # gradients are added here, by name

    def read(self, batch: Batch) -> Tensor:
        """Return the batch's embedded words (A, B, T, D)."""
        return self.embedding.read(batch.inputs).requires_grad_(self.embedding.grad_out is not None)

    def route_gradients(self, rate: float) -> None:
        """Let layers that can add ``rate`` times their gradients to ``sums`` as they make them."""
        for name, leaf in self.leaves.items():
            dense.route_gradient(leaf, self.sums[name], rate)

    def apply_gradients(
        self, batch: Batch, gradients: Sequence[Tensor | None], rate: float
    ) -> None:
        """Add ``rate`` times the gradients by ``leaves``, and by the embedded words if there."""
        for name, gradient in zip(self.leaves, gradients, strict=False):
            if gradient is not None:
                self.sums[name].add_(gradient, alpha=rate)
        words = gradients[len(self.leaves)] if len(gradients) > len(self.leaves) else None
        if words is not None and self.embedding.grad_out is not None:
            self.embedding.add(batch.inputs, words, rate)


class Step:
    """One local SGD step of the devices at work, with the step's tensors freed at its end."""

    in_place = True  # whether gradients may go straight into what is trained

    def __init__(self, task: Task) -> None:
        spec, parameters, payload = task.spec, task.parameters, task.payload
        training = task.training
        self.spec, self.parameters, self.payload = spec, parameters, payload
        self.objective, self.gradient_clip = output.Objective(task), training.gradient_clip
        processor = parameters["embedding"].device
        rows = None if payload.rows is None else torch.from_numpy(payload.rows).to(processor)
        self.slots = slots_of(rows, spec.vocabulary_size)
        self.roles = {name: role for name, role in roles(spec).items() if role.kind != "rows"}
        self.precision = {name: parameters[name].dtype for name in self.roles}  # of its products
        if training.precision == "bfloat16":
            layers = [name for name, role in self.roles.items() if is_layer(name, role)]
            self.precision |= dict.fromkeys(layers, torch.bfloat16)
        self.frozen = {name: parameters[name].to(self.precision[name]) for name in self.roles}
        self.bits = training.weight_bits

    def used(self, name: str, held: Tensor) -> Tensor:
        """Return a travelling parameter as the products use it: in few bits, if so held."""
        return low_bit.as_used(name, self.roles[name], held, self.bits)

    def __call__(
        self,
        batch: Batch,
        now: Tensor,
        trained: Tensor,
        rate: float,
        candidates: output.Candidates | None,
    ) -> Tensor:
        """Move ``trained`` (A, d) one step down from ``now``; return losses (A, B, T), 0 at pads.

        Without a bound on the gradient, its parts go straight into ``trained``; with one they
        are collected first, since the bound is on their common norm.
        """
        if self.gradient_clip is None and self.in_place:
            return self._add_gradient(batch, self._tensors(now, trained), -rate, candidates)
        gradient = torch.zeros_like(trained)
        loss = self._add_gradient(batch, self._tensors(now, gradient), 1.0, candidates)
        if self.gradient_clip is not None:
            norm = torch.linalg.vector_norm(gradient, dim=1, keepdim=True)
            gradient.mul_((self.gradient_clip / norm).clamp_max(1.0))
        trained.sub_(gradient, alpha=rate)
        return loss

    def _tensors(self, now: Tensor, grad_out: Tensor) -> StepTensors:
        """Lay out what the devices hold, (A, d), and where gradients are added, (A, d).

        ``grad_out`` may share memory with ``now``: whatever a gradient is computed from is read
        before the part of ``grad_out`` that holds it is written.
        """
        held, sums = self.payload.views(now), self.payload.views(grad_out)

        def table(name: str) -> Table:
            return Table(self.parameters, held, sums, name, self.slots)

        # `.data`: the views share memory with `grad_out`, which autograd would take for an error.
        leaves = {
            name: _rounded(self.used(name, held[name].data), precision).requires_grad_()
            for name, precision in self.precision.items()
            if name in held
        }
        bias = table("output_bias") if self.spec.output_bias else None
        return StepTensors(table("embedding"), table(self.spec.output_table), bias, leaves, sums)

    def _add_gradient(
        self, batch: Batch, tensors: StepTensors, rate: float, candidates: output.Candidates | None
    ) -> Tensor:
        """Add ``rate`` · gradient to ``tensors.sums``; return losses (A, B, T)."""
        embedded = tensors.read(batch)
        tensors.route_gradients(rate)
        vectors = hidden(self.spec, self.frozen | tensors.leaves, embedded)  # (A, B, T, P)
        loss, d_vectors = self._score(vectors, batch, tensors, rate, candidates)
        wanted = [*tensors.leaves.values(), *([embedded] if embedded.requires_grad else [])]
        total = along([vectors], [d_vectors])
        gradients = torch.autograd.grad(total, wanted, allow_unused=True)
        tensors.apply_gradients(batch, gradients, rate)
        return loss

    def _score(
        self,
        vectors: Tensor,
        batch: Batch,
        tensors: StepTensors,
        rate: float,
        candidates: output.Candidates | None,
    ) -> tuple[Tensor, Tensor]:
        """Return losses (A, B, T) and their gradient by the vectors (A, B, T, P).

        The output rows' own gradient is added to ``tensors.sums``.
        """
        loss, d_vectors = self.objective(
            vectors.detach().flatten(1, 2),
            batch.targets.flatten(1),
            batch.weight.flatten(1),
            tensors.output,
            tensors.bias,
            rate,
            candidates,
        )
        return loss.view_as(batch.weight), d_vectors.view_as(vectors)


def _rounded(held: Tensor, precision: torch.dtype) -> Tensor:
    """Convert (A, …) to the precision of its products: once what all devices hold alike."""
    if held.stride(0) == 0 and held.dtype != precision:
        return held[:1].to(precision).expand_as(held)
    return held.to(precision)
