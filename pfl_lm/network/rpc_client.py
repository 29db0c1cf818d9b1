"""A device's connection to the server: calls are authenticated, and retried while that helps."""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import grpc

from pfl_lm.network.identity import DeviceKey
from pfl_lm.network.transport import CHUNK_BYTES, SESSION, Message, messages, stub

log = logging.getLogger("pfl_lm.network")

_AGAIN = {
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
    grpc.StatusCode.CANCELLED,
    grpc.StatusCode.UNKNOWN,
}


_OTHER_SERVER = ("CERTIFICATE_VERIFY_FAILED", "Hostname Verification Check failed")
_TOO_LARGE = "Received message larger than max"  # gRPC's words; the code is that of a busy server
_LINE_SECONDS = 60.0  # between two lines about one wait


class DroppedFromRound(Exception):
    """The current round continues without this device; the next round may invite it again."""


@dataclass(frozen=True)
class RetryPolicy:
    """How long a device keeps trying.

    Attributes:
        first_seconds, most_seconds: the pause before a second try, doubled up to the largest; a
            random part of it is waited, so that a restarted server is not stormed.
        give_up_seconds: how long a server may stay away. One that says "wait" is not away.
        call_seconds: how long one call may last, more than the server holds a Fetch.
    """

    first_seconds: float = 0.2
    most_seconds: float = 10.0
    give_up_seconds: float = 600.0
    call_seconds: float = 60.0


class RpcClient:
    """A device's connection to the server.

    Every method may be called again with the same arguments: the server takes a message once.

    Args:
        server: digest of the server's TLS certificate, which the channel accepts alone.

    Raises:
        DroppedFromRound: by any method: the round goes on without this device.
        ValueError: the server refuses this device, with its reason, or it is another server.
        ConnectionError: the server stayed away for too long.
    """

    def __init__(
        self, channel: Any, key: DeviceKey, server: bytes, retry: RetryPolicy | None = None
    ) -> None:
        self._stub = stub(channel)
        self._key, self._server, self._retry = key, server, retry or RetryPolicy()
        self._token = b""
        self._task_config: str | None = None

    def task_config(self) -> str:
        """Return the server's task configuration as it was received, JSON.

        Raises:
            ValueError: also if a restarted server states another configuration than before.
        """
        if self._task_config is None:
            self._retried(self._authenticate)
        assert self._task_config is not None
        return self._task_config

    def fetch(self, round: int, step: int) -> Message:
        """Return the newest item after that one; an empty one if nothing has come for a while."""
        cursor = messages.Cursor(round=round, step=step)
        return self._retried(lambda: self._called(self._stub.Fetch, cursor))

    def send(self, round: int, frame: bytes, seen: int = 0) -> Message:
        """Hand in a message of the protocol, and wait for what comes next in the same call.

        Args:
            seen: the newest step of the round that the device needs no more; 0: do not wait.

        Returns:
            What ``fetch(round, seen)`` returns: an empty item if nothing has come for a while.
        """
        return self._retried(lambda: self._called(self._stub.Send, _parts(round, frame, seen)))

    def model(self, have: int, want: int, most_bytes: int) -> bytes:
        """Download what has changed since the model of round ``have`` (−1: all of it).

        Args:
            most_bytes: of the whole model; the device reads no more.
        """
        version = messages.Version(have=have, want=want)

        def download() -> bytes:
            values = bytearray()
            call = self._called(self._stub.Model, version)
            for chunk in call:
                values += chunk.values
                if len(values) > most_bytes:
                    call.cancel()
                    raise DroppedFromRound(
                        f"the server sends more than the {most_bytes:,} bytes that may come"
                    )
            return bytes(values)

        return self._retried(download)

    def _called(self, method: Any, request: Any) -> Any:
        if not self._token:
            self._authenticate()
        metadata = ((SESSION, self._token),)
        return method(request, timeout=self._retry.call_seconds, metadata=metadata)

    def _authenticate(self) -> None:
        seconds = self._retry.call_seconds
        request = messages.ChallengeRequest(device=self._key.number)
        nonce = self._stub.Challenge(request, timeout=seconds).nonce
        proof = messages.AuthenticateRequest(
            nonce=nonce,
            signature=self._key.prove(nonce, self._server),
            certificate=self._key.identity.certificate,
        )
        session = self._stub.Authenticate(proof, timeout=seconds)
        if self._task_config not in (None, session.task_config):
            raise ValueError("the server's task configuration has changed; restart the device")
        self._token, self._task_config = session.token, session.task_config

    def _retried(self, call: Callable[[], Any]) -> Any:
        retry = self._retry
        until, pause = time.monotonic() + retry.give_up_seconds, retry.first_seconds
        wait = _Wait(self._key.number)
        while True:
            try:
                answer = call()
                wait.over()
                return answer
            except grpc.RpcError as error:
                code, details = error.code(), error.details()
                if code is grpc.StatusCode.UNAUTHENTICATED:
                    self._token = b""
                elif code is grpc.StatusCode.FAILED_PRECONDITION:
                    raise DroppedFromRound(details) from None
                elif code not in _AGAIN or _TOO_LARGE in (details or ""):
                    raise ValueError(f"the server refuses: {details}") from None
                elif any(sign in (details or "") for sign in _OTHER_SERVER):
                    raise ValueError(
                        "the server shows another certificate than the one that this device "
                        f"holds, or is called by a name that is not in it: {details}"
                    ) from None
                if code is grpc.StatusCode.RESOURCE_EXHAUSTED:  # the server is there: it says so
                    until = time.monotonic() + retry.give_up_seconds
                if time.monotonic() > until:
                    raise ConnectionError(f"no server for a long time: {details}") from None
                if code is not grpc.StatusCode.UNAUTHENTICATED:  # a restarted server: no wait
                    wait.announce(until, details)
            time.sleep(pause * random.uniform(0.5, 1.0))
            pause = min(2 * pause, retry.most_seconds)


class _Wait:
    """Says at once that a device waits for the server and why, then once a minute."""

    def __init__(self, device: int) -> None:
        self._device, self._next = device, -float("inf")

    def announce(self, until: float, why: str) -> None:
        """Write a line, unless one was written a short while ago."""
        if (now := time.monotonic()) < self._next:
            return
        self._next = now + _LINE_SECONDS
        log.warning(
            "device %d waits for the server and tries again for up to %.0f s: %s",
            *(self._device, until - now, " ".join(why.split())[:200]),
        )

    def over(self) -> None:
        if self._next > 0:
            log.info("device %d waits no longer: the server answers", self._device)


def _parts(round: int, frame: bytes, seen: int) -> Iterator[Message]:
    """Cut a frame into the messages of one upload."""
    yield messages.Upload(round=round, size=len(frame), part=frame[:CHUNK_BYTES], seen=seen)
    for start in range(CHUNK_BYTES, len(frame), CHUNK_BYTES):
        yield messages.Upload(part=frame[start : start + CHUNK_BYTES])
