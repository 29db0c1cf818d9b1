"""The calls of devices, answered: authenticate, then hand over to the desk."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from typing import Any, NoReturn

import grpc

from pfl_lm.network.broadcast import Shelf
from pfl_lm.network.desk import Desk, NotNow
from pfl_lm.network.door import Door, ShutOut, TooOften
from pfl_lm.network.terms import Terms
from pfl_lm.network.transport import CHUNK_BYTES, SESSION, Limits, Message, messages

log = logging.getLogger("pfl_lm.network")

_MODEL_COST = 10  # calls that a download counts for


class Service:
    """The service of ``aggregation.proto``; see there for what each call means."""

    def __init__(self, door: Door, desk: Desk, shelf: Shelf, terms: Terms, limits: Limits) -> None:
        self._door, self._desk, self._shelf, self._limits = door, desk, shelf, limits
        self._terms = terms.text()

    async def Knock(self, request: Message, context: Any) -> Message:
        try:
            return messages.Challenge(nonce=self._door.challenge(request.device))
        except (ShutOut, TooOften) as error:
            await _refuse(context, error)

    async def Enter(self, request: Message, context: Any) -> Message:
        try:
            device, token = self._door.enter(request.nonce, request.signature)
        except ShutOut as error:
            await _refuse(context, error)
        log.info("device %d is here", device)
        return messages.Session(token=token, terms=self._terms)

    async def Fetch(self, request: Message, context: Any) -> Message:
        device = await self._device(context)
        return await self._desk.fetch(device, request.round, request.step)

    async def Send(self, request: Message, context: Any) -> Message:
        device = await self._device(context)
        try:
            self._desk.send(device, request.round, request.frame)
        except NotNow as error:
            await _refuse(context, error)
        return messages.Receipt()

    async def Model(self, request: Message, context: Any) -> AsyncIterator[Message]:
        device = await self._device(context, _MODEL_COST)
        if request.want != self._desk.under_way:
            await _refuse(context, NotNow(f"round {request.want} is not under way"))
        values = await asyncio.to_thread(self._shelf.values, request.have)
        log.debug("device %d downloads %d bytes", device, len(values))
        # Whoever reads slowly holds up nobody, and is cut off when the time to train is over.
        async with asyncio.timeout(self._limits.training_seconds):
            for start in range(0, len(values), CHUNK_BYTES):
                yield messages.Chunk(values=values[start : start + CHUNK_BYTES])

    async def _device(self, context: Any, cost: int = 1) -> int:
        """Return whose call this is, or end it."""
        token = dict(context.invocation_metadata() or ()).get(SESSION, b"")
        try:
            return self._door.device(token, cost)
        except TooOften as error:
            self._desk.misbehaves(error.device, str(error))
            await _refuse(context, error)
        except ShutOut as error:
            await _refuse(context, error)


async def _refuse(context: Any, error: ValueError) -> NoReturn:
    """End a call with the status that tells the device what to do next."""
    if isinstance(error, ShutOut):
        again = error.again
        code = grpc.StatusCode.UNAUTHENTICATED if again else grpc.StatusCode.PERMISSION_DENIED
    elif isinstance(error, TooOften):
        code = grpc.StatusCode.RESOURCE_EXHAUSTED
    else:
        code = grpc.StatusCode.FAILED_PRECONDITION
    await context.abort(code, str(error))
    raise AssertionError("abort raises")
