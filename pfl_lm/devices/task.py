"""What a round asks of its devices: the same for all of them, whatever way they train."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from pfl_lm.devices.local_training import LocalTraining
from pfl_lm.models import quantised as low_bit
from pfl_lm.models.models import ModelSpec, Parameters, roles
from pfl_lm.payload.layout import Payload


@dataclass(frozen=True)
class Task:
    """A round's local training, before it meets anybody's text.

    Attributes:
        spec: shape of the model.
        parameters: the model as it lies on the devices; read, never written.
        payload: the coordinates that travel.
        values: float32[d], the payload's coordinates as received.
        training: how to train.
        unigram: float64[V], the public word probabilities.
        seed, round: name the streams of the order of examples (with the user, a device's own) and
            of the candidates (public, one draw a step for everybody).
    """

    spec: ModelSpec
    parameters: Parameters
    payload: Payload
    values: np.ndarray
    training: LocalTraining
    unigram: np.ndarray
    seed: int
    round: int

    def in_few_bits(self) -> Task:
        """Return the task with the model in ``training.weight_bits``, as a small phone holds it."""
        bits = self.training.weight_bits
        if bits is None:
            return self
        return replace(
            self, parameters=low_bit.round_model(self.parameters, roles(self.spec), bits)
        )
