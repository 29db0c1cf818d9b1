"""Local training by an exported ``train_step``: what a phone's app does around the graph.

Batches, learning rate, bound on the gradient and step down are the simulator's
(``devices/training.py``), for one device; every number of the gradient comes from the runtime.

Legend: V words, k rows of the payload, C candidates, d coordinates of the payload.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from pfl_lm.devices.batches import Batch, Schedule
from pfl_lm.devices.output import Objective
from pfl_lm.devices.report import Trace
from pfl_lm.devices.task import Task
from pfl_lm.export.ports import Arrays, Interface
from pfl_lm.language.losses import Candidates
from pfl_lm.language.models import roles

Run = Callable[..., Arrays]  # a Graph in torch, or a file opened by its runtime


@dataclass(frozen=True)
class OnDevice:
    """A device that trains by a graph in one round.

    Args:
        run: the graph, in whatever runtime.
        interface: of the graph.
        task: what the round asks.
    """

    run: Run
    interface: Interface
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
            found = self.run(**given)
            rate = np.float32(training.learning_rate * training.decay**number)
            now = now - rate * _clipped(found["gradient"], training.gradient_clip)
            lost, steps = lost + float(found["loss"][0]), steps + 1
            targets += int(batch.weight.count_nonzero())
        update: np.ndarray = now - task.values
        norm = float(np.linalg.norm(update))
        return update, Trace(user, lost / max(steps, 1), targets, steps, norm)

    def common(self) -> Arrays:
        """Return what every step of the round is given: slots, noise, frozen weights."""
        shapes = {port.name: port for port in self.interface.inputs}
        spec, rows = self.task.spec, self.task.payload.rows
        found: Arrays = {}
        if "slots" in shapes and rows is not None:
            found["slots"] = np.full(spec.vocabulary_size, -1, np.int32)
            found["slots"][rows] = np.arange(len(rows))
        if "log_noise" in shapes:
            found["log_noise"] = Objective(self.task).log_noise.numpy()
        for name in roles(spec):
            if (port := f"frozen_{name.replace('.', '_')}") in shapes:
                found[port] = self.task.parameters[name].numpy()
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
        if self.task.training.loss == "nce":
            found["counts"] = np.pad(drawn.counts, (0, missing))
        return found


def train_by(run: Run, interface: Interface) -> Callable[..., tuple[np.ndarray, list[Trace]]]:
    """Return what takes the place of ``devices.training.train``: every device trains by a graph.

    Devices train one after the other, as each phone has only itself. A trace's loss is the mean
    over local steps.
    """

    def train(
        task: Task, windows: Sequence[np.ndarray], users: Sequence[int]
    ) -> tuple[np.ndarray, list[Trace]]:
        device = OnDevice(run, interface, task)
        done = [device.train(own, user) for own, user in zip(windows, users, strict=True)]
        return np.stack([update for update, _ in done]), [trace for _, trace in done]

    return train


def _clipped(gradient: np.ndarray, bound: float | None) -> np.ndarray:
    if bound is None:
        return gradient
    norm = float(np.linalg.norm(gradient))
    shorter: np.ndarray = gradient * np.float32(min(1.0, bound / norm)) if norm > 0 else gradient
    return shorter
