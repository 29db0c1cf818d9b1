"""Messages over a pipe: a small JSON head and numeric arrays, each with its length in front.

Read by the core and by the worker, whose Pythons share nothing but numpy: no pickle, no import.

    8 bytes, little-endian: length of the description
    description, JSON: {"head": …, "arrays": [[name, dtype, shape], …]}
    the arrays' bytes, one after another, C order
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from typing import IO, Any

import numpy as np

_LENGTH = struct.Struct("<Q")
_LONGEST_HEAD = 1 << 30
_KINDS = "biuf"  # bool, integers, floats: what needs no interpretation


def send(pipe: IO[bytes], head: Any, arrays: Mapping[str, np.ndarray] | None = None) -> None:
    """Write one message and flush it.

    Raises:
        ValueError: an array of objects or strings; text belongs into the head.
    """
    plain = {name: np.asarray(array) for name, array in (arrays or {}).items()}
    for name, array in plain.items():
        if array.dtype.kind not in _KINDS:
            raise ValueError(f"array {name!r} has dtype {array.dtype}; only numbers travel")
    layout = [[name, array.dtype.str, list(array.shape)] for name, array in plain.items()]
    description = json.dumps({"head": head, "arrays": layout}).encode()
    pipe.write(_LENGTH.pack(len(description)))
    pipe.write(description)
    for array in plain.values():
        pipe.write(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    pipe.flush()


def receive(pipe: IO[bytes]) -> tuple[Any, dict[str, np.ndarray]] | None:
    """Read one message: its head and its arrays; None where the pipe ended between messages.

    Raises:
        EOFError: the pipe ended inside a message.
        ValueError: what came is no message.
    """
    first = pipe.read(_LENGTH.size)
    if not first:
        return None
    (length,) = _LENGTH.unpack(first.ljust(_LENGTH.size, b"\xff"))
    if length > _LONGEST_HEAD:
        raise ValueError("the pipe does not carry messages of this protocol")
    description = json.loads(_exactly(pipe, length))
    arrays = {}
    for name, dtype, shape in description["arrays"]:
        if np.dtype(dtype).kind not in _KINDS:
            raise ValueError(f"array {name!r} has dtype {dtype}; only numbers travel")
        content = _exactly(pipe, int(np.prod(shape)) * np.dtype(dtype).itemsize)
        arrays[name] = np.frombuffer(content, dtype).reshape(shape)
    return description["head"], arrays


def _exactly(pipe: IO[bytes], length: int) -> bytearray:
    content = bytearray(length)
    view, at = memoryview(content), 0
    while at < length:
        count = pipe.readinto(view[at:])  # type: ignore[attr-defined]
        if not count:
            raise EOFError("the other side ended in the middle of a message")
        at += count
    return content
