"""Training without a backward pass: two losses a step, along public random directions.

A step moves the payload's coordinates a little along a direction u, forwards and backwards, and
takes the difference of the losses for the slope:

    slope = (loss(w + μ u) − loss(w − μ u)) / 2μ,    w ← w − learning_rate · slope · u

Nothing of a forward pass is kept, no gradient is stored, and the weights are moved in place: the
memory of training is that of predicting. What the steps add up to is a coefficient for each
direction, so those few numbers are the device's whole update. Everybody knows the directions, and
the server makes them again (``pfl_lm.directions``).

Privacy: the coefficients ARE the payload. The vector of them is clipped and noised like any other
update, d of them at sensitivity ``clip_norm``, whatever happened between the steps.

Legend: K devices, B windows of a batch, T target tokens of a window, P width of hidden vectors,
n coordinates that directions move, d directions.

Source: SPSA, Spall 1992 (IEEE TAC 37(3)), equation 2.2; in place and for language models, MeZO,
Malladi et al. 2023 (arXiv:2305.17333), algorithm 1; seeds and scalars as the update, FedKSeed, Qin
et al. 2024 (arXiv:2312.06353). Private zeroth-order training clips the scalar of one step, DPZero,
Zhang et al. 2024 (arXiv:2310.09639); here a user's scalars of a whole round are clipped as one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from pfl_lm.devices import output
from pfl_lm.devices.batches import Batch, LocalTraining, Schedule
from pfl_lm.devices.report import Trace
from pfl_lm.devices.tables import Table, slots_of
from pfl_lm.language import recurrent, residual
from pfl_lm.language.models import ModelSpec, Parameters, hidden, roles
from pfl_lm.payload import Payload, gather
from pfl_lm.streams import stream


def train_zeroth_order(
    spec: ModelSpec,
    parameters: Parameters,
    payload: Payload,
    windows: Sequence[np.ndarray],
    training: LocalTraining,
    unigram: np.ndarray,
    seed: int,
    round: int,
    users: Sequence[int],
) -> tuple[np.ndarray, list[Trace]]:
    """Train K devices along the payload's directions and return their coefficients.

    Arguments and results are those of :func:`pfl_lm.devices.training.train`, with one coefficient
    for each direction as the update, float32[K, d]. ``training.learning_rate`` is that of a step
    along a direction of unit length; ``training.gradient_clip`` bounds its slope.

    Raises:
        ValueError: the payload has no directions.
    """
    if payload.directions is None:
        raise ValueError(
            'method = "zeroth_order" trains along directions: state payload.directions'
        )
    looked = _Forward(spec, parameters, payload.whole, training, unigram)
    found = [
        _train_one(looked, payload, own, training, seed, round, user)
        for own, user in zip(windows, users, strict=True)
    ]
    updates = np.stack([coefficients for coefficients, _ in found])
    return updates, [trace for _, trace in found]


def _train_one(
    forward: _Forward,
    payload: Payload,
    windows: np.ndarray,
    training: LocalTraining,
    seed: int,
    round: int,
    user: int,
) -> tuple[np.ndarray, Trace]:
    """Train one device; its directions are taken in turn, from a place of its own."""
    directions = payload.directions
    assert directions is not None
    values = gather(forward.parameters, payload.whole)  # float32[n], moved in place
    coefficients = np.zeros(directions.count, np.float32)
    first = int(stream(seed, "first direction", round, user).integers(directions.count))
    reach = training.perturbation * np.sqrt(directions.size)
    loss, tokens, steps = 0.0, 0, 0
    for batch in Schedule([windows], training, seed, round, [user]):
        candidates = forward.objective.draw(seed, round, steps)
        number = (first + steps) % directions.count
        bits = directions.signs(number)
        directions.add(values, bits, reach)
        ahead = forward.loss(values, batch, candidates)
        directions.add(values, bits, -2 * reach)
        behind = forward.loss(values, batch, candidates)
        slope = (ahead - behind) / (2 * reach)
        if training.gradient_clip is not None:
            slope = float(np.clip(slope, -training.gradient_clip, training.gradient_clip))
        step = -training.learning_rate * training.decay**steps * slope
        directions.add(values, bits, reach + step)  # back to where it was, and on
        coefficients[number] += step
        here = int(batch.weight.count_nonzero())
        loss, tokens, steps = loss + here * (ahead + behind) / 2, tokens + here, steps + 1
    norm = float(np.linalg.norm(coefficients))
    return coefficients, Trace(user, loss / max(tokens, 1), tokens, steps, norm)


class _Forward:
    """The loss of one device's batch, and nothing kept of how it came about."""

    def __init__(
        self,
        spec: ModelSpec,
        parameters: Parameters,
        payload: Payload,
        training: LocalTraining,
        unigram: np.ndarray,
    ) -> None:
        self.spec, self.parameters, self.payload = spec, parameters, payload
        self.objective = output.Objective(spec, payload, training, unigram)
        rows = None if payload.rows is None else torch.from_numpy(payload.rows)
        self._slots = slots_of(rows, spec.vocabulary_size)
        dense = [name for name, role in roles(spec).items() if role.kind != "rows"]
        self._frozen = {name: parameters[name] for name in dense}

    @torch.no_grad()
    def loss(self, values: np.ndarray, batch: Batch, candidates: output.Candidates | None) -> float:
        """Return the batch's mean loss at ``values``, float32[n]."""
        held = self.payload.views(torch.from_numpy(values).unsqueeze(0))
        tables = [
            Table(self.parameters, held, {}, name, self._slots)
            for name in ("embedding", self.spec.output_table)
        ]
        bias = None
        if self.spec.output_bias:
            bias = Table(self.parameters, held, {}, "output_bias", self._slots)
        weights = self._frozen | {n: v for n, v in held.items() if n in self._frozen}
        total = 0.0
        for vectors, targets, weight in self._pieces(weights, tables[0], batch):
            losses, _ = self.objective(vectors, targets, weight, tables[1], bias, 0.0, candidates)
            total += float((losses * weight).sum())
        return total

    def _pieces(
        self, weights: dict[str, Tensor], embedding: Table, batch: Batch
    ) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Yield hidden vectors (1, N, P), targets and weights (1, N), a stretch at a time.

        A recurrent model is stepped word by word, so that one state is all it holds.
        """
        if self.spec.kind in ("transformer", "module"):
            vectors = hidden(self.spec, weights, embedding.read(batch.inputs))
            yield vectors.flatten(1, 2), batch.targets.flatten(1), batch.weight.flatten(1)
            return
        state = recurrent.zero_state(self.spec, 1, batch.inputs.shape[1])
        for t in range(batch.inputs.shape[2]):
            embedded = embedding.read(batch.inputs[:, :, t])  # (1, B, D)
            vectors, state = recurrent.step(self.spec, weights, embedded, state)
            vectors = residual.add(self.spec, weights, vectors, embedded)
            yield vectors, batch.targets[:, :, t].contiguous(), batch.weight[:, :, t]
