"""The round's side of the conversation with one front end."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any, ClassVar

from pfl_lm.network.backend import Backend, Call
from pfl_lm.network.front_ends.wire import Wire, refusal_values
from pfl_lm.network.refusals import NotAdmitted, NotNow, TooOften

log = logging.getLogger("pfl_lm.network")

_PIECES = ("download", "piece")
_LONG = ("fetch", *_PIECES)  # they wait; what follows them does not wait for them


class Answers:
    """Answers what a front end asks, and ends its calls when it is gone.

    Args:
        ready: called with the front end's port, once it listens, or with why it does not.
    """

    def __init__(self, backend: Backend, wire: Wire, ready: Callable[[int | str], None]) -> None:
        self._backend, self._wire, self._ready = backend, wire, ready
        self._calls: dict[int, _Entered] = {}
        self._tasks: dict[int, asyncio.Task[None]] = {}  # by request
        self._turn = asyncio.Lock()  # who gives the front end much

    async def run(self) -> None:
        """Answer until the front end is gone."""
        try:
            while (frame := await self._wire.read()) is not None:
                (kind, *about), body = frame
                await self._take(kind, about, body)
        finally:
            self._wire.close()
            for task in self._tasks.values():
                task.cancel()
            for call in self._calls.values():
                await call.stack.aclose()

    async def _take(self, kind: str, about: list[Any], body: bytes) -> None:
        if kind == "leave":
            if (call := self._calls.pop(about[0], None)) is not None:
                await call.stack.aclose()
        elif kind == "cancel":
            if (task := self._tasks.get(about[0])) is not None:
                task.cancel()
        elif kind == "log":
            log.log(int(about[0]), "%s", about[1])
        elif kind == "ready":
            self._ready(about[0])
        elif kind in _LONG:
            number = about[0]
            task = asyncio.create_task(self._answer_long(kind, about, body))
            self._tasks[number] = task
            task.add_done_callback(lambda _: self._tasks.pop(number, None))
        else:
            self._wire.write(*await self._answer(kind, about, body))

    async def _answer_long(self, kind: str, about: list[Any], body: bytes) -> None:
        """Answer when the front end has read what others were answered before.

        So little waits to be sent to a slow one: one answer, and of the model one piece.
        """
        answer = None if kind in _PIECES else await self._answer(kind, about, body)
        async with self._turn:
            self._wire.write(*answer or await self._answer(kind, about, body))
            await self._wire.drain()

    async def _answer(self, kind: str, about: list[Any], body: bytes) -> tuple[list[Any], bytes]:
        number, *values = about
        try:
            said, content = await self._methods[kind](self, *values, body)
            return [number, said], content
        except (NotAdmitted, TooOften, NotNow) as error:
            return [number, *refusal_values(error)], b""
        except Exception:
            log.exception("a front end's %s failed", kind)
            return [number, "failed", "the server failed", False], b""

    async def _challenge(self, device: int, body: bytes) -> tuple[Any, bytes]:
        return None, await self._backend.challenge(device)

    async def _authenticate(self, nonce: int, signature: int, body: bytes) -> tuple[Any, bytes]:
        parts = body[:nonce], body[nonce : nonce + signature], body[nonce + signature :]
        return None, await self._backend.authenticate(*parts)

    async def _enter(self, call: int, cost: int, sends: bool, token: bytes) -> tuple[Any, bytes]:
        stack = AsyncExitStack()
        entered = await stack.enter_async_context(self._backend.call(token, cost, sends))
        self._calls[call] = _Entered(entered, stack)
        return None, b""

    async def _check_turn(self, call: int, round: int, body: bytes) -> tuple[Any, bytes]:
        await self._calls[call].call.check_turn(round)
        return None, b""

    async def _send(self, call: int, round: int, frame: bytes) -> tuple[Any, bytes]:
        await self._calls[call].call.send(round, frame)
        return None, b""

    async def _misbehaves(self, call: int, text: str, body: bytes) -> tuple[Any, bytes]:
        return str(await self._calls[call].call.misbehaves(text)), b""

    async def _fetch(
        self, call: int, round: int, step: int, spent: float, body: bytes
    ) -> tuple[Any, bytes]:
        item = await self._calls[call].call.fetch(round, step, spent)
        return None, item.SerializeToString()

    async def _download(self, call: int, want: int, have: int, body: bytes) -> tuple[Any, bytes]:
        self._calls[call].pieces = self._calls[call].call.download(want, have)
        return await self._piece(call, body)

    async def _piece(self, call: int, body: bytes) -> tuple[Any, bytes]:
        pieces = self._calls[call].pieces
        assert pieces is not None
        return None, await anext(pieces, b"")

    _methods: ClassVar[dict[str, Callable[..., Awaitable[tuple[Any, bytes]]]]] = {
        "challenge": _challenge,
        "authenticate": _authenticate,
        "enter": _enter,
        "check_turn": _check_turn,
        "send": _send,
        "misbehaves": _misbehaves,
        "fetch": _fetch,
        "download": _download,
        "piece": _piece,
    }


class _Entered:
    """A call under way, and what its device downloads."""

    def __init__(self, call: Call, stack: AsyncExitStack) -> None:
        self.call, self.stack = call, stack
        self.pieces: AsyncIterator[bytes] | None = None
