"""The device's calls: authenticated, retried while that can help, given up when it cannot."""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import grpc

from pfl_lm.network.identity import DeviceKey
from pfl_lm.network.transport import SESSION, Message, messages, stub

log = logging.getLogger("pfl_lm.network")

_AGAIN = {
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
    grpc.StatusCode.CANCELLED,
    grpc.StatusCode.UNKNOWN,
}


class LeftOut(Exception):
    """This round goes on without this device; the next one may not."""


@dataclass(frozen=True)
class Patience:
    """How long a device keeps trying.

    Attributes:
        first_seconds, most_seconds: the pause before a second try, doubled up to the largest; a
            random part of it is waited, so that a restarted server is not stormed.
        give_up_seconds: how long a server may stay away.
        call_seconds: how long one call may last, more than the server holds a Fetch.
    """

    first_seconds: float = 0.2
    most_seconds: float = 10.0
    give_up_seconds: float = 600.0
    call_seconds: float = 60.0


class Caller:
    """A device's line to the server.

    Every method may be called again with the same arguments: the server takes a message once.

    Raises:
        LeftOut: by any method: the round goes on without this device.
        ValueError: the server does not want this device at all, and why.
        ConnectionError: the server stayed away for too long.
    """

    def __init__(self, channel: Any, key: DeviceKey, patience: Patience | None = None) -> None:
        self._stub = stub(channel)
        self._key, self._patience = key, patience or Patience()
        self._token = b""
        self._terms: str | None = None

    def terms(self) -> str:
        """Return what the server trains, as it states it.

        Raises:
            ValueError: also if a restarted server states something else than before.
        """
        if self._terms is None:
            self._retried(self._enter)
        assert self._terms is not None
        return self._terms

    def fetch(self, round: int, step: int) -> Message:
        """Return the newest item after that one; an empty one if nothing has come for a while."""
        cursor = messages.Cursor(round=round, step=step)
        return self._retried(lambda: self._called(self._stub.Fetch, cursor))

    def send(self, round: int, frame: bytes) -> None:
        """Hand in a message of the protocol."""
        upload = messages.Upload(round=round, frame=frame)
        self._retried(lambda: self._called(self._stub.Send, upload))

    def model(self, have: int, want: int) -> bytes:
        """Download what has changed since the model of round ``have`` (−1: all of it)."""
        version = messages.Version(have=have, want=want)

        def download() -> bytes:
            return b"".join(chunk.values for chunk in self._called(self._stub.Model, version))

        return self._retried(download)

    def _called(self, method: Any, request: Message) -> Any:
        if not self._token:
            self._enter()
        metadata = ((SESSION, self._token),)
        return method(request, timeout=self._patience.call_seconds, metadata=metadata)

    def _enter(self) -> None:
        seconds = self._patience.call_seconds
        visitor = messages.Visitor(device=self._key.number)
        nonce = self._stub.Knock(visitor, timeout=seconds).nonce
        proof = messages.Proof(nonce=nonce, signature=self._key.prove(nonce))
        session = self._stub.Enter(proof, timeout=seconds)
        if self._terms not in (None, session.terms):
            raise ValueError("the server's terms have changed since this device began; start anew")
        self._token, self._terms = session.token, session.terms

    def _retried(self, call: Callable[[], Any]) -> Any:
        patience = self._patience
        until, pause = time.monotonic() + patience.give_up_seconds, patience.first_seconds
        while True:
            try:
                return call()
            except grpc.RpcError as error:
                code, details = error.code(), error.details()
                if code is grpc.StatusCode.UNAUTHENTICATED:
                    self._token = b""
                elif code is grpc.StatusCode.FAILED_PRECONDITION:
                    raise LeftOut(details) from None
                elif code not in _AGAIN:
                    raise ValueError(f"the server refuses: {details}") from None
                if time.monotonic() > until:
                    raise ConnectionError(f"no server for a long time: {details}") from None
                log.debug("device %d tries again: %s", self._key.number, details)
            time.sleep(pause * random.uniform(0.5, 1.0))
            pause = min(2 * pause, patience.most_seconds)
