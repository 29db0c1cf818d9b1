"""What a mechanism keeps between rounds: bytes that nobody else may see, some of them in parts."""

from __future__ import annotations

import hashlib
import io
import struct
from collections.abc import Mapping
from typing import Any, BinaryIO

_HEAD = struct.Struct("<8sQ")  # magic, number of parts
_MAGIC = b"pfl-lm p"
_NAME = 32  # bytes of a part's SHA-256


class SecretState(bytes):
    """A state in the memory of the process that draws the noise; sent to another, it is empty.

    A state may have parts, most of which the next round takes over as they are. Its bytes then
    begin with the SHA-256 of each part, so that their own SHA-256 covers the parts, and a part is
    hashed and written to the disk once.

    Attributes:
        parts: what the bytes name, by SHA-256, in their order; empty where they are the whole.
    """

    parts: Mapping[bytes, bytes]

    def __new__(
        cls, content: bytes = b"", parts: Mapping[bytes, bytes] | None = None
    ) -> SecretState:
        """Return these bytes as a state; None: with the parts that they have already."""
        state = super().__new__(cls, content)
        state.parts = getattr(content, "parts", {}) if parts is None else parts
        return state

    def __reduce__(self) -> tuple[Any, ...]:
        return bytes, (b"",)


def join(parts: Mapping[bytes, bytes], rest: bytes) -> SecretState:
    """Return the state that has these parts, by SHA-256, and ``rest`` beside them."""
    return SecretState(b"".join((_HEAD.pack(_MAGIC, len(parts)), *parts, rest)), parts)


def rest(state: bytes) -> bytes:
    """Return what a state holds beside the names of its parts."""
    if not state.startswith(_MAGIC):
        return state
    names = part_names(io.BytesIO(state))
    return state[_HEAD.size + _NAME * len(names) :]


def part_names(file: BinaryIO) -> list[bytes]:
    """Read the names of a state's parts from its beginning; [] where it has none."""
    head = file.read(_HEAD.size)
    if len(head) < _HEAD.size or not head.startswith(_MAGIC):
        return []
    content = file.read(_NAME * _HEAD.unpack(head)[1])
    return [content[begin : begin + _NAME] for begin in range(0, len(content), _NAME)]


def name_of(part: bytes) -> bytes:
    """Return the SHA-256 by which a state names a part."""
    return hashlib.sha256(part).digest()
