"""The AES keystream in counter mode: compiled where the processor has vector AES, else OpenSSL's.

The same bytes either way. Two blocks an instruction make them twice as fast as OpenSSL does, which
keeps vector AES for other modes; and a compiled loop can make them where it uses them.
"""

from __future__ import annotations

import ctypes
import functools
import logging
from dataclasses import dataclass
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from pfl_lm import native

Bytes = np.ndarray[Any, np.dtype[np.uint8]]

_ZEROS = bytes(1 << 17)  # OpenSSL's keystream is the encryption of zeros, this many at a time


class _State(ctypes.Structure):
    """``struct keystream`` of native/keystream.h."""

    _fields_ = (
        ("first", ctypes.c_uint8 * 16),
        ("schedule", ctypes.c_uint8 * 240),
        ("rounds", ctypes.c_int32),
    )


@dataclass(frozen=True)
class Ahead:
    """Bytes of a stream that are set aside for one use, and made only there.

    A compiled loop takes ``arguments``: where the bytes lie, or a state and the position from which
    it makes them itself.
    """

    count: int
    content: Bytes | None  # else they are the compiled stream's
    state: _State | None
    position: int

    @property
    def arguments(self) -> tuple[int | None, Any, int]:
        """Return const uint8_t *bytes, const struct keystream *stream and int64_t position."""
        at = None if self.content is None else self.content.ctypes.data
        return at, None if self.state is None else ctypes.byref(self.state), self.position

    def bytes(self) -> Bytes:
        """Return them: uint8[count]."""
        if self.content is not None:
            return self.content
        out = np.empty(self.count, np.uint8)
        _loops().read_stream(self.state, self.position, self.count, out.ctypes.data)
        return out


class KeyStream:
    """The keystream of one AES key from one counter on, read once and in order.

    Source: NIST SP 800-38A §6.5.
    """

    def __init__(self, key: bytes, counter: bytes = bytes(16)) -> None:
        """Args: key: 16 or 32 bytes. counter: the first block's, big-endian, 16 bytes.

        Raises:
            ValueError: another length.
        """
        if len(key) not in (16, 32) or len(counter) != 16:
            raise ValueError(
                f"key must be 16 or 32 bytes and counter 16, got {len(key)} and {len(counter)}"
            )
        self._position = 0
        self._state = _opened(key, counter) if _compiled() else None
        if self._state is None:
            self._encryptor = Cipher(algorithms.AES(key), modes.CTR(counter)).encryptor()

    def ahead(self, count: int) -> Ahead:
        """Set the next bytes aside: nobody else gets them."""
        begin, self._position = self._position, self._position + count
        if self._state is not None:
            return Ahead(count, None, self._state, begin)
        content = np.empty(count, np.uint8)
        self._encrypt(content)
        return Ahead(count, content, None, 0)

    def read_into(self, out: np.ndarray[Any, Any]) -> None:
        """Overwrite an array with the next bytes.

        Raises:
            ValueError: an array that is not contiguous, or may not be written.
        """
        if not (out.flags.c_contiguous and out.flags.writeable):
            raise ValueError("out must be contiguous and writeable")
        begin, self._position = self._position, self._position + out.nbytes
        if self._state is None:
            self._encrypt(out)
        else:
            _loops().read_stream(self._state, begin, out.nbytes, out.ctypes.data)

    def _encrypt(self, out: np.ndarray[Any, Any]) -> None:
        target = out.data.cast("B")
        for start in range(0, len(target), len(_ZEROS)):
            chunk = target[start : start + len(_ZEROS)]
            zeros = _ZEROS if len(chunk) == len(_ZEROS) else memoryview(_ZEROS)[: len(chunk)]
            self._encryptor.update_into(zeros, chunk)


def _opened(key: bytes, counter: bytes) -> _State:
    state = _State()
    _loops().open_stream(state, key, len(key), counter)
    return state


def _compiled() -> bool:
    """Whether the compiled stream is there and can be trusted."""
    return native.library("keystream") is not None and _agrees()


@functools.cache
def _agrees() -> bool:
    """Whether this processor makes the stream, and its bytes are those of OpenSSL."""
    counter = b"\xff" * 15 + b"\xf0"  # it carries
    for key in (bytes(range(16)), bytes(range(32))):
        state, found = _opened(key, counter), np.empty(1000, np.uint8)
        if not state.rounds:
            return False
        _loops().read_stream(state, 0, len(found), found.ctypes.data)
        encryptor = Cipher(algorithms.AES(key), modes.CTR(counter)).encryptor()
        if found.tobytes() != encryptor.update(bytes(len(found))):
            logging.getLogger(__name__).warning("the compiled keystream is wrong: OpenSSL's serves")
            return False
    return True


def _loops() -> ctypes.CDLL:
    pointer, size = ctypes.c_void_p, ctypes.c_int64
    state = ctypes.POINTER(_State)
    loops = native.functions(
        "keystream",
        open_stream=(ctypes.c_int, state, ctypes.c_char_p, ctypes.c_int, ctypes.c_char_p),
        read_stream=(None, state, size, size, pointer),
    )
    assert loops is not None
    return loops
