"""Frames between a front end and the round: a list of plain values, and bytes.

A frame is two lengths of 4 bytes, little-endian, the list as JSON, and the bytes. A front end asks
``[method, number of the request, …]``; the answer is ``[number, value]`` or, refused,
``[number, kind, text, again]``. ``answers`` has the methods. What needs no answer is
``["leave", call]``, ``["cancel", request]``, ``["log", level, text]``; the round's process says
``["stop", grace]``.

The two ends of the connection belong to one server and its own child, and nobody else has them.
The round's side reads nothing from a frame but plain values all the same: a front end reads what
strangers send.
"""

from __future__ import annotations

import asyncio
import json
import socket
import struct
from typing import Any

from pfl_lm.network.refusals import NotAdmitted, NotNow, TooOften

_LENGTHS = struct.Struct("<II")
_BUFFER = 1 << 20  # bytes
_REFUSALS = {"admitted": NotAdmitted, "often": TooOften, "now": NotNow}


class Wire:
    """One end of a connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer

    @classmethod
    async def over(cls, end: socket.socket) -> Wire:
        """Speak over a connected socket."""
        return cls(*await asyncio.open_unix_connection(sock=end, limit=_BUFFER))

    async def read(self) -> tuple[list[Any], bytes] | None:
        """Return the next frame; None once the other end is closed."""
        try:
            head, body = _LENGTHS.unpack(await self._reader.readexactly(_LENGTHS.size))
            values = json.loads(await self._reader.readexactly(head))
            return values, await self._reader.readexactly(body) if body else b""
        except (asyncio.IncompleteReadError, ConnectionError):
            return None

    def write(self, values: list[Any], body: bytes = b"") -> None:
        """Send a frame; nothing happens where the other end is closed."""
        if self._writer.is_closing():
            return
        head = json.dumps(values, separators=(",", ":")).encode()
        self._writer.write(_LENGTHS.pack(len(head), len(body)) + head)
        if body:
            self._writer.write(body)

    async def drain(self) -> None:
        """Wait until the other end has read most of what was sent.

        Raises:
            ConnectionError: it is closed.
        """
        await self._writer.drain()

    def close(self) -> None:
        self._writer.close()


def refusal_values(error: NotAdmitted | TooOften | NotNow) -> list[Any]:
    """Return what says a refusal, behind the number of its request."""
    kind = next(kind for kind, refusal in _REFUSALS.items() if isinstance(error, refusal))
    return [kind, str(error), isinstance(error, NotAdmitted) and error.again]


def refusal_of(kind: str, text: str, again: bool) -> Exception:
    """Return the refusal that those values say; of another kind: the round's own fault."""
    if kind == "admitted":
        return NotAdmitted(text, again)
    return _REFUSALS[kind](text) if kind in _REFUSALS else RuntimeError(text)
