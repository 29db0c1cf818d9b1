"""One call of a browser: the bytes at the socket, and the service's method in its event loop.

``web`` states the format. The thread of the connection reads and writes; the method asks it to.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import logging
import queue
import time
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from typing import Any, NoReturn, Protocol

import grpc
from google.protobuf.message import DecodeError

from pfl_lm.network.transport import CHUNK_BYTES, SESSION, SLACK_BYTES, Message, Method
from pfl_lm.pages.local import LocalHandler

log = logging.getLogger("pfl_lm.network")

_MOST_MESSAGE = CHUNK_BYTES + SLACK_BYTES
_MOST_DRAINED = 64 << 20  # bytes of a message that is refused
_DRAIN_SECONDS = 10.0
_READ_SECONDS = 30.0  # for a message; a caller who sends it byte by byte keeps no thread
_HTTP = {
    grpc.StatusCode.INVALID_ARGUMENT: 400,
    grpc.StatusCode.FAILED_PRECONDITION: 400,
    grpc.StatusCode.UNAUTHENTICATED: 401,
    grpc.StatusCode.PERMISSION_DENIED: 403,
    grpc.StatusCode.RESOURCE_EXHAUSTED: 429,
    grpc.StatusCode.UNAVAILABLE: 503,
}


class Answering(Protocol):
    """A server whose calls a service answers in an event loop."""

    service: Any
    loop: asyncio.AbstractEventLoop


class _Refused(Exception):
    def __init__(self, code: grpc.StatusCode, details: str) -> None:
        self.code, self.details = code, details
        super().__init__(details)


class WebCall:
    """One call: the method in the service's loop, and this thread at the socket.

    The method asks the thread, through a queue, to read the next message or to write one. It is
    also what a method knows of its caller: gRPC's context, as far as the service uses it.
    """

    def __init__(
        self, handler: LocalHandler, server: Answering, method: Method, length: int
    ) -> None:
        self._handler, self._server = handler, server
        self._method, self._left = method, length
        self._asked: queue.SimpleQueue[tuple[Any, ...]] = queue.SimpleQueue()
        self._messages = 0  # read so far
        self._started = False  # whether a stream's head is sent

    def run(self) -> None:
        """Answer the call; returns when it is over."""
        loop = self._server.loop
        future = asyncio.run_coroutine_threadsafe(self._answer(), loop)
        work: dict[str, Callable[..., Any]] = {"read": self._read, "write": self._write}
        try:
            while (asked := self._asked.get())[0] != "end":
                kind, *about, done = asked
                result, error = None, None
                try:
                    result = work[kind](*about)
                except (DecodeError, _Refused) as found:
                    error = found
                loop.call_soon_threadsafe(_settle, done, result, error)
            self._end(*asked[1:])
        finally:
            future.cancel()

    def invocation_metadata(self) -> list[tuple[str, bytes]]:
        """Return the token of the session, if it is one."""
        with suppress(binascii.Error, ValueError):
            return [(SESSION, base64.b64decode(self._handler.headers.get(SESSION, "")))]
        return []

    async def abort(self, code: grpc.StatusCode, details: str) -> NoReturn:
        """End the call with an error."""
        raise _Refused(code, details)

    async def _answer(self) -> None:
        """Run the method, in the event loop."""
        code, content = grpc.StatusCode.UNAVAILABLE, b"the server stops"
        try:
            answer = getattr(self._server.service, self._method.name)(self._requests(), self)
            if self._method.gives_stream:
                async for message in answer:
                    await self._ask("write", message.SerializeToString())
                code, content = grpc.StatusCode.OK, b""
            else:
                code, content = grpc.StatusCode.OK, (await answer).SerializeToString()
        except DecodeError:
            code, content = grpc.StatusCode.INVALID_ARGUMENT, b"no message of this method"
        except _Refused as error:
            code, content = error.code, error.details.encode()
        except Exception:
            log.exception("a browser's call of %s failed", self._method.name)
            code, content = grpc.StatusCode.UNKNOWN, b"the server failed"
        finally:
            self._asked.put(("end", code, content))

    async def _requests(self) -> AsyncIterator[Message]:
        """Yield the messages of the request, each read when it is asked for."""
        while (message := await self._ask("read")) is not None:
            yield message

    async def _ask(self, kind: str, *about: Any) -> Any:
        done = asyncio.get_running_loop().create_future()
        self._asked.put((kind, *about, done))
        return await done

    def _read(self) -> Message | None:
        """Read the next message; None after the last, and where the caller falls silent."""
        stream = self._method.takes_stream
        if (stream and self._left == 0) or (not stream and self._messages == 1):
            return None
        self._messages += 1
        try:
            size = self._size() if stream else self._left
            if size > min(self._left, _MOST_MESSAGE):
                raise _Refused(grpc.StatusCode.INVALID_ARGUMENT, "the message is too long")
            content = self._take(size)
        except (TimeoutError, EOFError):
            self._left = 0
            self._handler.close_connection = True
            return None
        return self._method.request.FromString(content)

    def _size(self) -> int:
        """Read a varint of at most 5 bytes."""
        size = 0
        for place in range(5):
            (byte,) = self._take(1)
            size |= (byte & 0x7F) << 7 * place
            if byte < 0x80:
                return size
        raise DecodeError("a length has at most 5 bytes")

    def _take(self, size: int) -> bytes:
        """Read so many bytes of the body.

        Raises:
            EOFError: the body, or the connection, ends before.
            TimeoutError: they come too slowly.
        """
        if size > self._left:
            raise EOFError
        until, content = time.monotonic() + _READ_SECONDS, bytearray()
        while len(content) < size:
            part = self._handler.rfile.read1(size - len(content))
            if not part:
                raise EOFError
            if time.monotonic() > until:
                raise TimeoutError
            content += part
        self._left -= size
        return bytes(content)

    def _drain(self) -> None:
        """Read what a refused caller still sends, and keep none of it, so that it hears why."""
        until = time.monotonic() + _DRAIN_SECONDS
        with suppress(TimeoutError, EOFError):
            while 0 < self._left <= _MOST_DRAINED and time.monotonic() < until:
                self._take(min(self._left, SLACK_BYTES))

    def _write(self, content: bytes) -> None:
        """Write a message of an answer that is a stream, as one chunk of HTTP/1.1."""
        if not self._started:
            self._handler.head(200, "application/x-protobuf", {"Transfer-Encoding": "chunked"})
            self._started = True
        message = _varint(len(content)) + content
        self._handler.wfile.write(b"%x\r\n%b\r\n" % (len(message), message))

    def _end(self, code: grpc.StatusCode, content: bytes) -> None:
        handler = self._handler
        self._drain()
        handler.close_connection |= self._left > 0
        if self._started and code is grpc.StatusCode.OK:
            handler.wfile.write(b"0\r\n\r\n")
        elif self._started:
            handler.close_connection = True  # in the middle of a chunked body: the caller sees it
        elif code is grpc.StatusCode.OK:
            handler.answer(200, content, "application/x-protobuf")
        else:
            status = {"grpc-status": str(code.value[0])}
            handler.answer(_HTTP.get(code, 500), content, "text/plain", status)


def _settle(done: asyncio.Future[Any], result: Any, error: Exception | None) -> None:
    """Give a waiting method what it asked for, unless it has ended meanwhile."""
    if done.done():
        return
    if error is None:
        done.set_result(result)
    else:
        done.set_exception(error)


def _varint(size: int) -> bytes:
    parts = []
    while size >= 0x80:
        parts.append(size & 0x7F | 0x80)
        size >>= 7
    return bytes([*parts, size])
