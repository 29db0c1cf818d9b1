"""How a device trains in one round, as a scenario states it. Reading it loads no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from pfl_lm.validate import above_zero_in_unit, at_least, one_of, positive, refuse, typed

LossName = Literal["softmax", "sampled", "nce"]
MethodName = Literal["backpropagation", "zeroth_order", "forward_only"]


@dataclass(frozen=True)
class LocalTraining:
    """How a device trains in one round.

    Args:
        learning_rate: of a device's plain SGD.
        batch_size: windows of a minibatch.
        epochs: passes over the device's windows; 1 where neither these nor ``steps`` are stated.
        steps: local steps, whatever the length of the text, instead of ``epochs``.
        decay: factor on the learning rate after each local step.
        gradient_clip: ℓ2 bound on each step's gradient over the payload; None: no bound.
        window: target tokens of a window.
        max_tokens: target tokens of one device that count in a round; None: all.
        full_weight_tokens: a device with fewer target tokens of its own has its update multiplied
            by tokens / full_weight_tokens before the clip (``devices/batches.token_weight``).
            None: every update counts whole.
        loss: ``"softmax"`` (exact over the vocabulary; over the round's rows, importance
            weighted, when the payload holds only some), ``"sampled"`` or ``"nce"``.
        negatives: candidates of a step, shared by all devices; for ``sampled`` and ``nce``.
        precision: ``"bfloat16"`` makes the products with matrices, and the exact softmax's, in
            bfloat16; weights, updates and everything between stay float32. Faster only where
            the processor has it.
        weight_bits: 8, 4 or 1: the device holds matrices and word tables in so many bits; what
            travels stays float32 (``models/quantised``). None: everything is float32.
        activations: what a step holds on to until its backward pass. ``"kept"``: all of it.
            ``"recomputed"``: the state at every ``segment_length`` words (of a transformer: every
            block's input), the rest is made again; the same gradient. ``"truncated"``: nothing
            beyond a segment: gradients reach no further back (recurrent models only).
        segment_length: words between two states that are kept, or that gradients reach back.
        method: ``"backpropagation"``, or ``"zeroth_order"`` (``devices/zeroth_order``): two
            losses a step along one of the payload's directions, at the memory of predicting.
            ``"forward_only"`` (``devices/forward_only``): the error goes in again at the front.
        perturbation: of a weight, in taking a slope; ``zeroth_order`` only.
        modulation: how strongly the error is added to the words; ``forward_only`` only.

    Raises:
        ValueError: naming the field and what would be right.
    """

    learning_rate: float
    batch_size: int = 16
    epochs: int | None = None
    steps: int | None = None
    decay: float = 1.0
    gradient_clip: float | None = None
    window: int = 20
    max_tokens: int | None = None
    full_weight_tokens: int | None = None
    loss: LossName = "softmax"
    negatives: int = 512
    precision: Literal["float32", "bfloat16"] = "float32"
    activations: Literal["kept", "recomputed", "truncated"] = "kept"
    segment_length: int = 5
    weight_bits: Literal[1, 4, 8] | None = None
    method: MethodName = "backpropagation"
    perturbation: float = 1e-3
    modulation: float = 1.0

    def __post_init__(self) -> None:
        typed(self, own=("loss",))
        positive(learning_rate=self.learning_rate)
        if self.epochs is None and self.steps is None:
            object.__setattr__(self, "epochs", 1)
        if self.epochs is not None and self.steps is not None:
            raise ValueError(
                "state either epochs or steps of local training, not both; --set epochs= with "
                "nothing behind it removes a key"
            )
        at_least(
            1,
            batch_size=self.batch_size,
            epochs=self.epochs,
            steps=self.steps,
            window=self.window,
            max_tokens=self.max_tokens,
            full_weight_tokens=self.full_weight_tokens,
            negatives=self.negatives,
            segment_length=self.segment_length,
        )
        above_zero_in_unit(decay=self.decay)
        positive(
            gradient_clip=self.gradient_clip,
            perturbation=self.perturbation,
            modulation=self.modulation,
        )
        if self.loss not in get_args(LossName):
            from pfl_lm.devices.local_losses import LOSSES, LocalLoss  # with the user's own

            one_of(LOSSES, loss=self.loss)
            if not isinstance(LOSSES.get(self.loss), LocalLoss):
                refuse(f"loss = {self.loss!r}: put an object of a subclass of LocalLoss in LOSSES")
        one_of(("float32", "bfloat16"), precision=self.precision)

    @property
    def along_directions(self) -> bool:
        """Whether an update is one coefficient for each of the payload's directions."""
        return self.method == "zeroth_order"
