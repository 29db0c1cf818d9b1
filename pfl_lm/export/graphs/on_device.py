"""Local training by an exported ``train_step``: what a phone's app does around the graph.

Batches, learning rate, bound on the gradient, step down and weight are the simulator's
(``devices/training.py``), for one device; every number of the gradient comes from the runtime.

Legend: V words, k rows of the payload, C candidates, d coordinates of the payload.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pfl_lm.devices.batches import Batch, Schedule, token_weight
from pfl_lm.devices.local_losses import LOSSES
from pfl_lm.devices.output import Objective
from pfl_lm.devices.task import Task
from pfl_lm.devices.trace import Trace
from pfl_lm.export.signature import Arrays, Runner, Signature
from pfl_lm.models.losses import Candidates
from pfl_lm.models.models import roles


@dataclass(frozen=True)
class OnDevice:
    """A device that trains by a graph in one round.

    Args:
        run: the graph, in whatever runtime.
        signature: of the graph.
        task: what the round asks.
    """

    run: Runner
    signature: Signature
    task: Task

    def train(self, windows: np.ndarray, user: int) -> tuple[np.ndarray, Trace]:
        """Train on one user's windows, int64[n, T + 1]; return the update float32[d]."""
        task, training = self.task, self.task.training
        now, common = task.values.copy(), self.common()
        lost, targets, steps = 0.0, 0, 0
        objective = Objective(task)
        schedule = Schedule([windows], training, task.seed, task.round, [user])
        for number, batch in enumerate(schedule):
            given = common | {"values": now, "windows": self._words(batch)}
            drawn = objective.draw(number)
            if drawn is not None:
                given |= self._candidates(drawn)
            outputs = self.run(**given)
            rate = np.float32(training.learning_rate * training.decay**number)
            now = now - rate * _clipped(outputs["gradient"], training.gradient_clip)
            lost, steps = lost + float(outputs["loss"][0]), steps + 1
            targets += int(batch.weight.count_nonzero())
        update: np.ndarray = (now - task.values) * np.float32(token_weight(windows, training))
        norm = float(np.linalg.norm(update))
        return update, Trace(user, lost / max(steps, 1), targets, steps, norm)

    def common(self) -> Arrays:
        """Return what every step of the round is given: slots, noise, frozen weights."""
        shapes = {tensor.name: tensor for tensor in self.signature.inputs}
        spec, rows = self.task.spec, self.task.payload.rows
        inputs: Arrays = {}
        if "slots" in shapes and rows is not None:
            inputs["slots"] = np.full(spec.vocabulary_size, -1, np.int32)
            inputs["slots"][rows] = np.arange(len(rows))
        if (log_noise := Objective(self.task).log_noise) is not None:
            inputs["log_noise"] = log_noise.numpy()
        for name in roles(spec):
            if (tensor := f"frozen_{name.replace('.', '_')}") in shapes:
                inputs[tensor] = self.task.parameters[name].numpy()
        return inputs

    def _words(self, batch: Batch) -> np.ndarray:
        """A batch as the graph's windows: shorter or fewer ones are padded with 0."""
        tensor = next(tensor for tensor in self.signature.inputs if tensor.name == "windows")
        words = np.zeros(tensor.shape, np.int32)
        inputs, targets = batch.inputs[0].numpy(), batch.targets[0].numpy()
        count, length = inputs.shape
        words[:count, :length], words[:count, 1 : length + 1] = inputs, targets
        return words

    def _candidates(self, drawn: Candidates) -> Arrays:
        """Candidates at the graph's fixed number; NCE may draw fewer, the rest count nothing."""
        size = next(tensor.shape for tensor in self.signature.inputs if tensor.name == "candidates")
        missing = size[0] - len(drawn.words)
        inputs: Arrays = {
            "candidates": np.pad(drawn.words.astype(np.int32), (0, missing)),
            "log_weight": np.pad(drawn.log_weight, (0, missing)),
        }
        if drawn.inclusion is not None:
            inputs["inclusion"] = np.pad(drawn.inclusion, (0, missing))
        if not LOSSES[self.task.training.loss].weighted:
            inputs["counts"] = np.pad(drawn.counts, (0, missing))
        return inputs


def _clipped(gradient: np.ndarray, bound: float | None) -> np.ndarray:
    if bound is None:
        return gradient
    norm = float(np.linalg.norm(gradient))
    shorter: np.ndarray = gradient * np.float32(min(1.0, bound / norm)) if norm > 0 else gradient
    return shorter
