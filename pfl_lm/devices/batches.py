"""Minibatches of K devices, side by side: who trains on which windows in which local step.

Devices are taken in the order of their number of steps, most first; the ones still at work in a
step are then a leading stretch of every (K, …) tensor.

Legend: K devices, A ≤ K at work in a step, B windows of a batch, T target tokens of a window.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from pfl_lm.streams import stream

PAD = 0


class Batch(NamedTuple):
    """One local step of the devices still at work."""

    inputs: Tensor  # int64 (A, B, T)
    targets: Tensor  # int64 (A, B, T)
    weight: Tensor  # float32 (A, B, T): 1 / the device's targets in this batch; 0 where none


class Schedule:
    """The minibatches of K devices.

    Args:
        windows: per device int64[n, T + 1], consecutive words, padded with 0 at the end.
        batch_size: windows of a batch; a device's last one in an epoch may be smaller.
        epochs: passes over a device's windows; or
        steps: local steps, however many epochs they take. Exactly one of the two.
        max_tokens: target tokens of a device's windows that count; the rest is padded away.
        seed, round, users: name the stream of each device's order of examples.

    The order is the device's own: it does not depend on the other devices.
    """

    def __init__(
        self,
        windows: Sequence[np.ndarray],
        batch_size: int,
        epochs: int | None,
        steps: int | None,
        max_tokens: int | None,
        seed: int,
        round: int,
        users: Sequence[int],
    ) -> None:
        kept = [_cap(own, max_tokens) for own in windows]
        starts = np.cumsum([0, *(len(own) for own in kept)])
        blank = np.zeros((1, windows[0].shape[1]), np.int64)
        self.words = np.concatenate([*kept, blank])  # int64[all windows + 1, T + 1]; last: absent
        batches = [
            _order(len(own), batch_size, epochs, steps, stream(seed, "examples", round, user))
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


def _order(
    count: int, batch_size: int, epochs: int | None, steps: int | None, draw: np.random.Generator
) -> list[np.ndarray]:
    """One device's batches of window numbers, each epoch in a new order."""
    batches: list[np.ndarray] = []
    each = -(-count // batch_size)
    while count and len(batches) < (steps if steps is not None else (epochs or 0) * each):
        shuffled = draw.permutation(count)
        batches += [shuffled[start : start + batch_size] for start in range(0, count, batch_size)]
    return batches[:steps] if steps is not None else batches


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
