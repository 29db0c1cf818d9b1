"""Averages of the server's models: what a run evaluates and writes, beside what it trains on.

The iterates of noisy rounds lie around the place that they drift to; their mean lies nearer to it.
For each coordinate the average is over the rounds in which THAT coordinate travelled: a row that
stayed at home repeats nothing, and its average stays as it is. With n the number of its rounds,

    average ← average + a · (value − average),    a = 1 / n for ``tail``, max(1 − decay, 1 / n) for
                                                  ``exponential``.

So no average holds anything of the value before the first round that counts, and a row that has
travelled once is its own average. A coordinate that has not travelled since counting began is as in
the model itself.

Guarantees:
    An average costs no ε. Every iterate is a function of the start and of the noisy sums that the
    ledger has charged, and the average is a function of the iterates and of public numbers. What is
    computed from the output of a private mechanism is as private as the output (post-processing,
    Dwork and Roth 2014, "The algorithmic foundations of differential privacy", proposition 2.1).

Source: tail averages, Polyak and Juditsky 1992 (SIAM J. Control Optim. 30(4)); both in private
training, De et al. 2022 (arXiv:2204.13650), section 3.4, and Shejwalkar et al. 2022
(arXiv:2210.01864), section 3.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from pfl_lm.validate import typed

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Average:
    """Which average of the server's models a run evaluates and writes.

    Attributes:
        kind: ``none``: the last model; ``tail``: the mean over the last rounds; ``exponential``: a
            mean that forgets.
        share: the last rounds as a share of all, for ``tail``.
        decay: what the past keeps when a coordinate travels, for ``exponential``.
    """

    kind: Literal["none", "tail", "exponential"] = "none"
    share: float = 0.25
    decay: float = 0.9

    def __post_init__(self) -> None:
        typed(self)
        if self.kind not in ("none", "tail", "exponential"):
            raise ValueError(
                f'average kind = {self.kind!r}: must be "none", "tail" or "exponential"'
            )
        if not 0 < self.share <= 1:
            raise ValueError(f"average share = {self.share} must be above 0 and at most 1")
        if not 0 <= self.decay < 1:
            raise ValueError(f"average decay = {self.decay} must be in [0, 1)")

    def counts(self, round: int, rounds: int) -> bool:
        """Whether the model after ``round``, counted from 0, of ``rounds`` is averaged."""
        if self.kind == "tail":
            return rounds - round <= max(1.0, self.share * rounds)
        return self.kind == "exponential"

    def step(self, average: Floats, travels: Floats, values: Floats) -> tuple[Floats, Floats]:
        """Take the coordinates that travelled into their averages.

        Args:
            average: float32[d], the averages so far.
            travels: float32[d], how many rounds each is over.
            values: float32[d], the model after the round.

        Returns:
            Averages and counts with this round. Inputs are left as they were.
        """
        count = travels + np.float32(1)
        weight = 1 / count
        if self.kind == "exponential":
            weight = np.maximum(weight, np.float32(1 - self.decay))
        return average + weight * (values - average), count
