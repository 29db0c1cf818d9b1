"""The minibatches of K devices, side by side.

Devices are taken in the order of their number of steps, most first; the ones still at work in a
step are then a leading slice of every (K, …) tensor.

Legend: K devices, A ≤ K at work in a step, B windows of a batch, T target tokens of a window.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from pfl_lm.devices.local_training import LocalTraining
from pfl_lm.streams import stream

PAD = 0


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
