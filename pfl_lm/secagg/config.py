"""One round's public description, and the digest that binds every byte of the round to it."""

from __future__ import annotations

import hashlib
import struct
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import IntEnum
from functools import cached_property

from pfl_lm.secagg.errors import Refused
from pfl_lm.secagg.parameters import Adversary, GraphParameters
from pfl_lm.secagg.ring import Ring
from pfl_lm.secagg.wire import LABEL

DIGEST_BYTES = 32
LEAST_COHORT = 3  # a device reports only where two others hide it


class MessageKind(IntEnum):
    """What a device sends in a round, in order."""

    KEYS = 1
    SHARES = 2
    INPUT = 3
    CONFIRMATION = 4
    ANSWER = 5


def sends(silent: Mapping[int, MessageKind], device: int, message: MessageKind) -> bool:
    """Whether a device sends a message; ``silent`` names the first that a device does not send."""
    return silent.get(device, MessageKind.ANSWER + 1) > message


_ENCODING = struct.Struct("<Q32s32sIIIIIIIIQBB")


@dataclass(frozen=True)
class RoundConfig:
    """What devices and server must agree on before a round.

    Args:
        round: number of the round.
        model: 32-byte digest of the model that was broadcast.
        payload: 32-byte digest of the payload: which coordinates travel.
        dim: entries of a report.
        bits: of the ring, 8 to 64.
        cohort: devices invited, n; their indices are 0 to n - 1.
        min_reports: the least number of reports that may be opened.
        graph: neighbours k, threshold t, and what the active server is held to.
        adversary: the server that the round withstands.
        noise_levels: removable noise components whose seeds are shared (0: none); see ``noise``.
        noise_step: dropouts that one component covers.

    Raises:
        ValueError: a number outside its range, or numbers that contradict one another.
    """

    round: int
    model: bytes
    payload: bytes
    dim: int
    bits: int
    cohort: int
    min_reports: int
    graph: GraphParameters
    adversary: Adversary = Adversary.SEMI_HONEST
    noise_levels: int = 0
    noise_step: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.round < 1 << 64:
            raise ValueError(f"round must fit 64 bits: {self.round}")
        for name in ("model", "payload"):
            if len(getattr(self, name)) != DIGEST_BYTES:
                raise ValueError(f"{name} must be a digest of {DIGEST_BYTES} bytes")
        if not 1 <= self.dim < 1 << 40:
            raise ValueError(f"dim must be from 1 to 2^40: {self.dim}")
        if not 3 <= self.cohort < 1 << 31:
            raise ValueError(f"cohort must be from 3 to 2^31 devices: {self.cohort}")
        if not 2 <= self.min_reports <= self.cohort:
            raise ValueError(f"min_reports must be from 2 to the cohort: {self.min_reports}")
        if not (0 <= self.noise_levels < 1 << 16 and 1 <= self.noise_step < 1 << 31):
            raise ValueError("noise_levels must be from 0 and noise_step from 1")
        tolerated = self.noise_levels * self.noise_step
        if self.noise_levels and self.cohort - self.min_reports > tolerated:
            raise ValueError(
                f"min_reports {self.min_reports} of {self.cohort} allows more dropouts than the "
                f"{tolerated} that the noise components cover"
            )
        self._check_graph()
        Ring(self.bits)

    def _check_graph(self) -> None:
        k, t = self.graph.neighbours, self.graph.threshold
        if not 2 <= k < self.cohort or (k % 2 and k != self.cohort - 1):
            raise ValueError(f"neighbours must be even and below the cohort, or all others: {k}")
        if not k < 2 * t <= 2 * self.holders:
            raise ValueError(f"threshold must exceed half of the {k} neighbours: {t}")
        if not 0 <= self.graph.corrupt < self.cohort:
            raise ValueError(f"corrupt must be below the cohort: {self.graph.corrupt}")
        if not 0 <= self.graph.window_survivors <= k // 2:
            raise ValueError(f"window_survivors must be at most k/2: {self.graph.window_survivors}")

    @property
    def ring(self) -> Ring:
        return Ring(self.bits)

    @property
    def holders(self) -> int:
        """Holders of each secret: the neighbours; in the complete graph the device itself too."""
        k = self.graph.neighbours
        return self.cohort if k == self.cohort - 1 else k

    @property
    def signed(self) -> bool:
        """Are keys and survivors signed?"""
        return self.adversary is Adversary.ACTIVE

    def quorum(self, members: int) -> int:
        """Signatures that make a survivor set unique: any two quorums share an honest device."""
        return (members + self.graph.corrupt) // 2 + 1

    def noise_level(self, reports: int) -> int:
        """Removable components that stay when ``reports`` were summed: those that dropouts ate."""
        return -(-(self.cohort - reports) // self.noise_step)

    @cached_property
    def context(self) -> bytes:
        """SHA-256 over the canonical encoding of every field: the salt of every key.

        Devices that were told different rounds, models, payloads or configurations derive
        different masks, which do not cancel, and cannot open each other's shares.
        """
        adversaries = list(Adversary)
        encoded = _ENCODING.pack(
            self.round,
            self.model,
            self.payload,
            self.cohort,
            self.min_reports,
            self.graph.neighbours,
            self.graph.threshold,
            self.graph.corrupt,
            self.graph.window_survivors,
            self.noise_levels,
            self.noise_step,
            self.dim,
            self.bits,
            adversaries.index(self.adversary),
        )
        return hashlib.sha256(LABEL + b"context" + encoded).digest()


@dataclass(frozen=True)
class DevicePolicy:
    """What a device insists on, whatever a server proposes; it ships with the app.

    Args:
        least_reports: no sum of fewer reports is opened with this device in it.
        least_cohort: devices that must have advertised keys.
        least_neighbours: neighbours in the graph (all others, in a smaller cohort).
        adversary: the weakest server that the device accepts to be protected against.
        authority: Ed25519 public key, 32 bytes, that certifies identities; needed against the
            active server.
        clock: seconds since 1970, for the dates of certificates.
    """

    least_reports: int
    least_cohort: int
    least_neighbours: int
    adversary: Adversary = Adversary.SEMI_HONEST
    authority: bytes | None = None
    clock: Callable[[], float] = time.time

    def check(self, config: RoundConfig) -> None:
        """Refuse a round that promises less than this policy.

        Raises:
            Refused: naming what the server would have to change.
        """
        if config.min_reports < self.least_reports:
            raise Refused(f"min_reports is {config.min_reports}, below {self.least_reports}")
        if config.cohort < self.least_cohort:
            raise Refused(f"the cohort is {config.cohort}, below {self.least_cohort}")
        if config.graph.neighbours < min(self.least_neighbours, config.cohort - 1):
            raise Refused(
                f"{config.graph.neighbours} neighbours are fewer than {self.least_neighbours}"
            )
        if self.adversary is Adversary.ACTIVE and not config.signed:
            raise Refused("this device takes part only with signed keys and survivors")
        if config.signed and self.authority is None:
            raise Refused("signed rounds need the authority's public key in the device's policy")
