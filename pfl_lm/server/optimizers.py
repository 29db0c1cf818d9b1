"""Server optimizers on the coordinates of a payload.

The mean update plays the part of the negative gradient: a positive learning rate follows it.
Moments exist for every coordinate of the model, and only those that travelled are read and
written: the moments of a row that stayed at home are neither decayed nor stepped on, so a rare
row keeps what it learnt from its last journey. (Decaying them would move rows about which a round
learnt nothing.)

Source: Reddi et al. 2021, "Adaptive federated optimization", Algorithm 2 (no bias correction;
the second moment starts at ``adaptivity ** 2``).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
Moments = dict[str, Floats]


@dataclass(frozen=True)
class ServerOptimizer:
    """How the server turns the mean update of a round into a step.

    Attributes:
        kind: ``sgd`` | ``momentum`` | ``adam`` | ``yogi``.
        learning_rate: factor on the step; 1 with ``sgd`` is plain federated averaging.
        momentum: β₁, weight of the past in the first moment (``momentum``, ``adam``, ``yogi``).
        second_momentum: β₂, weight of the past in the second moment (``adam``, ``yogi``).
        adaptivity: τ, in units of the update; smaller adapts more (``adam``, ``yogi``).
    """

    kind: Literal["sgd", "momentum", "adam", "yogi"] = "sgd"
    learning_rate: float = 1.0
    momentum: float = 0.9
    second_momentum: float = 0.99
    adaptivity: float = 1e-3

    def __post_init__(self) -> None:
        if not self.learning_rate > 0:
            raise ValueError(f"learning_rate = {self.learning_rate} must be positive")
        for name in ("momentum", "second_momentum"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} = {getattr(self, name)} must be in [0, 1)")
        if not self.adaptivity > 0:
            raise ValueError(f"adaptivity = {self.adaptivity} must be positive")

    @property
    def moments(self) -> tuple[str, ...]:
        """Names of the running moments that this optimizer keeps per coordinate."""
        return {"sgd": (), "momentum": ("first",)}.get(self.kind, ("first", "second"))

    def initial(self, moment: str) -> float:
        """Return the value that a moment starts from, before any round."""
        return self.adaptivity**2 if moment == "second" else 0.0


def step(optimizer: ServerOptimizer, mean: Floats, moments: Moments) -> tuple[Floats, Moments]:
    """Turn the mean update of a round into what is added to the model.

    Args:
        optimizer: what to do.
        mean: float32[d], the decoded mean update of the cohort.
        moments: float32[d] for each name in ``optimizer.moments``.

    Returns:
        The step, float32[d], and the new moments. Inputs are left as they were.
    """
    rate = np.float32(optimizer.learning_rate)
    if optimizer.kind == "sgd":
        return rate * mean, {}
    beta = np.float32(optimizer.momentum)
    if optimizer.kind == "momentum":
        first = beta * moments["first"] + mean
        return rate * first, {"first": first}
    first = beta * moments["first"] + (1 - beta) * mean
    second = _second_moment(optimizer, mean, moments["second"])
    scale = np.sqrt(second) + np.float32(optimizer.adaptivity)
    return (rate * first / scale).astype(np.float32), {"first": first, "second": second}


def _second_moment(optimizer: ServerOptimizer, mean: Floats, second: Floats) -> Floats:
    square = mean * mean
    beta = np.float32(optimizer.second_momentum)
    if optimizer.kind == "adam":
        return beta * second + (1 - beta) * square
    return second - (1 - beta) * square * np.sign(second - square)
