"""A front end's backend: every question goes to the process that holds the round."""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from pfl_lm.network.front_ends.wire import Wire, refusal_of
from pfl_lm.network.refusals import NotNow
from pfl_lm.network.transport import Message, messages

_GONE = "the server stops or starts again; call again"


class RemoteBackend:
    """The round, in another process; ``backend.Backend`` says what the methods mean.

    Raises:
        ConnectionError: from every method: that process is gone.
    """

    def __init__(self, wire: Wire) -> None:
        self.wire = wire
        self._numbers = itertools.count()
        self._waiting: dict[int, asyncio.Future[tuple[Any, bytes]]] = {}
        self._gone = False
        self.stopped: asyncio.Future[float | None] = asyncio.get_running_loop().create_future()

    async def read(self) -> None:
        """Take in answers until the process that holds the round is gone.

        ``stopped`` is set when that process asks to stop, to the seconds that calls under way get,
        and to None when it is gone.
        """
        while (frame := await self.wire.read()) is not None:
            (number, *said), body = frame
            if number == "stop":
                self._stop(said[0])
            elif (future := self._waiting.pop(number, None)) is not None and not future.done():
                if len(said) == 1:
                    future.set_result((said[0], body))
                else:
                    future.set_exception(refusal_of(*said))
        self._gone = True
        for future in self._waiting.values():
            if not future.done():
                future.set_exception(ConnectionError(_GONE))
        self._stop(None)

    def _stop(self, grace: float | None) -> None:
        if not self.stopped.done():
            self.stopped.set_result(grace)

    async def challenge(self, device: int) -> bytes:
        return (await self.ask("challenge", device))[1]

    async def authenticate(self, nonce: bytes, signature: bytes, certificate: bytes) -> bytes:
        sizes = len(nonce), len(signature)
        return (await self.ask("authenticate", *sizes, body=nonce + signature + certificate))[1]

    @asynccontextmanager
    async def call(
        self, token: bytes, cost: int = 1, sends: bool = False
    ) -> AsyncIterator[_RemoteCall]:
        number = next(self._numbers)
        try:
            await self.ask("enter", number, cost, sends, body=token)
            yield _RemoteCall(self, number)
        finally:
            self.wire.write(["leave", number])

    async def ask(self, method: str, *values: Any, body: bytes = b"") -> tuple[Any, bytes]:
        """Ask the round, and return a value and bytes."""
        if self._gone:
            raise ConnectionError(_GONE)
        number = next(self._numbers)
        answer = self._waiting[number] = asyncio.get_running_loop().create_future()
        try:
            self.wire.write([method, number, *values], body)
            await self.wire.drain()
            return await answer
        except asyncio.CancelledError:
            self.wire.write(["cancel", number])
            raise
        finally:
            self._waiting.pop(number, None)


class _RemoteCall:
    def __init__(self, backend: RemoteBackend, number: int) -> None:
        self._backend, self._number = backend, number

    async def check_turn(self, round: int) -> None:
        await self._backend.ask("check_turn", self._number, round)

    async def send(self, round: int, frame: bytes) -> None:
        await self._backend.ask("send", self._number, round, body=frame)

    async def fetch(self, round: int, step: int, spent: float = 0.0) -> Message:
        _, item = await self._backend.ask("fetch", self._number, round, step, spent)
        return messages.Item.FromString(item)

    async def misbehaves(self, text: str) -> NotNow:
        return NotNow((await self._backend.ask("misbehaves", self._number, text))[0])

    async def download(self, want: int, have: int) -> AsyncIterator[bytes]:
        _, piece = await self._backend.ask("download", self._number, want, have)
        while piece:
            yield piece
            _, piece = await self._backend.ask("piece", self._number)


class LogHandler(logging.Handler):
    """Sends a front end's lines to the process that holds the round, which logs them."""

    def __init__(self, wire: Wire) -> None:
        super().__init__()
        self._wire = wire

    def emit(self, record: logging.LogRecord) -> None:
        self._wire.write(["log", record.levelno, record.getMessage()])
