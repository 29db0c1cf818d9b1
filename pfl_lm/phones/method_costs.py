"""What each method of local training holds and multiplies, one object each.

A further method of training is one class here, one row in ``devices/training.METHODS``, and two
fitted rows a model family in ``phones/memory.py`` (``benchmarks/device_memory.py`` prints them).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

from pfl_lm.devices.local_losses import LOSSES
from pfl_lm.devices.local_training import LocalTraining, MethodName
from pfl_lm.models.models import ModelSpec, body_of
from pfl_lm.payload.layout import Payload

_PANEL = 32  # rows that the exact softmax lays out side by side, there or not


@dataclass(frozen=True)
class Products:
    """Operations a target token: products forward, and for the gradients of what travels."""

    trunk: float  # between the word tables, forward
    weights: float  # for the gradients of the trunk's matrices that travel
    output: float  # scores, forward
    trained_output: float  # for the gradient of the output rows, if they travel
    through: bool  # a gradient goes through the trunk, not only to what lies behind or beside it


class MethodCost(ABC):
    """What one method holds and multiplies."""

    @abstractmethod
    def flops(self, products: Products, training: LocalTraining) -> float:
        """Return the operations of one target token."""

    @abstractmethod
    def fitted_row(self, training: LocalTraining, through: bool) -> str:
        """Return the part after the model family of the name of a row in ``memory.WORK``."""

    @abstractmethod
    def texts_at_once(self, in_blocks: bool, training: LocalTraining) -> int:
        """Return how many windows of words exist at once."""

    @abstractmethod
    def words_at_once(
        self, spec: ModelSpec, payload: Payload, training: LocalTraining
    ) -> tuple[int, int, int]:
        """Return for how many words activations, and scores, exist at once, in how many layers."""

    @abstractmethod
    def held_bytes(self, payload: Payload, training: LocalTraining) -> tuple[int, int]:
        """Return bytes of what travels: held by torch, and by numpy, which torch does not count."""

    def centre_bytes(
        self, spec: ModelSpec, payload: Payload, training: LocalTraining, scored: int
    ) -> int:
        """Return bytes of the candidates' rows that are kept as they were before a step."""
        return 0


class Backpropagation(MethodCost):
    """Gradients by the chain rule: a pass forward, one backward, and the gradients."""

    def flops(self, products: Products, training: LocalTraining) -> float:
        again = training.activations == "recomputed"
        passes = 1 + (products.through * (2 if again else 1))
        trunk = products.trunk * passes
        return trunk + products.weights + 2 * products.output + products.trained_output

    def fitted_row(self, training: LocalTraining, through: bool) -> str:
        return training.activations if through else "passed by"

    def texts_at_once(self, in_blocks: bool, training: LocalTraining) -> int:
        return training.batch_size

    def words_at_once(
        self, spec: ModelSpec, payload: Payload, training: LocalTraining
    ) -> tuple[int, int, int]:
        kept, in_blocks = training.activations == "kept", body_of(spec).in_blocks
        words = training.batch_size * (
            training.window if kept or in_blocks else _segment_length(training)
        )
        return words, words, spec.layers if kept or not in_blocks else 1

    def held_bytes(self, payload: Payload, training: LocalTraining) -> tuple[int, int]:
        collected = training.gradient_clip is not None or training.activations != "kept"
        copies = 2 if collected else 1
        return 4 * payload.dim * copies, 4 * payload.dim


class _ForwardPasses(MethodCost):
    """Methods without a backward pass; the text is walked word by word, or block by block."""

    def fitted_row(self, training: LocalTraining, through: bool) -> str:
        return training.method

    def texts_at_once(self, in_blocks: bool, training: LocalTraining) -> int:
        return 1 if in_blocks else training.batch_size

    def words_at_once(
        self, spec: ModelSpec, payload: Payload, training: LocalTraining
    ) -> tuple[int, int, int]:
        if body_of(spec).in_blocks:
            return training.window, training.window, 1  # window by window, block by block
        batch = training.batch_size
        if LOSSES[training.loss].exact(payload.some_rows):
            return batch, -(-batch // _PANEL) * _PANEL, spec.layers  # one word's scores, in panels
        return batch, batch * self._together(training), spec.layers  # stepped word by word

    def _together(self, training: LocalTraining) -> int:
        return 1


class ZerothOrder(_ForwardPasses):
    """Two losses a step along one of the payload's directions."""

    def flops(self, products: Products, training: LocalTraining) -> float:
        return 2 * (products.trunk + products.output)

    def held_bytes(self, payload: Payload, training: LocalTraining) -> tuple[int, int]:
        return 0, 4 * (payload.whole_dim + payload.dim)  # what moves, and a coefficient each

    def centre_bytes(
        self, spec: ModelSpec, payload: Payload, training: LocalTraining, scored: int
    ) -> int:
        if not LOSSES[training.loss].weighted or not payload.some_rows:
            return 0
        return 4 * scored * (spec.output_dim + spec.output_bias)

    def _together(self, training: LocalTraining) -> int:
        return _segment_length(training)


class ForwardOnly(_ForwardPasses):
    """Two passes forward, the second with the error added to the words."""

    def flops(self, products: Products, training: LocalTraining) -> float:
        rest = products.weights + 2 * products.output + products.trained_output
        return 3 * products.trunk + rest

    def held_bytes(self, payload: Payload, training: LocalTraining) -> tuple[int, int]:
        return 4 * payload.dim, 8 * payload.dim


def _segment_length(training: LocalTraining) -> int:
    return min(training.segment_length, training.window)


METHOD_COSTS: dict[MethodName, MethodCost] = {
    "backpropagation": Backpropagation(),
    "zeroth_order": ZerothOrder(),
    "forward_only": ForwardOnly(),
}
