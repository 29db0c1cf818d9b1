"""The model's way to the devices: whole for a newcomer, else what has changed since.

Only coordinates that travelled can have moved, and which did is public. So a device that holds
the model of round ``have`` needs, for round ``want``, the present values of the coordinates in
the payloads of rounds have … want − 1, and both sides know which these are.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import torch

from pfl_lm.language.models import Parameters
from pfl_lm.network.terms import Terms
from pfl_lm.payload import Payload, gather
from pfl_lm.world import World, choose_payload

_MOST_ROUNDS = 256  # a device that missed more of them gets the whole model


def changed(world: World, have: int, want: int) -> Payload | None:
    """Return the coordinates that a device lacks; None where it lacks the whole model.

    Args:
        have: the round whose model the device holds, −1 for none.
        want: the round in which it is to train.
    """
    if not 0 <= have <= want <= have + _MOST_ROUNDS:
        return None
    if have == want:
        return Payload(want, (), np.empty(0, np.int64), np.empty(0), "frozen")
    payloads = [choose_payload(world, round) for round in range(have, want)]
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


def values_for(world: World, parameters: Parameters, have: int, want: int) -> bytes:
    """Return the values that a device lacks, float32, in the order in which it expects them."""
    lacking = changed(world, have, want)
    if lacking is None:
        return b"".join(_bytes(parameters[name]) for name in world.roles)
    return gather(parameters, lacking).astype("<f4").tobytes()


def apply(world: World, parameters: Parameters, values: bytes, have: int, want: int) -> Parameters:
    """Return the model of round ``want`` from that of round ``have`` and what was received.

    Raises:
        ValueError: not as many values as are lacking.
    """
    received = np.frombuffer(values, dtype="<f4").astype(np.float32)
    lacking = changed(world, have, want)
    if lacking is None:
        return _whole(world, received)
    if received.size != lacking.dim:
        raise ValueError(f"{received.size} values came where {lacking.dim} have changed")
    updated = dict(parameters)
    for segment in lacking.segments:
        part = received[segment.offset : segment.offset + segment.size].reshape(segment.shape)
        table = updated[segment.name].clone()
        table.numpy()[... if segment.rows is None else segment.rows] = part
        updated[segment.name] = table
    return updated


def _whole(world: World, received: np.ndarray) -> Parameters:
    sizes = {name: int(np.prod(role.shape)) for name, role in world.roles.items()}
    if received.size != sum(sizes.values()):
        raise ValueError(f"{received.size} values came, the model has {sum(sizes.values())}")
    parts = np.split(received, np.cumsum(list(sizes.values()))[:-1])
    return {
        name: torch.from_numpy(part.reshape(role.shape).copy())
        for (name, role), part in zip(world.roles.items(), parts, strict=True)
    }


class Shelf:
    """The model of the round under way, as the bytes that devices ask for; each made once."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._parameters: Parameters = {}
        self._round = 0
        self._made: dict[int, bytes] = {}

    def put(self, round: int, parameters: Parameters) -> None:
        """Hold the model of a round."""
        self._parameters, self._round, self._made = parameters, round, {}

    def values(self, have: int) -> bytes:
        """Return what a device lacks that holds the model of round ``have``."""
        if changed(self._world, have, self._round) is None:
            have = -1
        made = self._made
        if have not in made:
            made[have] = values_for(self._world, self._parameters, have, self._round)
        return made[have]


def model_digest(terms: Terms, parameters: Mapping[str, torch.Tensor]) -> bytes:
    """SHA-256 of the terms and of every parameter: what ``RoundConfig.model`` holds.

    Whoever was told other terms, or holds another model, derives other keys and masks.
    """
    digest = hashlib.sha256(b"pfl_lm network 1 model" + terms.digest)
    for name in sorted(parameters):
        value = parameters[name]
        digest.update(struct.pack("<I", len(name)) + name.encode())
        digest.update(struct.pack("<Q", value.numel()) + _bytes(value))
    return digest.digest()


def _bytes(value: torch.Tensor) -> bytes:
    return value.contiguous().numpy().astype("<f4").tobytes()
