"""Local training of K devices at once: the hot loop of a simulation; one real device is K = 1.

A device receives flat values float32[d], runs SGD on its own windows, and its update is what
training added: trained − received. Everything the payload does not hold is frozen and shared by
all K devices. No device's update depends on which others are trained beside it.

Legend: K devices, A ≤ K still at work in a step, B windows of a batch, T target tokens of a
window, N = B · T rows of a device, P width of hidden vectors, C candidates, d payload coordinates.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from pfl_lm.devices.batches import Batch, Schedule, token_weight
from pfl_lm.devices.forward_only import train_forward_only
from pfl_lm.devices.local_losses import LOSSES
from pfl_lm.devices.local_training import LocalTraining, MethodName
from pfl_lm.devices.processor import CPU, Processor
from pfl_lm.devices.segmented import step_kind
from pfl_lm.devices.task import Task
from pfl_lm.devices.trace import Trace
from pfl_lm.devices.zeroth_order import train_zeroth_order
from pfl_lm.dp.encoding import norms
from pfl_lm.models.models import ModelSpec, body_of
from pfl_lm.payload.layout import Payload

UNK = 1
CACHE_BYTES = 16 << 20  # of the devices' own values that are stepped together
Weights = dict[str, Tensor]
Method = Callable[[Task, Sequence[np.ndarray], Sequence[int]], tuple[Tensor, list[Trace]]]


def train(
    task: Task, windows: Sequence[np.ndarray], users: Sequence[int]
) -> tuple[np.ndarray, list[Trace]]:
    """Train K devices from the same received values and return their updates.

    Args:
        windows: for each device int64[n, T + 1], padded with 0; n may differ, and be 0.
        users: whose devices; a user's number names the stream of the order of examples.

    Returns:
        Updates float32[K, d] in the order of ``windows``, 0 for a device without a target, each
        times its :func:`token_weight`; and what a simulation may record of each device.
    """
    updates, traces = train_tensors(task, windows, users)
    return updates.cpu().numpy(), traces


def train_tensors(
    task: Task, windows: Sequence[np.ndarray], users: Sequence[int]
) -> tuple[Tensor, list[Trace]]:
    """Train as :func:`train` does, and leave the updates where they are made: (K, d)."""
    words = [_outside(own, task.payload) for own in windows]
    updates, traces = METHODS[task.training.method](task, words, users)
    if task.training.full_weight_tokens is None:
        return updates, traces
    weights = [token_weight(own, task.training) for own in windows]
    updates *= torch.tensor(weights, dtype=torch.float32, device=updates.device).unsqueeze(1)
    return updates, [
        replace(trace, update_norm=trace.update_norm * weight)
        for trace, weight in zip(traces, weights, strict=True)
    ]


def _backpropagate(
    task: Task, windows: Sequence[np.ndarray], users: Sequence[int]
) -> tuple[Tensor, list[Trace]]:
    """Train K devices by gradients; arguments and results are those of :func:`train_tensors`."""
    task, training = task.in_few_bits(), task.training
    schedule = Schedule(windows, training, task.seed, task.round, users)
    processor = task.parameters["embedding"].device
    received = torch.as_tensor(task.values, device=processor)
    now = received.expand(len(windows), -1)  # equal rows until the first step: products are shared
    trained = now.clone()  # (K, d)
    step = step_kind(task.spec, training.activations)(task)
    summed = torch.zeros(len(windows), dtype=torch.float64, device=processor)
    tokens = np.zeros(len(windows), np.int64)
    for number, batch in enumerate(schedule):
        active = len(batch.inputs)
        candidates = step.objective.draw(number)
        rate = training.learning_rate * training.decay**number
        together = now is not trained or processor.type != "cpu"
        for group in _side_by_side(active, task.payload.dim, together):
            part = Batch(*(each[group].to(processor) for each in batch))
            loss = step(part, now[group], trained[group], rate, candidates)
            summed[group] += loss.sum((1, 2))
        tokens[:active] += batch.weight.count_nonzero((1, 2)).numpy()
        now = trained
    updates = trained.sub_(received)
    lengths, losses = _lengths(updates), summed.cpu().numpy()
    place = np.argsort(schedule.order)  # from the order of work back to the caller's
    traces = [
        Trace(user, losses[k] / max(tokens[k], 1), int(tokens[k]), int(schedule.steps[k]), norm)
        for user, k, norm in zip(users, place, lengths[place].tolist(), strict=True)
    ]
    in_order = np.array_equal(place, np.arange(len(place)))
    return updates if in_order else updates[torch.from_numpy(place).to(processor)], traces


def _lengths(updates: Tensor) -> np.ndarray:
    """Return float64[K], the ℓ2 norm of each device's update, summed in float64."""
    if updates.device.type == "cpu":
        return norms(updates.numpy())
    return torch.linalg.vector_norm(updates, dim=1, dtype=torch.float64).cpu().numpy()


METHODS: dict[MethodName, Method] = {
    "backpropagation": _backpropagate,
    "zeroth_order": train_zeroth_order,
    "forward_only": train_forward_only,
}


def devices_at_once(
    spec: ModelSpec,
    payload: Payload,
    training: LocalTraining,
    processor: Processor = CPU,
) -> int:
    """Choose K, how many devices to train as one batch.

    More devices make the shared products larger and the count of operations smaller, until what
    they work on leaves the processor's cache, or the card's memory. A payload of millions of
    coordinates shares the first step only.
    """
    rows = training.batch_size * training.window
    inner = body_of(spec).kept_dim(spec)
    candidates = spec.vocabulary_size if payload.rows is None else len(payload.rows)
    candidates = LOSSES[training.loss].scored(candidates, training.negatives)
    work = rows * (spec.layers * (inner + 4 * spec.embedding_dim) + 2 * candidates)
    copies = 1 if training.gradient_clip is None else 2
    own = processor.own_bytes // (4 * copies * payload.whole_dim)
    return max(1, min(processor.most, own, processor.work_bytes // (4 * work)))


def _side_by_side(active: int, dim: int, together: bool) -> list[slice]:
    """Cut the devices at work into those that step together.

    While their values are alike all do, for they share the products, and on a card always. Later
    a device shares the frozen weights only; values that would push each other out of a
    processor's cache take turns.
    """
    width = active if together else max(1, CACHE_BYTES // (4 * dim))
    return [slice(start, min(start + width, active)) for start in range(0, active, width)]


def groups(sizes: Sequence[int], at_once: int) -> list[np.ndarray]:
    """Cut a cohort into groups of K devices of like size, so that little is padded.

    Args:
        sizes: windows of each device.

    Returns:
        Groups of positions in ``sizes``, largest devices first. Depends on the cohort alone.
    """
    order = np.argsort(-np.asarray(sizes), kind="stable")
    return [order[start : start + at_once] for start in range(0, len(order), at_once)]


def _outside(windows: np.ndarray, payload: Payload) -> np.ndarray:
    """Apply the payload's ``outside = "unk"``: words outside the round's rows become <unk>."""
    if payload.outside != "unk" or payload.rows is None:
        return windows
    return np.where(np.isin(windows, payload.rows), windows, UNK)
