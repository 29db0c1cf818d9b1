"""Frames between a front end and the round: a list of plain values, and bytes.

A frame is two lengths of 4 bytes, little-endian, the list as JSON, and the bytes. A front end asks
``[method, number of the request, …]``; the answer is ``[number, value]`` or, refused,
``[number, kind, text, again]``. ``answers`` has the methods. What needs no answer is
``["leave", call]``, ``["cancel", request]``, ``["log", level, text]``; the round's process says
``["stop", grace]``. Before all that a front end says ``["loaded"]``, is told its setup, and says
``["ready", port]``.

The two ends of the connection belong to one server and its own child, and nobody else has them.
The round's side reads nothing from a frame but plain values all the same: a front end reads what
strangers send.
"""

from __future__ import annotations

import asyncio
import json
import socket
import struct
from collections import deque
from typing import Any

from pfl_lm.network.refusals import NotAdmitted, NotNow, TooOften

_LENGTHS = struct.Struct("<II")
_RECEIVED = 1 << 16  # bytes that are taken apart together
_FRAMES = 16  # that wait to be read
_REFUSALS = {"admitted": NotAdmitted, "often": TooOften, "now": NotNow}


class Wire(asyncio.BufferedProtocol):
    """One end of a connection.

    The bytes of a frame are received where they stay: a report of some 100 KB is not copied about.
    """

    def __init__(self) -> None:
        self._received = bytearray(_RECEIVED)  # what is not taken apart yet
        self._filled = 0
        self._values: list[Any] = []  # of the frame whose bytes are coming
        self._body: bytearray | None = None
        self._frames: deque[tuple[list[Any], bytes]] = deque()
        self._news = asyncio.Event()
        self._free = asyncio.Event()
        self._free.set()
        self._transport: Any = None
        self._closed = False

    @classmethod
    async def over(cls, end: socket.socket) -> Wire:
        """Speak over a connected socket."""
        loop = asyncio.get_running_loop()
        _, wire = await loop.create_unix_connection(cls, sock=end)
        return wire

    async def read(self) -> tuple[list[Any], bytes] | None:
        """Return the next frame; None once the other end is closed."""
        while not self._frames:
            if self._closed:
                return None
            self._news.clear()
            await self._news.wait()
        frame = self._frames.popleft()
        if len(self._frames) == _FRAMES - 1:
            self._transport.resume_reading()
        return frame

    def write(self, values: list[Any], body: bytes = b"") -> None:
        """Send a frame; nothing happens where the other end is closed."""
        if self._closed:
            return
        head = json.dumps(values, separators=(",", ":")).encode()
        self._transport.write(_LENGTHS.pack(len(head), len(body)) + head)
        if body:
            self._transport.write(body)

    async def drain(self) -> None:
        """Wait until the other end has read most of what was sent, or is closed."""
        await self._free.wait()

    def close(self) -> None:
        self._transport.close()

    def connection_made(self, transport: Any) -> None:
        self._transport = transport

    def connection_lost(self, exc: Exception | None) -> None:
        self._closed = True
        self._news.set()
        self._free.set()

    def pause_writing(self) -> None:
        self._free.clear()

    def resume_writing(self) -> None:
        self._free.set()

    def get_buffer(self, sizehint: int) -> memoryview:
        return memoryview(self._received if self._body is None else self._body)[self._filled :]

    def buffer_updated(self, nbytes: int) -> None:
        self._filled += nbytes
        if self._body is None:
            self._take_apart()
        elif self._filled == len(self._body):
            self._whole(bytes(self._body))
            self._body, self._filled = None, 0

    def _take_apart(self) -> None:
        """Take whole frames out of what was received, up to one whose bytes are still coming."""
        view, start = memoryview(self._received)[: self._filled], 0
        while len(view) - start >= _LENGTHS.size:
            head, size = _LENGTHS.unpack_from(view, start)
            body = start + _LENGTHS.size + head
            if body > len(view):
                self._make_room(body - start)
                break
            self._values = json.loads(bytes(view[start + _LENGTHS.size : body]))
            start, come = min(body + size, len(view)), view[body : body + size]
            if len(come) < size:
                self._body, self._filled = bytearray(size), len(come)
                self._body[: len(come)] = come
                return
            self._whole(bytes(come))
        self._received[: len(view) - start] = bytes(view[start:])
        self._filled = len(view) - start

    def _whole(self, body: bytes) -> None:
        self._frames.append((self._values, body))
        self._news.set()
        if len(self._frames) == _FRAMES:
            self._transport.pause_reading()

    def _make_room(self, size: int) -> None:
        """Let what is received be as long as one frame's values."""
        if size > len(self._received):
            self._received = self._received + bytearray(size - len(self._received))


def refusal_values(error: NotAdmitted | TooOften | NotNow) -> list[Any]:
    """Return what says a refusal, behind the number of its request."""
    kind = next(kind for kind, refusal in _REFUSALS.items() if isinstance(error, refusal))
    return [kind, str(error), isinstance(error, NotAdmitted) and error.again]


def refusal_of(kind: str, text: str, again: bool) -> Exception:
    """Return the refusal that those values say; of another kind: the round's own fault."""
    if kind == "admitted":
        return NotAdmitted(text, again)
    return _REFUSALS[kind](text) if kind in _REFUSALS else RuntimeError(text)
