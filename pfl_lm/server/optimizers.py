"""Server optimizers on the coordinates of a payload.

The mean update plays the part of the negative gradient: a positive learning rate follows it.
Moments exist for every coordinate of the model, and only those that travelled are read and
written: the moments of a row that stayed at home are neither decayed nor stepped on, so a rare
row keeps what it learnt from its last journey. (Decaying them would move rows about which a round
learnt nothing.)

A schedule changes the learning rate with the number of the round and nothing else, so it is public
and costs no privacy.

Source: Reddi et al. 2021, "Adaptive federated optimization", Algorithm 2 (no bias correction;
the second moment starts at ``adaptivity ** 2``). Warm-up and cooldown along straight lines: Hägele
et al. 2024, "Scaling laws and compute-optimal training beyond fixed training durations"
(arXiv:2405.18392), section 3.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import numpy.typing as npt

from pfl_lm.server.averages import Average
from pfl_lm.validate import below_one, in_unit, positive, typed

Floats = npt.NDArray[np.float32]
Moments = dict[str, Floats]


@dataclass(frozen=True)
class ServerOptimizer:
    """How the server turns the mean update of a round into a step.

    Attributes:
        kind: ``sgd``, ``momentum``, ``adam`` or ``yogi``.
        learning_rate: factor on the step; 1 with ``sgd`` is plain federated averaging.
        momentum: β₁, weight of the past in the first moment (``momentum``, ``adam``, ``yogi``).
        second_momentum: β₂, weight of the past in the second moment (``adam``, ``yogi``).
        adaptivity: τ, in units of the update; smaller adapts more (``adam``, ``yogi``).
        warmup: share of the run's rounds in which the rate rises from near 0 to ``learning_rate``.
        cooldown: share of the run's rounds, its last, in which the rate falls towards 0; 1 is a
            linear decay from the first round on. With neither the rate is constant.
        average: which average of the server's models the run evaluates and writes; training goes
            on from the last model (``server/averages``).

    Raises:
        ValueError: naming the field and what would be right.
    """

    kind: Literal["sgd", "momentum", "adam", "yogi"] = "sgd"
    learning_rate: float = 1.0
    momentum: float = 0.9
    second_momentum: float = 0.99
    adaptivity: float = 1e-3
    warmup: float = 0.0
    cooldown: float = 0.0
    average: Average = field(default_factory=Average)

    def __post_init__(self) -> None:
        typed(self)
        positive(learning_rate=self.learning_rate, adaptivity=self.adaptivity)
        below_one(momentum=self.momentum, second_momentum=self.second_momentum)
        in_unit(warmup=self.warmup, cooldown=self.cooldown)
        if self.warmup + self.cooldown > 1:
            raise ValueError(
                f"warmup = {self.warmup} and cooldown = {self.cooldown} must together be at most 1"
            )

    def rate(self, round: int, rounds: int) -> float:
        """Return the learning rate of ``round``, counted from 0, of a run of ``rounds``.

        ====================================  =====================================
        round r of R                          learning_rate times
        ====================================  =====================================
        r + 1 ≤ warmup · R                    (r + 1) / (warmup · R)
        between                               1
        R − r ≤ cooldown · R                  (R − r) / (cooldown · R), at last 1 / (cooldown · R)
        ====================================  =====================================
        """
        rising = (round + 1) / (self.warmup * rounds) if self.warmup else 1.0
        falling = (rounds - round) / (self.cooldown * rounds) if self.cooldown else 1.0
        return self.learning_rate * min(1.0, rising) * min(1.0, falling)

    @property
    def moments(self) -> tuple[str, ...]:
        """Names of the running moments that this optimizer keeps per coordinate."""
        return {"sgd": (), "momentum": ("first",)}.get(self.kind, ("first", "second"))

    def initial(self, moment: str) -> float:
        """Return the value that a moment starts from, before any round."""
        return self.adaptivity**2 if moment == "second" else 0.0


def step(
    optimizer: ServerOptimizer, mean: Floats, moments: Moments, learning_rate: float | None = None
) -> tuple[Floats, Moments]:
    """Turn the mean update of a round into what is added to the model.

    Args:
        optimizer: what to do.
        mean: float32[d], the decoded mean update of the cohort.
        moments: float32[d] for each name in ``optimizer.moments``.
        learning_rate: of this round; None: ``optimizer.learning_rate``.

    Returns:
        The step, float32[d], and the new moments. Inputs are left as they were.
    """
    rate = np.float32(optimizer.learning_rate if learning_rate is None else learning_rate)
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
