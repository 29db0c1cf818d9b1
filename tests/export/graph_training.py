"""A cohort that trains by an exported graph, in the place of ``devices.training.train``."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from pfl_lm.devices.task import Task
from pfl_lm.devices.trace import Trace
from pfl_lm.export.graphs.on_device import OnDevice
from pfl_lm.export.signature import Runner, Signature


def train_by(run: Runner, signature: Signature) -> Callable[..., tuple[np.ndarray, list[Trace]]]:
    """Return what takes the place of ``devices.training.train``: every device trains by a graph.

    Devices train one after the other, as each phone has only itself. A trace's loss is the mean
    over local steps.
    """

    def train(
        task: Task, windows: Sequence[np.ndarray], users: Sequence[int]
    ) -> tuple[np.ndarray, list[Trace]]:
        device = OnDevice(run, signature, task)
        done = [device.train(own, user) for own, user in zip(windows, users, strict=True)]
        return np.stack([update for update, _ in done]), [trace for _, trace in done]

    return train
