"""Rounds with fixed entropy, played between the reference's devices and its server.

What every device was told and what it sent is written down, so that each
device's part can be played again by another implementation.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from pfl_lm.conformance.device_answers import Tape
from pfl_lm.conformance.plain import plain_config, policy_of
from pfl_lm.dp.noise import skellam_from_seed
from pfl_lm.secagg.config import MessageKind, RoundConfig, sends
from pfl_lm.secagg.device import KeysAdvertised
from pfl_lm.secagg.keys import Identity, Validity, certify, public_key
from pfl_lm.secagg.noise import NoisePlan, RemovableNoise
from pfl_lm.secagg.opening import OpenedRound
from pfl_lm.secagg.parameters import Adversary, GraphParameters
from pfl_lm.secagg.server import CollectingKeys

NOW = 1_800_000_000  # seconds since 1970: when the vectors' rounds take place
VALIDITY = Validity(NOW - 86_400, NOW + 86_400)
_ENTROPY_BYTES = 512  # more than a device of these rounds draws


def fixed(label: str, count: int = 32) -> bytes:
    """Return bytes that follow from a label: SHAKE-256 of it."""
    return hashlib.shake_256(f"pfl_lm vectors {label}".encode()).digest(count)


AUTHORITY_SECRET = fixed("authority")


def small_config(**changes: Any) -> RoundConfig:
    """A round of five, the complete graph, three shares recover a secret."""
    plain = RoundConfig(
        round=7,
        model=fixed("model"),
        payload=fixed("payload"),
        dim=11,
        bits=20,
        cohort=5,
        min_reports=3,
        graph=GraphParameters(4, 3, 0),
    )
    return replace(plain, **changes)


def signed_config(**changes: Any) -> RoundConfig:
    """Return a small round whose messages are signed: its server may be active."""
    return small_config(adversary=Adversary.ACTIVE, **changes)


@dataclass
class PlayedRound:
    """What was played: by device the inputs and messages of its ``device`` vector."""

    config: RoundConfig
    inputs: dict[int, dict[str, Any]]
    sent: dict[int, list[str]]
    vectors: dict[int, np.ndarray]
    opened: OpenedRound
    inboxes: Mapping[int, bytes] = field(default_factory=dict)


def identity_of(device: int) -> Identity:
    """Return the identity that the vectors' authority gives a device."""
    return certify(AUTHORITY_SECRET, fixed(f"identity {device}"), VALIDITY)


Ask = Callable[[Mapping[str, Any]], str]
"""``ask(inputs of a device vector) -> hexadecimal of the device's last message``"""


def play(
    config: RoundConfig,
    silent: Mapping[int, MessageKind] | None = None,
    variance: float | None = None,
    vectors: Mapping[int, np.ndarray] | None = None,
    foreign: Mapping[int, Ask] | None = None,
) -> PlayedRound:
    """Play a round to its end.

    Args:
        silent: device → the first message that it does not send.
        variance: of the noise on the sum, where devices add removable components.
        vectors: device → what it reports, int64 (dim,); small integers where it is left out.
        foreign: the devices that another implementation plays; it is asked after every call for
            all that the device did up to then.
    """
    return _Player(config, dict(silent or {}), variance, vectors, foreign).play()


class _Player:
    def __init__(
        self,
        config: RoundConfig,
        silent: dict[int, MessageKind],
        variance: float | None,
        vectors: Mapping[int, np.ndarray] | None,
        foreign: Mapping[int, Ask] | None,
    ) -> None:
        self.config, self.silent, self.foreign = config, silent, dict(foreign or {})
        self.server: Any = None
        self.noise = None
        if variance is not None:
            self.noise = RemovableNoise(NoisePlan.of(config, variance), skellam_from_seed)
        self.vectors = {i: _vector(i, config.dim) for i in range(config.cohort)} | dict(
            vectors or {}
        )
        self.inputs = {i: self._inputs(i, variance) for i in range(config.cohort)}
        self.states: dict[int, Any] = {i: self._join(i) for i in range(config.cohort)}
        self.sent = {i: [state.message.hex()] for i, state in self.states.items()}
        self.last = dict.fromkeys(self.states, "join")

    def _inputs(self, device: int, variance: float | None) -> dict[str, Any]:
        identity = identity_of(device)
        signed = {"secret": identity.secret.hex(), "certificate": identity.certificate.hex()}
        return {
            "config": plain_config(self.config),
            "index": device,
            "policy": {
                "least_reports": 3,
                "least_cohort": 3,
                "least_neighbours": 2,
                "adversary": self.config.adversary.value,
                "authority": public_key(AUTHORITY_SECRET).hex() if self.config.signed else None,
                "now": NOW,
            },
            "identity": signed if self.config.signed else None,
            "entropy": fixed(f"device {device}", _ENTROPY_BYTES).hex(),
            "vector": [str(entry) for entry in self.vectors[device].tolist()],
            "variance": variance,
            "calls": [],
        }

    def _join(self, device: int) -> Any:
        inputs = self.inputs[device]
        if device in self.foreign:
            return _Sent.by(self.foreign[device], inputs)
        identity = identity_of(device) if self.config.signed else None
        entropy = Tape(bytes.fromhex(inputs["entropy"]))
        return KeysAdvertised.join(
            self.config, device, policy_of(inputs["policy"]), identity, entropy
        )

    def _deliver(self, kind: MessageKind) -> dict[int, bytes]:
        """Carry what devices send; return what the server tells them."""
        for device, state in self.states.items():
            if sends(self.silent, device, kind):
                self.server.receive(device, state.message)
        if kind is MessageKind.ANSWER:
            return {}
        self.server, told = self.server.close()
        return dict(told)

    def _call(self, name: str, told: Mapping[int, bytes]) -> None:
        """Let every device that was told something go one state further."""
        states = {}
        for device, message in told.items():
            inputs = self.inputs[device]
            call = {"of": self.last[device], "call": name, "message": message.hex()}
            inputs["calls"].append(call)
            if device in self.foreign:
                states[device] = _Sent.by(self.foreign[device], inputs)
            else:
                method = getattr(self.states[device], name)
                extra = (self.vectors[device], self.noise) if name == "mask_input" else ()
                states[device] = method(message, *extra)
            self.last[device] = name
            self.sent[device].append(states[device].message.hex())
        self.states = states

    def play(self) -> PlayedRound:
        authority = public_key(AUTHORITY_SECRET) if self.config.signed else None
        tape = Tape(fixed("server", 64))
        self.server = CollectingKeys(self.config, None, authority, tape, lambda: float(NOW))
        self._call("share_keys", self._deliver(MessageKind.KEYS))
        inboxes = self._deliver(MessageKind.SHARES)
        self._call("mask_input", inboxes)
        told = self._deliver(MessageKind.INPUT)
        if self.config.signed:
            self._call("confirm", told)
            told = self._deliver(MessageKind.CONFIRMATION)
        self._call("unmask", told)
        self._deliver(MessageKind.ANSWER)
        opened = self.server.close()
        return PlayedRound(self.config, self.inputs, self.sent, self.vectors, opened, inboxes)


@dataclass(frozen=True)
class _Sent:
    """What another implementation's device sends in a state."""

    message: bytes

    @classmethod
    def by(cls, ask: Ask, inputs: Mapping[str, Any]) -> _Sent:
        return cls(bytes.fromhex(ask(inputs)))


def _vector(device: int, dim: int) -> np.ndarray:
    """Small integers of both signs."""
    drawn = np.frombuffer(fixed(f"vector {device}", dim), dtype=np.int8)
    return drawn.astype(np.int64)
