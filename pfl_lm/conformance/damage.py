"""Bytes that a server could send in the place of a message, but that are none of this round."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from pfl_lm.secagg.wire import FRAME_BYTES, SERVER, VERSION, frame


@dataclass(frozen=True)
class Damage:
    """Bytes that are no message of this round; ``code`` is that of the refusal."""

    name: str
    rule: str
    code: str
    message: str
    content: bytes


def frames(whole: bytes, another: bytes) -> Iterator[Damage]:
    """Damage the envelope of a frame with a body of 9 bytes or more.

    Args:
        whole: the honest frame.
        another: the same message in the frame of another context.
    """

    def patched(at: int, value: bytes) -> bytes:
        return whole[:at] + value + whole[at + len(value) :]

    def flipped(at: int, mask: int) -> bytes:
        at %= len(whole)
        return patched(at, bytes([whole[at] ^ mask]))

    rule = "Every message, both ways, is one frame"
    for name, message, changed in (
        ("magic", "no message", patched(0, b"PFSB")),
        ("old_version", f"version {VERSION - 1}", patched(4, bytes([VERSION - 1]))),
        ("reserved_bytes", "no message", patched(6, b"\x01")),
        ("stated_length", "states a body", flipped(12, 1)),
        ("cut", "states a body", whole[:-1]),
        ("longer", "states a body", whole + b"\0"),
        ("too_short", f"at least {FRAME_BYTES}", whole[: FRAME_BYTES - 1]),
        ("damaged_body", "checksum", flipped(60, 4)),
        ("damaged_checksum", "checksum", flipped(-1, 1)),
        ("damaged_sender", "checksum", flipped(8, 1)),
    ):
        yield Damage(f"frame_{name}", rule, "malformed", message, changed)
    rule = "and stands in every message"
    yield Damage("frame_context", rule, "refused", "another round", another)


def bodies(whole: bytes) -> Iterator[Damage]:
    """Change a message of the server inside its envelope, which stays sound."""
    kind, context, body = whole[5], whole[20:52], whole[52:-16]
    rule = "A body has exactly one encoding; anything else is refused"
    for name, message, changed in (
        ("goes_on", "goes on", body + b"\0"),
        ("ends_early", "middle of a field", body[:-1]),
    ):
        content = frame(kind, SERVER, context, changed)
        yield Damage(f"body_{name}", rule, "malformed", message, content)
    rule = "refuses a frame whose sender is another"
    content = frame(kind, 1, context, body)
    yield Damage("another_sender", rule, "refused", "comes from", content)
    rule = "A state takes one kind of message"
    content = frame(kind + 2, SERVER, context, body)
    yield Damage("another_kind", rule, "wrong_state", f"of kind {kind + 2}", content)
