"""The gRPC service: each call is authenticated and passed to the backend, which has the round.

A method decides whether its caller may speak before it reads what the caller sends. So the server
keeps nothing of a caller who is not admitted but the few bytes that HTTP/2 delivers unasked.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, NoReturn

import grpc

from pfl_lm.network.refusals import NotAdmitted, NotNow, TooOften
from pfl_lm.network.strangers import StrangerPool
from pfl_lm.network.transport import SESSION, Limits, Message, messages
from pfl_lm.network.upload_pool import UploadPool

if TYPE_CHECKING:  # a front end loads neither the round nor the model
    from pfl_lm.network.backend import Backend, Call

_LEAST_UPLOADS = 8  # that are read at once, however long messages may be
_MODEL_COST = 10  # calls that a download counts for

Requests = AsyncIterator[Any]  # messages of one call, read from the network one by one


class Service:
    """The service of ``aggregation.proto``; see there for what each call means.

    Args:
        task_config: what devices are told when they authenticate.
        frame_bytes: size beyond which a frame is refused unread.
    """

    def __init__(
        self, backend: Backend, task_config: str, limits: Limits, frame_bytes: int
    ) -> None:
        self._backend, self._task_config = backend, task_config
        self._limits, self._frame_bytes = limits, frame_bytes
        self._strangers = StrangerPool(limits.strangers, limits.stranger_seconds)
        places = max(_LEAST_UPLOADS, int(limits.upload_bytes) // frame_bytes)
        self._uploads = UploadPool(places, limits.upload_seconds)

    async def Challenge(self, requests: Requests, context: Any) -> Message:
        async with _refusals(context), self._strangers.call():
            request = await _only(requests)
            return messages.ChallengeResponse(nonce=await self._backend.challenge(request.device))

    async def Authenticate(self, requests: Requests, context: Any) -> Message:
        async with _refusals(context), self._strangers.call():
            request = await _only(requests)
            token = await self._backend.authenticate(
                request.nonce, request.signature, request.certificate
            )
            return messages.Session(token=token, task_config=self._task_config)

    async def Fetch(self, requests: Requests, context: Any) -> Message:
        async with self._call(context) as call:
            cursor = await self._request(requests)
            return await call.fetch(cursor.round, cursor.step)

    async def Send(self, requests: Requests, context: Any) -> Message:
        async with self._call(context, sends=True) as call:
            started = time.monotonic()
            round, seen = await self._upload(call, requests)
            if not seen:
                return messages.Item()
            return await call.fetch(round, seen, time.monotonic() - started)

    async def Model(self, requests: Requests, context: Any) -> AsyncIterator[Message]:
        async with self._call(context, _MODEL_COST) as call:
            request = await self._request(requests)
            # A slow reader delays no other device; it is cut off when training time is over.
            async with asyncio.timeout(self._limits.training_seconds):
                async for piece in call.download(request.want, request.have):
                    yield messages.Chunk(values=piece)

    @asynccontextmanager
    async def _call(self, context: Any, cost: int = 1, sends: bool = False) -> AsyncIterator[Call]:
        """Admit a call of an enrolled device before a byte of its message is read."""
        token = dict(context.invocation_metadata() or ()).get(SESSION, b"")
        async with _refusals(context), self._backend.call(token, cost, sends) as call:
            yield call

    async def _request(self, requests: Requests) -> Message:
        async with asyncio.timeout(self._limits.phase_seconds):
            return await _only(requests)

    async def _upload(self, call: Call, requests: Requests) -> tuple[int, int]:
        """Read a frame in parts, as long as it may count, and hand it in.

        Nothing of the messages stays: the caller may wait for long.

        Returns:
            Its round, and ``seen``.

        Raises:
            NotNow: the round goes on without the device, or the frame is longer than it says, or
                than any may be.
        """
        async with self._uploads.place(), asyncio.timeout(self._limits.phase_seconds):
            first = await _only(requests)
            await call.check_turn(first.round)
            if first.size > self._frame_bytes:
                raise await call.misbehaves(f"its message has {first.size:,} bytes")
            frame = bytearray(first.part)
            while len(frame) < first.size:
                frame += (await _only(requests)).part
            if len(frame) != first.size:
                raise await call.misbehaves("its message is longer than it states")
            await call.send(first.round, bytes(frame))
        stream: Any = aiter(requests)
        await stream.aclose()  # it holds the part that it gave last
        return first.round, first.seen


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
    except ConnectionError as error:
        await context.abort(grpc.StatusCode.UNAVAILABLE, str(error))
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
