"""Answers of the kinds about messages and about the device's states."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from pfl_lm.conformance.plain import bytes_of, config_of, indexed_hexes, policy_of
from pfl_lm.dp.noise import skellam_from_seed
from pfl_lm.secagg import messages
from pfl_lm.secagg.device import KeysAdvertised
from pfl_lm.secagg.keys import Identity
from pfl_lm.secagg.noise import NoisePlan, RemovableNoise

Inputs = Mapping[str, Any]
MESSAGES: dict[int, type[messages.Message]] = {
    message.kind: message
    for message in (
        messages.AdvertiseKeys,
        messages.Roster,
        messages.ShareKeys,
        messages.ShareInbox,
        messages.MaskedInput,
        messages.SurvivorSet,
        messages.Confirmation,
        messages.UnmaskRequest,
        messages.UnmaskAnswer,
    )
}


class Tape:
    """Entropy from a string of bytes, front to back."""

    def __init__(self, content: bytes) -> None:
        self._content, self._at = content, 0

    def __call__(self, count: int) -> bytes:
        self._at += count
        assert self._at <= len(self._content), "the vector's entropy is too short"
        return self._content[self._at - count : self._at]


def _read_message(inputs: Inputs) -> dict[str, Any]:
    config, (frame,) = config_of(inputs["config"]), bytes_of(inputs, "frame")
    content = MESSAGES[inputs["kind"]].decode(frame, config, inputs["sender"])
    return {"fields": _fields(content, config)}


def _fields(content: Any, config: Any) -> dict[str, Any]:
    """Write a message's fields: bytes as hexadecimal, sets as lists, records by index."""
    written: dict[str, Any] = {}
    for name, value in vars(content).items():
        if isinstance(value, bytes | memoryview):
            written[name] = value.hex()
        elif isinstance(value, frozenset):
            written[name] = sorted(value)
        elif isinstance(value, messages.SurvivorSet):
            written |= _fields(value, config)
        elif isinstance(value, Mapping):
            bodies = {i: v if isinstance(v, bytes) else v.body(config) for i, v in value.items()}
            written[name] = indexed_hexes(bodies)
        elif value is not None:
            written[name] = value
    return written


def _device(inputs: Inputs) -> dict[str, Any]:
    """Play one device: its messages, up to the last call."""
    config = config_of(inputs["config"])
    removable = None
    if inputs["variance"] is not None:
        removable = RemovableNoise(NoisePlan.of(config, inputs["variance"]), skellam_from_seed)
    vector = np.array([int(entry) for entry in inputs["vector"]], dtype=np.int64)
    state = _join(inputs, config)
    states = {"join": state}
    sent = [state.message]
    for call in inputs["calls"]:
        method = getattr(states[call["of"]], call["call"])
        message = bytes.fromhex(call["message"])
        extra = (vector, removable) if call["call"] == "mask_input" else ()
        states[call["call"]] = state = method(message, *extra)
        sent.append(state.message)
    return {"messages": [message.hex() for message in sent]}


def _join(inputs: Inputs, config: Any) -> Any:
    identity = inputs["identity"]
    held = Identity(*bytes_of(identity, "secret", "certificate")) if identity else None
    entropy, policy = Tape(bytes.fromhex(inputs["entropy"])), policy_of(inputs["policy"])
    return KeysAdvertised.join(config, inputs["index"], policy, held, entropy)


KINDS: dict[str, Callable[[Inputs], dict[str, Any]]] = {
    "read_message": _read_message,
    "device": _device,
}
