"""The door: who may come in, how often they may ask, and who is shown out.

A device proves with its enrolled key that it is itself and gets a token, which lives as long as
the server process. Mistakes cost strikes; with too many of them a device is shut out for a while.
Nothing here waits, and nothing grows with what strangers send.
"""

from __future__ import annotations

import logging
import os
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping

from pfl_lm.network.identity import check_proof
from pfl_lm.network.transport import Limits
from pfl_lm.secagg.errors import Refused

log = logging.getLogger("pfl_lm.network")

_NONCES = 10_000  # challenges that wait for an answer at most; the oldest is forgotten
_NONCE_SECONDS = 60.0
_NONCE_BYTES = TOKEN_BYTES = 32


class ShutOut(ValueError):
    """Somebody who may not come in; ``again`` tells whether another try could help."""

    def __init__(self, text: str, again: bool = False) -> None:
        self.again = again
        super().__init__(text)


class TooOften(ValueError):
    """More calls than the limits allow, of a device or (−1) of strangers."""

    def __init__(self, text: str, device: int = -1) -> None:
        self.device = device
        super().__init__(text)


class Door:
    """Sessions, their rate limits, and strikes.

    Args:
        identities: public key of every enrolled device.
        limits: how often is too often.
        clock: seconds that only rise.
    """

    def __init__(
        self,
        identities: Mapping[int, bytes],
        limits: Limits,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._identities, self._limits, self._clock = identities, limits, clock
        self._challenges: OrderedDict[bytes, tuple[int, float]] = OrderedDict()
        self._devices: dict[bytes, int] = {}  # by token
        self._tokens: dict[int, bytes] = {}  # by device: one session each
        self._strikes: dict[int, int] = {}
        self._shut_out: dict[int, float] = {}  # until when
        knocks = limits.knocks_per_second
        self._knocks = Bucket(10 * knocks, knocks, clock)
        self._buckets: dict[int, Bucket] = {}

    def challenge(self, device: int) -> bytes:
        """Return a fresh nonce for a device that knocks.

        Raises:
            TooOften: too many strangers at once.
            ShutOut: nobody enrolled under that number, or somebody with too many strikes.
        """
        if not self._knocks.take():
            raise TooOften("too many devices knock at once; wait")
        if device not in self._identities:
            raise ShutOut(f"no device {device} is enrolled")
        self._check_shut_out(device)
        nonce = os.urandom(_NONCE_BYTES)
        self._challenges[nonce] = (device, self._clock())
        if len(self._challenges) > _NONCES:
            self._challenges.popitem(last=False)
        return nonce

    def enter(self, nonce: bytes, signature: bytes) -> tuple[int, bytes]:
        """Return the device that signed the nonce, and its token; an older one ends.

        Raises:
            ShutOut: an unknown, used or stale nonce, or a signature that does not verify.
        """
        device, since = self._challenges.pop(nonce, (-1, 0.0))
        if device < 0 or self._clock() > since + _NONCE_SECONDS:
            raise ShutOut("that challenge is not open; knock again", again=True)
        try:
            check_proof(self._identities[device], device, nonce, signature)
        except Refused:
            # Whoever failed need not be that device: no strike, or strangers could shut it out.
            log.warning("somebody who is not device %d tried to enter in its name", device)
            raise ShutOut(f"the signature is not that of device {device}") from None
        self._devices.pop(self._tokens.pop(device, b""), None)
        token = os.urandom(TOKEN_BYTES)
        self._tokens[device], self._devices[token] = token, device
        limits = self._limits
        self._buckets.setdefault(device, Bucket(limits.burst, limits.calls_per_second, self._clock))
        return device, token

    def device(self, token: bytes, cost: int = 1) -> int:
        """Return whose token that is, and count the call as ``cost`` calls.

        Raises:
            ShutOut: nobody's (the server may have restarted), or somebody's with too many strikes.
            TooOften: more calls than its bucket holds.
        """
        device = self._devices.get(token, -1)
        if device < 0:
            raise ShutOut("no session has this token; knock again", again=True)
        self._check_shut_out(device)
        if not self._buckets[device].take(cost):
            raise TooOften(f"device {device} calls too often", device)
        return device

    def strike(self, device: int) -> None:
        """Count a mistake; after too many the device is shut out for a while."""
        count = self._strikes.get(device, 0) + 1
        self._strikes[device] = count
        if count >= self._limits.strikes:
            self._strikes[device] = 0
            self._shut_out[device] = self._clock() + self._limits.shut_out_seconds
            log.warning(
                "device %d is shut out for %.0f s after %d mistakes",
                *(device, self._limits.shut_out_seconds, count),
            )

    def _check_shut_out(self, device: int) -> None:
        if self._clock() < self._shut_out.get(device, 0.0):
            raise ShutOut(f"device {device} is shut out for a while: it made too many mistakes")


class Bucket:
    """A token bucket: ``burst`` calls at once, ``rate`` a second in the long run."""

    def __init__(self, burst: float, rate: float, clock: Callable[[], float]) -> None:
        self._burst, self._rate, self._clock = burst, rate, clock
        self._left, self._then = burst, clock()

    def take(self, cost: int = 1) -> bool:
        """Take that many calls out, if there are as many."""
        now = self._clock()
        self._left = min(self._burst, self._left + self._rate * (now - self._then))
        self._then = now
        if self._left < cost:
            return False
        self._left -= cost
        return True
