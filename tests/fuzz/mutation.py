"""Mutations of bytes: from a sound input to one that nobody meant."""

from __future__ import annotations

import random
from collections.abc import Sequence

_BORDERS = (0, 1, 0x7F, 0x80, 0xFF)
_WIDE = (0, 1, 0x7FFF_FFFF, 0x8000_0000, 0xFFFF_FFFF, (1 << 63) - 1, 1 << 63, (1 << 64) - 1)
_TEXT = (
    *(b"nan", b"inf", b"-1", b"1e999", b"null", b"[]", b"{}", b"true", b'""', b"\x00", b"\xff"),
    *(b"../../x", b"\xe2\x88\x9e", b"-", b"9" * 400, b"[" * 2000, b"'", b"#", b"="),
)


def mutated(data: bytes, seeds: Sequence[bytes], draw: random.Random) -> bytes:
    """Return the data after one to four mutations; some splice parts of another seed in."""
    changed = bytearray(data)
    for _ in range(draw.randint(1, 4)):
        at = draw.randint(0, len(changed))
        end = min(len(changed), at + draw.choice((1, 2, 4, 8, 32, 500)))
        match draw.randrange(8):
            case 0 if changed:
                changed[min(at, len(changed) - 1)] ^= 1 << draw.randrange(8)
            case 1:
                changed[at : at + 1] = bytes([draw.choice(_BORDERS)])
            case 2:
                width = draw.choice((4, 8))
                value = draw.choice(_WIDE) & ((1 << (8 * width)) - 1)
                changed[at : at + width] = value.to_bytes(width, draw.choice(("little", "big")))
            case 3:
                del changed[at:end]
            case 4:
                changed[at:at] = changed[at:end] * draw.choice((1, 2, 50))
            case 5:
                del changed[at:]
            case 6:
                other = draw.choice(seeds)
                start = draw.randint(0, len(other))
                changed[at:end] = other[start : start + 32]
            case _:
                changed[at:end] = draw.choice(_TEXT)
    return bytes(changed)
