"""How a device trains, and the minibatches of K devices that follow, side by side.

Devices are taken in the order of their number of steps, most first; the ones still at work in a
step are then a leading stretch of every (K, …) tensor.

Legend: K devices, A ≤ K at work in a step, B windows of a batch, T target tokens of a window.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from pfl_lm.streams import stream

PAD = 0


@dataclass(frozen=True)
class LocalTraining:
    """How a device trains in one round.

    Args:
        learning_rate: of plain SGD; ``decay`` multiplies it after each local step.
        batch_size: windows of a minibatch.
        epochs: passes over the device's windows; or ``steps``: local steps. Exactly one.
        gradient_clip: ℓ2 bound on each step's gradient over the payload; None: no bound.
        window: target tokens of a window.
        max_tokens: target tokens of one device that count in a round; None: all.
        loss: ``"softmax"`` (exact over the vocabulary; over the round's rows, importance
            weighted, when the payload holds only some), ``"sampled"`` or ``"nce"``.
        negatives: candidates of a step, shared by all devices; for ``sampled`` and ``nce``.
        precision: ``"bfloat16"`` makes the products with matrices, and the exact softmax's, in
            bfloat16; weights, updates and everything between stay float32. Faster only where
            the processor has it (``machine.has_bfloat16``).
        weight_bits: 8, 4 or 1: the device holds matrices and word tables in so many bits; what
            travels stays float32 (``language/low_bit``). None: everything is float32.
        activations: what a step holds on to until its backward pass. ``"kept"``: all of it.
            ``"recomputed"``: the state at every ``stretch`` words (of a transformer: every
            block's input), the rest is made again; the same gradient. ``"truncated"``: nothing
            beyond a stretch: gradients reach no further back (recurrent models only).
        stretch: words.
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
    epochs: int | None = 1
    steps: int | None = None
    decay: float = 1.0
    gradient_clip: float | None = None
    window: int = 20
    max_tokens: int | None = None
    loss: Literal["softmax", "sampled", "nce"] = "softmax"
    negatives: int = 512
    precision: Literal["float32", "bfloat16"] = "float32"
    activations: Literal["kept", "recomputed", "truncated"] = "kept"
    stretch: int = 5
    weight_bits: Literal[1, 4, 8] | None = None
    method: Literal["backpropagation", "zeroth_order", "forward_only"] = "backpropagation"
    perturbation: float = 1e-3
    modulation: float = 1.0

    def __post_init__(self) -> None:
        if not self.learning_rate > 0:
            raise ValueError(f"learning_rate = {self.learning_rate}: must be positive")
        if (self.epochs is None) == (self.steps is None):
            raise ValueError("state either epochs or steps of local training, not both")
        for field in (
            "batch_size",
            "epochs",
            "steps",
            "window",
            "max_tokens",
            "negatives",
            "stretch",
        ):
            value = getattr(self, field)
            if value is not None and value < 1:
                raise ValueError(f"{field} = {value}: must be at least 1")
        if not 0 < self.decay <= 1:
            raise ValueError(f"decay = {self.decay}: must be above 0 and at most 1")
        if self.gradient_clip is not None and not self.gradient_clip > 0:
            raise ValueError(f"gradient_clip = {self.gradient_clip}: must be positive, or left out")
        for field in ("perturbation", "modulation"):
            if not getattr(self, field) > 0:
                raise ValueError(f"{field} = {getattr(self, field)}: must be positive")
        if self.loss not in ("softmax", "sampled", "nce"):
            raise ValueError(f'loss = {self.loss!r}: must be "softmax", "sampled" or "nce"')
        if self.precision not in ("float32", "bfloat16"):
            raise ValueError(f'precision = {self.precision!r}: must be "float32" or "bfloat16"')

    @property
    def dtype(self) -> torch.dtype:
        """Of the large products."""
        return torch.bfloat16 if self.precision == "bfloat16" else torch.float32


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
