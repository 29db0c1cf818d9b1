"""How a device trains, and the minibatches of K devices that follow, side by side.

Devices are taken in the order of their number of steps, most first; the ones still at work in a
step are then a leading slice of every (K, …) tensor.

Legend: K devices, A ≤ K at work in a step, B windows of a batch, T target tokens of a window.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from pfl_lm.devices.local_losses import LOSSES, LossName
from pfl_lm.streams import stream
from pfl_lm.validate import above_zero_in_unit, at_least, one_of, positive

PAD = 0
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
            by tokens / full_weight_tokens before the clip (:func:`token_weight`). None: every
            update counts whole.
        loss: ``"softmax"`` (exact over the vocabulary; over the round's rows, importance
            weighted, when the payload holds only some), ``"sampled"`` or ``"nce"``.
        negatives: candidates of a step, shared by all devices; for ``sampled`` and ``nce``.
        precision: ``"bfloat16"`` makes the products with matrices, and the exact softmax's, in
            bfloat16; weights, updates and everything between stay float32. Faster only where
            the processor has it.
        weight_bits: 8, 4 or 1: the device holds matrices and word tables in so many bits; what
            travels stays float32 (``language/low_bit``). None: everything is float32.
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
        one_of(LOSSES, loss=self.loss)
        one_of(("float32", "bfloat16"), precision=self.precision)

    @property
    def along_directions(self) -> bool:
        """Whether an update is one coefficient for each of the payload's directions."""
        return self.method == "zeroth_order"

    @property
    def dtype(self) -> torch.dtype:
        """Of the large products."""
        return torch.bfloat16 if self.precision == "bfloat16" else torch.float32


def token_weight(windows: np.ndarray, training: LocalTraining) -> float:
    """Return the factor in (0, 1] on a device's update; 1 for a device without a target.

    An unweighted mean gives a device with 5 words the weight of one with 400, although its update
    rests on less text.

    Args:
        windows: int64[n, T + 1], a device's text, padded with 0.

    Guarantees:
        The sensitivity of the sum stays ``clip_norm``. The factor c ≤ 1 belongs to the update that
        is clipped: what a device adds is clip(c u), of norm at most ``clip_norm`` whatever c and u
        are, and depends on no other device; the divisor stays the report goal, a public constant.
        (A weight applied AFTER the clip, or a mean divided by the sum of weights, would need its
        own bound.) So a device's count of tokens is protected as its words are.

    Source: weights min(n / n_max, 1) in private federated learning, McMahan et al. 2018
    (arXiv:1710.06963), section 2; there outside of the clip, with its bound on the weight.
    """
    if training.full_weight_tokens is None:
        return 1.0
    tokens = int((_cap(windows, training.max_tokens)[:, 1:] != PAD).sum())
    return min(1.0, tokens / training.full_weight_tokens) if tokens else 1.0


class Batch(NamedTuple):
    """One local step of the devices still at work."""

    inputs: Tensor  # int64 (A, B, T)
    targets: Tensor  # int64 (A, B, T)
    weight: Tensor  # float32 (A, B, T): 1 / the device's targets in this batch; 0 where none


class Schedule:
    """The minibatches of K devices.

    Args:
        windows: per device int64[n, T + 1], consecutive words, padded with 0 at the end.
        training: batch size, epochs or steps, and how many tokens of a device count; a device's
            last batch in an epoch may be smaller, and the tokens over its cap are padded away.
        seed, round, users: name the stream of each device's order of examples.

    The order is the device's own: it does not depend on the other devices.
    """

    def __init__(
        self,
        windows: Sequence[np.ndarray],
        training: LocalTraining,
        seed: int,
        round: int,
        users: Sequence[int],
    ) -> None:
        kept = [_cap(own, training.max_tokens) for own in windows]
        starts = np.cumsum([0, *(len(own) for own in kept)])
        blank = np.zeros((1, windows[0].shape[1]), np.int64)
        self.words = np.concatenate([*kept, blank])  # int64[all windows + 1, T + 1]; last: absent
        batches = [
            _order(len(own), training, stream(seed, "examples", round, user))
            for own, user in zip(kept, users, strict=True)
        ]
        counts = np.asarray([len(own) for own in batches])
        self.order = np.argsort(-counts, kind="stable")  # int64[K]: most steps first
        self.steps = counts[self.order]
        self._batches = [[starts[k] + batch for batch in batches[k]] for k in self.order]

    def __iter__(self) -> Iterator[Batch]:
        for step in range(int(self.steps[0]) if len(self.steps) else 0):
            active = int(np.count_nonzero(self.steps > step))
            yield self._batch([own[step] for own in self._batches[:active]])

    def _batch(self, picks: list[np.ndarray]) -> Batch:
        widest = max(len(pick) for pick in picks)
        index = np.full((len(picks), widest), len(self.words) - 1)
        for row, pick in zip(index, picks, strict=True):
            row[: len(pick)] = pick
        words = self.words[index]  # (A, B, T + 1)
        valid = words[..., 1:] != PAD
        length = int(np.flatnonzero(valid.any((0, 1))).max(initial=0)) + 1
        words, valid = words[..., : length + 1], valid[..., :length]
        weight = valid / np.maximum(valid.sum((1, 2), keepdims=True), 1)
        return Batch(
            torch.from_numpy(np.ascontiguousarray(words[..., :-1])),
            torch.from_numpy(np.ascontiguousarray(words[..., 1:])),
            torch.from_numpy(weight.astype(np.float32)),
        )


def _order(count: int, training: LocalTraining, draw: np.random.Generator) -> list[np.ndarray]:
    """One device's batches of window numbers, each epoch in a new order."""
    size = training.batch_size
    wanted = training.steps or (training.epochs or 0) * -(-count // size)
    batches: list[np.ndarray] = []
    while count and len(batches) < wanted:
        shuffled = draw.permutation(count)
        batches += [shuffled[start : start + size] for start in range(0, count, size)]
    return batches[:wanted]


def _cap(windows: np.ndarray, max_tokens: int | None) -> np.ndarray:
    """Keep a device's first ``max_tokens`` targets; pad the rest of their window, drop the others.

    Windows without a target are dropped too.
    """
    if max_tokens is not None:
        valid = windows[:, 1:] != PAD
        before = np.cumsum(valid.reshape(-1)).reshape(valid.shape)
        windows = windows.copy()
        windows[:, 1:][before > max_tokens] = PAD
    return windows[(windows[:, 1:] != PAD).any(1)]
