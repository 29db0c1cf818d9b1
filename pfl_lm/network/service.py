"""The gRPC service: each call is authenticated and passed to the mailbox or the model cache.

A method decides whether its caller may speak before it reads what the caller sends. So the server
keeps nothing of a caller who is not admitted but the few bytes that HTTP/2 delivers unasked.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any, NoReturn, Protocol

import grpc

from pfl_lm.network.admission import Admission, NotAdmitted, StrangerPool, Suspended, TooOften
from pfl_lm.network.mailbox import Mailbox, NotNow
from pfl_lm.network.transport import SESSION, Limits, Message, messages
from pfl_lm.network.upload_pool import UploadPool

log = logging.getLogger("pfl_lm.network")

_LEAST_UPLOADS = 8  # that are read at once, however long messages may be
_MODEL_COST = 10  # calls that a download counts for

Requests = AsyncIterator[Any]  # messages of one call, read from the network one by one


class Downloads(Protocol):
    """What devices download for a round: what they lack of a model, or a question's content."""

    def open(self, have: int) -> Iterator[bytes]: ...


class Task(Protocol):
    """What server and devices agree on before the first round."""

    def text(self) -> str: ...


class Service:
    """The service of ``aggregation.proto``; see there for what each call means.

    Args:
        frame_bytes: size beyond which a frame is refused unread.
    """

    def __init__(
        self,
        admission: Admission,
        mailbox: Mailbox,
        models: Downloads,
        task_config: Task,
        limits: Limits,
        frame_bytes: int,
    ) -> None:
        self._admission, self._mailbox, self._models = admission, mailbox, models
        self._limits, self._frame_bytes = limits, frame_bytes
        self._task_config = task_config.text()
        self._strangers = StrangerPool(limits.strangers, limits.stranger_seconds)
        self._uploading: set[int] = set()
        places = max(_LEAST_UPLOADS, int(limits.upload_bytes) // frame_bytes)
        self._uploads = UploadPool(places, limits.upload_seconds)

    async def Challenge(self, requests: Requests, context: Any) -> Message:
        async with _refusals(context), self._strangers.call():
            request = await _only(requests)
            return messages.ChallengeResponse(nonce=self._admission.challenge(request.device))

    async def Authenticate(self, requests: Requests, context: Any) -> Message:
        async with _refusals(context), self._strangers.call():
            request = await _only(requests)
            device, token = self._admission.authenticate(
                request.nonce, request.signature, request.certificate
            )
            log.info("device %d is here", device)
            return messages.Session(token=token, task_config=self._task_config)

    async def Fetch(self, requests: Requests, context: Any) -> Message:
        async with self._call(context) as device:
            cursor = await self._request(requests)
            return await self._mailbox.fetch(device, cursor.round, cursor.step)

    async def Send(self, requests: Requests, context: Any) -> Message:
        async with self._call(context) as device:
            if device in self._uploading:
                raise TooOften(f"device {device} sends two messages at once; wait")
            self._uploading.add(device)
            started = time.monotonic()
            try:
                round, seen, frame = await self._upload(device, requests)
            finally:
                self._uploading.discard(device)
            self._mailbox.send(device, round, frame)
            if not seen:
                return messages.Item()
            del frame  # thousands of devices wait
            spent = time.monotonic() - started
            return await self._mailbox.fetch(device, round, seen, spent)

    async def Model(self, requests: Requests, context: Any) -> AsyncIterator[Message]:
        async with self._call(context, _MODEL_COST) as device:
            request = await self._request(requests)
            if request.want != self._mailbox.under_way:
                raise NotNow(f"round {request.want} is not under way")
            pieces = await asyncio.to_thread(self._models.open, request.have)
            log.debug("device %d downloads the model", device)
            # A slow reader delays no other device; it is cut off when training time is over.
            async with asyncio.timeout(self._limits.training_seconds):
                for piece in pieces:
                    yield messages.Chunk(values=piece)

    @asynccontextmanager
    async def _call(self, context: Any, cost: int = 1) -> AsyncIterator[int]:
        """Admit a call of an enrolled device before a byte of its message is read."""
        token = dict(context.invocation_metadata() or ()).get(SESSION, b"")
        async with _refusals(context):
            try:
                with self._admission.call(token, cost) as device:
                    yield device
            except Suspended as error:
                self._mailbox.misbehaves(error.device, str(error), strike=False)
                raise

    async def _request(self, requests: Requests) -> Message:
        async with asyncio.timeout(self._limits.phase_seconds):
            return await _only(requests)

    async def _upload(self, device: int, requests: Requests) -> tuple[int, int, bytes]:
        """Read a frame in parts, as long as it may count; return its round, ``seen``, and it.

        Nothing else of the messages stays: the caller may wait for long.

        Raises:
            NotNow: the round goes on without the device.
            NotAdmitted: the frame is longer than it says, or than any may be.
        """
        async with self._uploads.place(), asyncio.timeout(self._limits.phase_seconds):
            first = await _only(requests)
            self._mailbox.check_turn(device, first.round)
            if first.size > self._frame_bytes:
                raise self._mailbox.misbehaves(device, f"its message has {first.size:,} bytes")
            frame = bytearray(first.part)
            while len(frame) < first.size:
                frame += (await _only(requests)).part
            if len(frame) != first.size:
                raise self._mailbox.misbehaves(device, "its message is longer than it states")
        stream: Any = aiter(requests)
        await stream.aclose()  # it holds the part that it gave last
        return first.round, first.seen, bytes(frame)


async def _only(requests: Requests) -> Any:
    """Return the next message of a call.

    Raises:
        NotNow: the caller ended the call without one.
    """
    async for request in requests:
        return request
    raise NotNow("the message is missing or incomplete")


@asynccontextmanager
async def _refusals(context: Any) -> AsyncIterator[None]:
    """End a call that is refused with the status that tells the caller what to do next."""
    try:
        yield
    except (NotAdmitted, TooOften, NotNow) as error:
        await _refuse(context, error)
    except TimeoutError:
        await context.abort(grpc.StatusCode.UNAVAILABLE, "the call took too long; call again")


async def _refuse(context: Any, error: ValueError) -> NoReturn:
    if isinstance(error, NotAdmitted):
        again = error.again
        code = grpc.StatusCode.UNAUTHENTICATED if again else grpc.StatusCode.PERMISSION_DENIED
    elif isinstance(error, TooOften):
        code = grpc.StatusCode.RESOURCE_EXHAUSTED
    else:
        code = grpc.StatusCode.FAILED_PRECONDITION
    await context.abort(code, str(error))
    raise AssertionError("abort raises")
