"""Admission of devices: challenges, sessions, call budgets, and suspension after mistakes.

A device proves its identity with its enrolled key and gets a token, which is valid until the
server process ends. A device that calls too often must wait; mistakes cost strikes, and too many
strikes suspend the device for a while. Callers without a token share a small pool of open calls.
Nothing here grows with what strangers send: a challenge carries its own proof of origin.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import os
import struct
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

from pfl_lm.network.exclusions import Exclusions
from pfl_lm.network.identity import Credentials
from pfl_lm.network.refusals import CalledOn, NotAdmitted, TooOften
from pfl_lm.network.transport import Limits
from pfl_lm.secagg.errors import Refused

log = logging.getLogger("pfl_lm.network")

TOKEN_BYTES = 32
_NONCE_SECONDS = 60.0
_NONCE = struct.Struct("<dI4s")  # when it was made, for which device, random bytes; then 16 of MAC
_WAITS = 10  # bursts of calls that a device may make while it was told to wait
_LINES_PER_MINUTE = 20.0


class Admission:
    """Sessions, call budgets, and strikes.

    Args:
        credentials: what proofs of devices are held against.
        limits: how often is too often.
        exclusions: who is left out of the run.
        clock: seconds that only rise.

    Guarantees:
        A device's budget is spent by its own calls alone: strangers, whatever number they claim,
        cannot spend it, cannot strike it, and cannot make the server forget its challenge.
    """

    def __init__(
        self,
        credentials: Credentials,
        limits: Limits,
        exclusions: Exclusions,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._credentials, self._limits, self._clock = credentials, limits, clock
        self._exclusions = exclusions
        self._secret = os.urandom(32)
        self._used: dict[bytes, float] = {}  # nonces that opened a session, by age
        self._devices: dict[bytes, int] = {}  # by token
        self._tokens: dict[int, bytes] = {}  # by device: one session each
        self._strikes: dict[int, Bucket] = {}  # mistakes that are left before a suspension
        self._suspended: dict[int, float] = {}  # until when
        self._buckets: dict[int, Bucket] = {}
        self._waits: dict[int, Bucket] = {}  # calls made while the bucket was empty
        self._open: dict[int, int] = {}  # calls under way
        self._lines = Bucket(_LINES_PER_MINUTE, _LINES_PER_MINUTE / 60, clock)

    def challenge(self, device: int) -> bytes:
        """Return a fresh nonce for a device to sign; nothing is kept of it.

        Raises:
            NotAdmitted: no device has that number, or it is left out.
            TooOften: it is suspended.
        """
        if device not in self._credentials.identities:
            raise NotAdmitted(f"no device {device} is enrolled")
        self._check_welcome(device)
        content = _NONCE.pack(self._clock(), device, os.urandom(4))
        return content + self._mac(content)

    def authenticate(self, nonce: bytes, signature: bytes, certificate: bytes) -> tuple[int, bytes]:
        """Return the device that signed the nonce, and its token; an older one ends.

        Raises:
            NotAdmitted: an unknown, used or stale nonce, a signature that does not verify or that
                was made for a server with another certificate, a certificate of the device that
                is not valid now, or a device that is left out.
            TooOften: the device opens sessions too often, or is suspended.
        """
        device = self._challenged(nonce)
        try:
            self._credentials.check_signature(device, nonce, signature)
        except Refused:
            # The caller need not be that device: a strike would let strangers suspend it.
            if self._lines.take():
                log.warning("a caller without its key tried to authenticate as device %d", device)
            raise NotAdmitted(
                f"the signature is not that of device {device}, or it was made for a server with "
                "another certificate"
            ) from None
        try:
            self._credentials.check_certificate(device, certificate)
        except Refused as error:
            raise NotAdmitted(f"device {device}: {error}") from None
        self._check_welcome(device)
        self._spend(device, 1)
        self._forget_stale(now := self._clock())
        self._used[nonce] = now + _NONCE_SECONDS
        self._devices.pop(self._tokens.pop(device, b""), None)
        token = os.urandom(TOKEN_BYTES)
        self._tokens[device], self._devices[token] = token, device
        return device, token

    def _forget_stale(self, now: float) -> None:
        """Forget used nonces that no longer open a session anyway, the oldest first."""
        while self._used:
            oldest, until = next(iter(self._used.items()))
            if now < until:
                return
            del self._used[oldest]

    @contextmanager
    def call(self, token: bytes, cost: int = 1) -> Iterator[int]:
        """Admit one call of the device that holds a token, and count it as ``cost`` calls.

        Raises:
            NotAdmitted: no session has the token (the server may have restarted), or the device
                is left out.
            TooOften: more calls than its budget holds, or too many at once, or the device is
                suspended; ``CalledOn`` if this call is what it is suspended for.
        """
        device = self._devices.get(token, -1)
        if device < 0:
            raise NotAdmitted("no session has this token; authenticate again", again=True)
        self._check_welcome(device)
        self._spend(device, cost)
        count = self._open.get(device, 0)
        if count >= self._limits.calls_at_once:
            raise TooOften(f"device {device} has {count} calls open; wait")
        self._open[device] = count + 1
        try:
            yield device
        finally:
            self._open[device] -= 1

    def grant_round(self, devices: Iterable[int]) -> None:
        """Add the calls of one round to the budget of each invited device."""
        for device in devices:
            self._bucket(device).add(self._limits.round_calls)

    def strike(self, device: int) -> None:
        """Count a mistake, which time forgets; after too many the device is suspended a while."""
        limits = self._limits
        left = self._strikes.setdefault(
            device, Bucket(limits.strikes - 1, 1 / limits.strike_seconds, self._clock)
        )
        if not left.take():
            self._suspend(device, f"{limits.strikes} mistakes")

    def _suspend(self, device: int, reason: str) -> None:
        self._strikes.pop(device, None)
        self._suspended[device] = self._clock() + self._limits.suspension_seconds
        log.warning(
            "device %d is suspended for %.0f s after %s",
            *(device, self._limits.suspension_seconds, reason),
        )

    def _check_welcome(self, device: int) -> None:
        if (reason := self._exclusions.reason(device)) is not None:
            raise NotAdmitted(f"device {device} is left out of this run: {reason}")
        if (left := self._suspended.get(device, 0.0) - self._clock()) > 0:
            raise TooOften(
                f"device {device} is suspended for {left:.0f} s more, after too many mistakes or "
                "calls; wait"
            )

    def _spend(self, device: int, cost: int) -> None:
        """Take calls out of a device's budget, or tell it to wait; one that never waits is out."""
        if self._bucket(device).take(cost):
            return
        limits = self._limits
        waits = self._waits.setdefault(
            device, Bucket(_WAITS * limits.burst, limits.calls_per_second, self._clock)
        )
        if not waits.take():
            self._suspend(device, "calls without a wait")
            raise CalledOn(device)
        raise TooOften(f"device {device} calls too often; wait")

    def _bucket(self, device: int) -> Bucket:
        limits = self._limits
        return self._buckets.setdefault(
            device, Bucket(limits.burst, limits.calls_per_second, self._clock)
        )

    def _challenged(self, nonce: bytes) -> int:
        """Return the device that a nonce of this server was made for."""
        content, mac = nonce[: _NONCE.size], nonce[_NONCE.size :]
        if len(content) == _NONCE.size and hmac.compare_digest(self._mac(content), mac):
            made, device, _ = _NONCE.unpack(content)
            if nonce not in self._used and self._clock() <= made + _NONCE_SECONDS:
                return int(device)
        raise NotAdmitted("that challenge is not open; authenticate again", again=True)

    def _mac(self, content: bytes) -> bytes:
        return hmac.digest(self._secret, content, hashlib.sha256)[:16]


class Bucket:
    """A token bucket: ``burst`` calls at once, ``rate`` a second in the long run."""

    def __init__(self, burst: float, rate: float, clock: Callable[[], float]) -> None:
        self._burst, self._rate, self._clock = burst, rate, clock
        self._left, self._then = burst, clock()

    def take(self, cost: int = 1) -> bool:
        """Take that many calls out, if there are as many."""
        self._refill()
        if self._left < cost:
            return False
        self._left -= cost
        return True

    def add(self, calls: int) -> None:
        """Put calls in; the bucket holds at most ``burst + calls`` afterwards."""
        self._refill()
        self._left = min(self._burst + calls, self._left + calls)

    def _refill(self) -> None:
        now = self._clock()
        if self._left < self._burst:
            self._left = min(self._burst, self._left + self._rate * (now - self._then))
        self._then = now
