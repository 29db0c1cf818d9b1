"""Local training by an exported ``train_step``: what a phone's app does around the graph.

Batches, learning rate, bound on the gradient and step down are the simulator's
(``devices/training.py``), for one device; every number of the gradient comes from the runtime.

Legend: V words, k rows of the payload, C candidates, d coordinates of the payload.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from pfl_lm.devices.batches import Batch, LocalTraining, Schedule
from pfl_lm.devices.output import Objective
from pfl_lm.devices.report import Trace
from pfl_lm.export.ports import Arrays, Interface
from pfl_lm.language.losses import Candidates
from pfl_lm.language.models import ModelSpec, Parameters, roles
from pfl_lm.payload import Payload

Run = Callable[..., Arrays]  # a Graph in torch, or a file opened by its runtime


@dataclass(frozen=True)
class OnDevice:
    """A device that trains by a graph in one round.

    Args:
        run: the graph, in whatever runtime.
        interface: of the graph.
        parameters: the model as it lies on the device.
        unigram: float64[V], the public word probabilities.
        seed, round: name the public stream of the candidates.
    """

    run: Run
    interface: Interface
    spec: ModelSpec
    parameters: Parameters
    payload: Payload
    training: LocalTraining
    unigram: np.ndarray
    seed: int
    round: int

    def train(self, values: np.ndarray, windows: np.ndarray, user: int) -> tuple[np.ndarray, Trace]:
        """Train on one user's windows, int64[n, T + 1]; return the update float32[d]."""
        now, common = values.copy(), self.common()
        lost, targets, steps = 0.0, 0, 0
        objective = Objective(self.spec, self.payload, self.training, self.unigram)
        schedule = Schedule([windows], self.training, self.seed, self.round, [user])
        for number, batch in enumerate(schedule):
            given = common | {"values": now, "windows": self._words(batch)}
            drawn = objective.draw(self.seed, self.round, number)
            if drawn is not None:
                given |= self._candidates(drawn)
            found = self.run(**given)
            rate = np.float32(self.training.learning_rate * self.training.decay**number)
            now = now - rate * _clipped(found["gradient"], self.training.gradient_clip)
            lost, steps = lost + float(found["loss"][0]), steps + 1
            targets += int(batch.weight.count_nonzero())
        update: np.ndarray = now - values
        norm = float(np.linalg.norm(update))
        return update, Trace(user, lost / max(steps, 1), targets, steps, norm)

    def common(self) -> Arrays:
        """Return what every step of the round is given: slots, noise, frozen weights."""
        shapes = {port.name: port for port in self.interface.inputs}
        found: Arrays = {}
        if "slots" in shapes and self.payload.rows is not None:
            found["slots"] = np.full(self.spec.vocabulary_size, -1, np.int32)
            found["slots"][self.payload.rows] = np.arange(len(self.payload.rows))
        if "log_noise" in shapes:
            objective = Objective(self.spec, self.payload, self.training, self.unigram)
            found["log_noise"] = objective.log_noise.numpy()
        for name in roles(self.spec):
            if (port := f"frozen_{name.replace('.', '_')}") in shapes:
                found[port] = self.parameters[name].numpy()
        return found

    def _words(self, batch: Batch) -> np.ndarray:
        """A batch as the graph's windows: shorter or fewer ones are padded with 0."""
        port = next(port for port in self.interface.inputs if port.name == "windows")
        words = np.zeros(port.shape, np.int32)
        inputs, targets = batch.inputs[0].numpy(), batch.targets[0].numpy()
        count, length = inputs.shape
        words[:count, :length], words[:count, 1 : length + 1] = inputs, targets
        return words

    def _candidates(self, drawn: Candidates) -> Arrays:
        """Candidates at the graph's fixed number; NCE may draw fewer, the rest count nothing."""
        size = next(port.shape for port in self.interface.inputs if port.name == "candidates")
        missing = size[0] - len(drawn.words)
        found: Arrays = {
            "candidates": np.pad(drawn.words.astype(np.int32), (0, missing)),
            "log_weight": np.pad(drawn.log_weight, (0, missing)),
        }
        if self.training.loss == "nce":
            found["counts"] = np.pad(drawn.counts, (0, missing))
        return found


def train_by(run: Run, interface: Interface) -> Callable[..., tuple[np.ndarray, list[Trace]]]:
    """Return what takes the place of ``devices.training.train``: every device trains by a graph.

    Devices train one after the other, as each phone has only itself. A trace's loss is the mean
    over local steps.
    """

    def train(
        spec: ModelSpec,
        parameters: Parameters,
        payload: Payload,
        values: np.ndarray,
        windows: Sequence[np.ndarray],
        training: LocalTraining,
        unigram: np.ndarray,
        seed: int,
        round: int,
        users: Sequence[int],
    ) -> tuple[np.ndarray, list[Trace]]:
        device = OnDevice(run, interface, spec, parameters, payload, training, unigram, seed, round)
        done = [device.train(values, own, user) for own, user in zip(windows, users, strict=True)]
        return np.stack([update for update, _ in done]), [trace for _, trace in done]

    return train


def _clipped(gradient: np.ndarray, bound: float | None) -> np.ndarray:
    if bound is None:
        return gradient
    norm = float(np.linalg.norm(gradient))
    shorter: np.ndarray = gradient * np.float32(min(1.0, bound / norm)) if norm > 0 else gradient
    return shorter
