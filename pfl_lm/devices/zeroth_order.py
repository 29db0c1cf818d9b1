"""Training without a backward pass: two losses a step, along public random directions.

A step moves the payload's coordinates a little along a direction u, forwards and backwards, and
takes the difference of the losses for the slope:

    slope = (loss(w + μ u) − loss(w − μ u)) / 2μ,    w ← w − learning_rate · slope · u

Nothing of a forward pass is kept, no gradient is stored, and the weights are moved in place: the
memory of training is that of predicting. What the steps add up to is a coefficient for each
direction, so those few numbers are the device's whole update. Everybody knows the directions, and
the server makes them again (``pfl_lm.payload.directions``).

With only some rows in the payload, the slope along u is that of the gradient that ``step`` would
take: what a candidate's score adds to its row counts π times, π the probability that the row
travels. A difference of losses cannot be multiplied by π afterwards, since the same coordinate of u
also moves the row where it is the target or a word that is read. So a candidate's row is moved by
π · μ u where it is scored (``output.Objective.centre``), and the slope, up to O(μ²), is ⟨g, u⟩ with
g the gradient of training by gradients. The directions are drawn independently of rows and text
with E[u uᵀ] = I / n, so E[slope · u] = g / n, and what is proven of g in ``output`` holds of it.

Privacy: the coefficients ARE the payload. The vector of them is clipped and noised like any other
update, d of them at sensitivity ``clip_norm``, whatever happened between the steps.

In the simulation K devices walk side by side, each where its own steps have led it: what is frozen
is multiplied for all of them at once.

Legend: K devices, A ≤ K at work in a step, B windows of a batch, T target tokens of a window,
P width of hidden vectors, n coordinates that directions move, d directions.

Source: SPSA, Spall 1992 (IEEE TAC 37(3)), equation 2.2; in place and for language models, MeZO,
Malladi et al. 2023 (arXiv:2305.17333), algorithm 1; seeds and scalars as the update, FedKSeed, Qin
et al. 2024 (arXiv:2312.06353). Private zeroth-order training clips the scalar of one step, DPZero,
Zhang et al. 2024 (arXiv:2310.09639); here a user's scalars of a whole round are clipped as one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import cache

import numpy as np
import torch
from torch import Tensor

from pfl_lm.devices import output
from pfl_lm.devices.batches import Batch, Schedule
from pfl_lm.devices.tables import Table, slots_of
from pfl_lm.devices.task import Task
from pfl_lm.devices.trace import Trace
from pfl_lm.dp.encoding import norms
from pfl_lm.models import dense, recurrent, side_branch
from pfl_lm.models.models import body_of, hidden, roles
from pfl_lm.payload.directions import Directions
from pfl_lm.payload.layout import gather
from pfl_lm.streams import stream


def train_zeroth_order(
    task: Task, windows: Sequence[np.ndarray], users: Sequence[int]
) -> tuple[Tensor, list[Trace]]:
    """Train K devices along the payload's directions and return their coefficients.

    Arguments and results are those of :func:`pfl_lm.devices.training.train`, with one coefficient
    for each direction as the update, float32[K, d]. The learning rate is that of a step along a
    direction of unit length; ``gradient_clip`` bounds its slope.

    Raises:
        ValueError: the payload has no directions.
    """
    directions, whole = task.payload.directions, task.payload.whole
    if directions is None:
        raise ValueError(
            'method = "zeroth_order" trains along directions: state payload.directions'
        )
    schedule = Schedule(windows, task.training, task.seed, task.round, users)
    walk = _Walk(task, directions, [users[k] for k in schedule.order])
    forward = _Forward(replace(task.in_few_bits(), payload=whole))
    walk.values += gather(task.parameters, whole)  # what is moved is held in float32
    losses, tokens = np.zeros(len(users)), np.zeros(len(users), np.int64)
    for number, batch in enumerate(schedule):
        candidates = forward.objective.draw(number)
        here = walk.values[: len(batch.inputs)]
        step_losses = walk.step(number, len(batch.inputs), forward.at(here, batch, candidates))
        seen = batch.weight.count_nonzero((1, 2)).numpy()
        losses[: len(seen)] += step_losses * seen
        tokens[: len(seen)] += seen
    place = np.argsort(schedule.order)  # from the order of work back to the caller's
    coefficients = walk.coefficients[place]
    lengths = norms(coefficients).tolist()
    traces = [
        Trace(user, losses[k] / max(tokens[k], 1), int(tokens[k]), int(schedule.steps[k]), norm)
        for user, k, norm in zip(users, place, lengths, strict=True)
    ]
    return torch.from_numpy(coefficients), traces


class _Walk:
    """Where K devices are: each takes the round's directions in turn, from a place of its own."""

    def __init__(self, task: Task, directions: Directions, users: Sequence[int]) -> None:
        self.directions, self.training = directions, task.training
        self.reach = task.training.perturbation * float(np.sqrt(directions.size))
        self.values = np.zeros((len(users), directions.size), np.float32)  # moved in place
        self.coefficients = np.zeros((len(users), directions.count), np.float32)
        self._first = np.asarray([
            stream(task.seed, "first direction", task.round, user).integers(directions.count)
            for user in users
        ])  # fmt: skip

    def step(
        self, number: int, active: int, losses: Callable[[np.ndarray], np.ndarray]
    ) -> np.ndarray:
        """Take one step with the first ``active`` devices; return the means of their two losses.

        Args:
            losses: of devices at values float32[A, n], as float64[A].
        """
        names = (self._first[:active] + number) % self.directions.count
        bits = [self.directions.signs(int(name)) for name in names]
        here = self.values[:active]

        def move(amounts: np.ndarray) -> None:
            for own, signs, amount in zip(here, bits, amounts.tolist(), strict=True):
                self.directions.add(own, signs, amount)

        reach = np.full(active, self.reach)
        move(reach)
        ahead = losses(here)
        move(-2 * reach)
        behind = losses(here)
        slopes = (ahead - behind) / (2 * self.reach)
        bound = self.training.gradient_clip
        if bound is not None:
            slopes = np.clip(slopes, -bound, bound)
        steps = -self.training.learning_rate * self.training.decay**number * slopes
        move(reach + steps)  # back to where they were, and on
        self.coefficients[np.arange(active), names] += steps
        return (ahead + behind) / 2


class _Forward:
    """The losses of the devices' batches, and nothing kept of how they came about."""

    def __init__(self, task: Task) -> None:
        spec, parameters, payload = task.spec, task.parameters, task.payload
        self.spec, self.parameters, self.payload = spec, parameters, payload
        self.objective = output.Objective(task)
        # Words scored at a time: the fewer, the less memory; over all words it is dear even of one.
        self._segment_length = 1 if self.objective.exact else task.training.segment_length
        rows = None if payload.rows is None else torch.from_numpy(payload.rows)
        self._slots = slots_of(rows, spec.vocabulary_size)
        dense = [name for name, role in roles(spec).items() if role.kind != "rows"]
        self._frozen = {name: parameters[name] for name in dense}

    def at(
        self, here: np.ndarray, batch: Batch, candidates: output.Candidates | None
    ) -> Callable[[np.ndarray], np.ndarray]:
        """Return the batch's mean losses, float64[A], as a function of values float32[A, n].

        Args:
            here: the values as they are before the step looks to either side of them.
        """
        _, table, bias = self._tables(here)
        centre = self.objective.centre(table, bias, candidates)
        return lambda values: self._losses(values, batch, candidates, centre)

    @torch.no_grad()
    def _losses(
        self,
        values: np.ndarray,
        batch: Batch,
        candidates: output.Candidates | None,
        centre: output.Centre | None,
    ) -> np.ndarray:
        held = self.payload.views(torch.from_numpy(values))
        embedding, table, bias = self._tables(values)
        weights = self._frozen | {n: v for n, v in held.items() if n in self._frozen}
        total = np.zeros(len(values))
        for vectors, targets, weight in self._pieces(weights, embedding, batch):
            losses, _ = self.objective(
                vectors, targets, weight, table, bias, 0.0, candidates, centre
            )
            total += (losses * weight).sum(1).numpy()
        return total

    def _tables(self, values: np.ndarray) -> tuple[Table, Table, Table | None]:
        """Return the embedding, the output rows and their bias as the devices hold them."""
        held = self.payload.views(torch.from_numpy(values))

        def table(name: str) -> Table:
            return Table(self.parameters, held, {}, name, self._slots)

        bias = table("output_bias") if self.spec.output_bias else None
        return table("embedding"), table(self.spec.output_table), bias

    def _pieces(
        self, weights: dict[str, Tensor], embedding: Table, batch: Batch
    ) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Yield hidden vectors (A, N, P), targets and weights (A, N), a segment at a time.

        A recurrent model is stepped word by word, so that one state is all it holds, and scored a
        few words at a time; another sees one window after another, for no window looks into the
        next.
        """
        if not body_of(self.spec).steps_words:
            for b in range(batch.inputs.shape[1]):
                window = Batch(*(part[:, b : b + 1].contiguous() for part in batch))
                vectors = hidden(self.spec, weights, embedding.read(window.inputs))
                yield vectors.flatten(1, 2), window.targets.flatten(1), window.weight.flatten(1)
            return
        layer = cache(lambda name: dense.layer(weights, name, self.spec.lora))
        devices, windows, _ = batch.inputs.shape
        state = recurrent.zero_state(self.spec, devices, windows, batch.weight)
        for start in range(0, batch.inputs.shape[2], self._segment_length):
            where = slice(start, start + self._segment_length)
            words = Batch(*(part[:, :, where].contiguous() for part in batch))
            outputs = []
            for t in range(words.inputs.shape[2]):
                embedded = embedding.read(words.inputs[:, :, t].contiguous())  # (A, B, D)
                vectors, state = recurrent.step(
                    self.spec, weights, embedded, state, lambda name, x: dense.apply(x, layer(name))
                )
                outputs.append(side_branch.add(self.spec, weights, vectors, embedded))
            vectors = torch.stack(outputs, 2).flatten(1, 2)  # (A, B · words, P)
            yield vectors, words.targets.flatten(1), words.weight.flatten(1)
