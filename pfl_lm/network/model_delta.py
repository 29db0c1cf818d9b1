"""The model's way to the devices: whole for a newcomer, else what has changed since.

Only coordinates that travelled can have moved, and which did is public. So a device that holds
the model of round ``have`` needs, for round ``want``, the present values of the coordinates in
the payloads of rounds have … want − 1, and both sides know which these are.
"""

from __future__ import annotations

import hashlib
import math
import struct
import threading
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import replace

import numpy as np
import torch

from pfl_lm.models.models import Parameters
from pfl_lm.network.task_config import TaskConfig
from pfl_lm.payload.layout import Payload, gather
from pfl_lm.run.context import RunContext, choose_payload

_VERSIONS = 16  # of which the changes are kept, of a round
_PIECE_BYTES = 1 << 17  # of a download: thousands of slow readers hold one each
_MOST_ROUNDS = 256  # a device that missed more of them gets the whole model


def changed(context: RunContext, have: int, want: int) -> Payload | None:
    """Return the coordinates that a device lacks; None where it lacks the whole model.

    Args:
        have: the round whose model the device holds, −1 for none.
        want: the round in which it is to train.
    """
    if not 0 <= have <= want <= have + _MOST_ROUNDS:
        return None
    if have == want:
        return Payload(want, (), np.empty(0, np.int64), np.empty(0), "frozen")
    payloads = [choose_payload(context, round) for round in range(have, want)]
    newest = payloads[-1]
    if newest.rows is None:
        return newest
    rows = np.unique(np.concatenate([payload.rows for payload in payloads]))
    segments, offset = [], 0
    for segment in newest.segments:
        if segment.rows is not None:
            shape = (len(rows), *segment.shape[1:])
            segment = replace(segment, shape=shape, rows=rows, size=int(np.prod(shape)))
        segments.append(replace(segment, offset=offset))
        offset += segment.size
    return Payload(want, tuple(segments), rows, None, newest.outside)


def values_for(context: RunContext, parameters: Parameters, have: int, want: int) -> bytes:
    """Return the values that a device lacks, float32, in the order in which it expects them."""
    lacking = changed(context, have, want)
    if lacking is None:
        return b"".join(_bytes(parameters[name]) for name in context.roles)
    return gather(parameters, lacking).astype("<f4").tobytes()


def apply(
    context: RunContext, parameters: Parameters, values: bytes, have: int, want: int
) -> Parameters:
    """Return the model of round ``want`` from that of round ``have`` and what was received.

    Raises:
        ValueError: not as many values as are lacking.
    """
    received = np.frombuffer(values, dtype="<f4").astype(np.float32)
    lacking = changed(context, have, want)
    if lacking is None:
        return _whole(context, received)
    if received.size != lacking.dim:
        raise ValueError(f"{received.size} values came where {lacking.dim} have changed")
    updated = dict(parameters)
    for segment in lacking.segments:
        part = received[segment.offset : segment.offset + segment.size].reshape(segment.shape)
        table = updated[segment.name].clone()
        table.numpy()[... if segment.rows is None else segment.rows] = part
        updated[segment.name] = table
    return updated


def model_bytes(context: RunContext) -> int:
    """Return the bytes of the whole model: more is no answer to any request."""
    return 4 * sum(_sizes(context).values())


def _sizes(context: RunContext) -> dict[str, int]:
    return {name: int(np.prod(role.shape)) for name, role in context.roles.items()}


def _whole(context: RunContext, received: np.ndarray) -> Parameters:
    sizes = _sizes(context)
    if received.size != sum(sizes.values()):
        raise ValueError(f"{received.size} values came, the model has {sum(sizes.values())}")
    parts = np.split(received, np.cumsum(list(sizes.values()))[:-1])
    return {
        name: torch.from_numpy(part.reshape(role.shape).copy())
        for (name, role), part in zip(context.roles.items(), parts, strict=True)
    }


class ModelCache:
    """The model of the current round, cut into pieces for each device that downloads it.

    A download copies one piece at a time from the model, so many downloads at once keep no copy of
    it. The cache keeps which coordinates changed since the last few versions that were asked for.
    """

    def __init__(self, context: RunContext) -> None:
        self._context = context
        self._parameters: Parameters = {}
        self._round = 0
        self._changed: OrderedDict[int, Payload | None] = OrderedDict()
        self._lock = threading.Lock()

    def put(self, round: int, parameters: Parameters) -> None:
        """Hold the model of a round."""
        with self._lock:
            self._parameters, self._round, self._changed = parameters, round, OrderedDict()

    def open(self, have: int) -> Iterator[bytes]:
        """Return what a device lacks that holds the model of round ``have``, in pieces."""
        with self._lock:
            if have not in self._changed:
                self._changed[have] = changed(self._context, have, self._round)
            lacking = self._changed[have]
            while len(self._changed) > _VERSIONS:
                self._changed.popitem(last=False)
            return _pieces(self._context, self._parameters, lacking)


def _pieces(
    context: RunContext, parameters: Parameters, lacking: Payload | None
) -> Iterator[bytes]:
    """Yield the bytes of ``values_for``, at most 128 KiB at a time, or a row that is longer."""
    waiting: list[bytes] = []
    for part in _parts(context, parameters, lacking):
        if waiting and sum(map(len, waiting)) + len(part) > _PIECE_BYTES:
            yield b"".join(waiting)
            waiting = []
        waiting.append(part)
    if waiting:
        yield b"".join(waiting)


def _parts(context: RunContext, parameters: Parameters, lacking: Payload | None) -> Iterator[bytes]:
    """Yield parts of tables, which may be short."""
    if lacking is None:
        parts: list[tuple[str, np.ndarray | None]] = [(name, None) for name in context.roles]
    else:
        parts = [(segment.name, segment.rows) for segment in lacking.segments]
    for name, rows in parts:
        table = parameters[name].contiguous().numpy()
        flat = table.reshape(-1) if rows is None else table.reshape(len(table), -1)
        step = max(1, _PIECE_BYTES // (4 * math.prod(flat.shape[1:])))
        for start in range(0, len(flat) if rows is None else len(rows), step):
            chosen = slice(start, start + step) if rows is None else rows[start : start + step]
            yield flat[chosen].astype("<f4").tobytes()


def model_digest(task_config: TaskConfig, parameters: Mapping[str, torch.Tensor]) -> bytes:
    """SHA-256 of the task configuration and every parameter, stored in ``RoundConfig.model``.

    A device with another configuration or another model derives other keys and masks.
    """
    digest = hashlib.sha256(b"pfl_lm network 2 model" + task_config.digest)
    for name in sorted(parameters):
        value = parameters[name]
        digest.update(struct.pack("<I", len(name)) + name.encode())
        digest.update(struct.pack("<Q", value.numel()) + _bytes(value))
    return digest.digest()


def _bytes(value: torch.Tensor) -> bytes:
    return value.contiguous().numpy().astype("<f4").tobytes()
