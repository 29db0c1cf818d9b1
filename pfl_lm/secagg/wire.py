"""Frames: every message of the protocol in an envelope of one shape.

    magic "PFSA" | version u8 | kind u8 | zero u16 | sender u32 | body bytes u64 | context 32
    body
    checksum of all of the above, 16 bytes

Integers are little-endian. The checksum is an AES-GCM tag under a key that is no secret (processors
compute it twice as fast as a CRC): it finds accidents, so that a damaged vector is not summed.
Attackers are held off by the transport (TLS between device and server) and, between devices, by
authenticated encryption and signatures.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Collection, Mapping

import numpy as np
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from pfl_lm.secagg.errors import MalformedMessage, Refused

MAGIC = b"PFSA"
VERSION = 5
LABEL = b"pfl_lm secagg %d " % VERSION  # before all that is hashed or signed: versions never meet
SERVER = 0xFFFF_FFFF  # the sender of what the server sends
_HEADER = struct.Struct("<4sBBHIQ32s")
_CHECKSUM_BYTES = 16
FRAME_BYTES = _HEADER.size + _CHECKSUM_BYTES  # around every body


def frame(kind: int, sender: int, context: bytes, body: bytes | memoryview) -> bytes:
    """Put a body into its envelope."""
    header = _HEADER.pack(MAGIC, VERSION, kind, 0, sender, len(body), context)
    return b"".join((header, body, _checksum(header, context, body)))


def _checksum(header: bytes | memoryview, context: bytes, body: bytes | memoryview) -> bytes:
    nonce = hashlib.sha256(header).digest()[:12]
    return AESGCM(context[:16]).encrypt(nonce, b"", body)


def unframe(message: bytes, context: bytes) -> tuple[int, int, memoryview]:
    """Take a message out of its envelope; return (kind, sender, body).

    Raises:
        MalformedMessage: not a frame of this version, cut, lengthened or damaged.
        Refused: a sound frame of another round, model, payload or configuration.
    """
    view = memoryview(message)
    if len(view) < FRAME_BYTES:
        raise MalformedMessage(f"a message has at least {FRAME_BYTES} bytes, not {len(view)}")
    magic, version, kind, zero, sender, length, theirs = _HEADER.unpack_from(view)
    if magic != MAGIC or zero:
        raise MalformedMessage("these bytes are no message of secure aggregation")
    if version != VERSION:
        raise MalformedMessage(f"version {version} of the protocol is not spoken here: {VERSION}")
    if length != len(view) - FRAME_BYTES:
        raise MalformedMessage(
            f"the message states a body of {length} bytes and has {len(view) - FRAME_BYTES}"
        )
    header, body = view[: _HEADER.size], view[_HEADER.size : -_CHECKSUM_BYTES]
    if _checksum(header, theirs, body) != view[-_CHECKSUM_BYTES:]:
        raise MalformedMessage("the checksum does not match: the message was damaged")
    if theirs != context:
        raise Refused("the message belongs to another round, model, payload or configuration")
    return kind, sender, body


class Reader:
    """Reads a body from front to back, and insists that nothing is left."""

    def __init__(self, body: memoryview) -> None:
        self._body = body
        self._at = 0

    def take(self, count: int) -> bytes:
        """The next ``count`` bytes."""
        return bytes(self.view(count))

    def view(self, count: int) -> memoryview:
        """The next ``count`` bytes, not copied."""
        if count > len(self._body) - self._at:
            raise MalformedMessage("the body ends in the middle of a field")
        self._at += count
        return self._body[self._at - count : self._at]

    def u32(self) -> int:
        return int.from_bytes(self.view(4), "little")

    def records(self, size: int, indices: int) -> dict[int, bytes]:
        """A count, then that many (index u32, ``size`` bytes) in strictly ascending order."""
        count = self.u32()
        raw = self.view(count * (4 + size))  # checked against the body before it is walked
        parsed = dict(struct.iter_unpack(f"<I{size}s", raw))
        ascending = list(parsed)
        if (
            len(parsed) < count
            or ascending != sorted(parsed)
            or max(ascending, default=0) >= indices
        ):
            raise MalformedMessage("indices must ascend, each once, inside the cohort")
        return parsed

    def bitmap(self, indices: int) -> frozenset[int]:
        """A set of indices, one bit each."""
        packed = np.frombuffer(self.view((indices + 7) // 8), dtype=np.uint8)
        members = np.flatnonzero(np.unpackbits(packed, bitorder="little"))
        if members.size and members[-1] >= indices:
            raise MalformedMessage("the unused bits of a bitmap must be zero")
        return frozenset(members.tolist())

    def end(self) -> None:
        if self._at != len(self._body):
            raise MalformedMessage("the body goes on after its last field")


def write_records(records: Mapping[int, bytes]) -> bytes:
    """The inverse of ``Reader.records``."""
    parts = [len(records).to_bytes(4, "little")]
    for index in sorted(records):
        parts += [index.to_bytes(4, "little"), records[index]]
    return b"".join(parts)


def write_bitmap(members: Collection[int], indices: int) -> bytes:
    """The inverse of ``Reader.bitmap``."""
    bits = bytearray((indices + 7) // 8)
    for member in members:
        bits[member // 8] |= 1 << member % 8
    return bytes(bits)
