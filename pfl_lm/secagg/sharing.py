"""Shamir's secret sharing of 32-byte secrets over a prime field.

Source: Shamir 1979, "How to share a secret".
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache
from operator import mul

import numpy as np

from pfl_lm import native
from pfl_lm.secagg.errors import MalformedMessage, Refused

PRIME = (1 << 256) + 297  # the least prime above 2^256: every 32-byte string is an element
SECRET_BYTES = 32
SHARE_BYTES = 33
_ELEMENT_BYTES = 40  # of a field element in native/field.c

Entropy = Callable[[int], bytes]


def share(
    secret: bytes, holders: Sequence[int], threshold: int, entropy: Entropy
) -> dict[int, bytes]:
    """Split a secret into one 33-byte share per holder; any ``threshold`` of them recover it.

    Args:
        secret: 32 bytes.
        holders: distinct indices >= 0; holder i gets the polynomial's value at ``i + 1``.
        threshold: t, from 1 to the number of holders.
        entropy: ``n -> n`` unpredictable bytes.

    Guarantees:
        Any ``threshold - 1`` shares are uniform on the field and independent of the secret, up to
        the 2^-127 by which a 384-bit number modulo the prime misses uniform.
    """
    if len(secret) != SECRET_BYTES:
        raise ValueError(f"a secret has {SECRET_BYTES} bytes: {len(secret)}")
    if len(set(holders)) != len(holders) or min(holders, default=0) < 0:
        raise ValueError("holders must be distinct indices from 0")
    if not 1 <= threshold <= len(holders):
        raise ValueError(f"threshold must be from 1 to the {len(holders)} holders: {threshold}")
    random = entropy(48 * (threshold - 1))  # 384 bits for each coefficient but the last
    coefficients = [  # of the highest power first, for Horner's rule
        _integer(random[at : at + 48]) % PRIME for at in range(0, len(random), 48)
    ]
    coefficients.append(_integer(secret))
    values = _evaluate(coefficients, [holder + 1 for holder in holders])
    return {
        holder: value.to_bytes(SHARE_BYTES, "little")
        for holder, value in zip(holders, values, strict=True)
    }


def recover(shares: Mapping[int, bytes]) -> bytes:
    """Recover the secret from as many shares, by holder, as its threshold.

    Raises:
        MalformedMessage: a share outside the field.
        Refused: the shares belong to no 32-byte secret: at least one is wrong. Wrong shares that
            do give 32 bytes give wrong ones: compare the secret with its commitment.
    """
    for share in shares.values():
        check_share(share)
    value = _combine(tuple(holder + 1 for holder in shares), list(shares.values()))
    if value >> (8 * SECRET_BYTES):
        raise Refused("the shares belong to no secret: at least one of them is wrong")
    return value.to_bytes(SECRET_BYTES, "little")


def check_share(share: bytes) -> None:
    """Raise ``MalformedMessage`` unless a share is a field element: 33 bytes below the prime."""
    # The prime is just above 2^256: what fits 32 bytes lies below it.
    fits = len(share) == SHARE_BYTES and not (share[-1] and _integer(share) >= PRIME)
    if not fits:
        raise MalformedMessage("a share must be 33 bytes below the field's prime")


def _combine(points: tuple[int, ...], shares: Sequence[bytes]) -> int:
    """The value at zero of the polynomial through (point, share)."""
    weights = _weights(points)
    compiled = _compiled(points)
    if compiled is not None:
        combined = _elements(1)
        compiled.combine(weights, b"".join(shares), len(points), combined)
        return _integer(combined.raw)
    value: int = sum(map(mul, _integers(weights), map(_integer, shares))) % PRIME
    return value


@lru_cache(maxsize=64)
def _weights(points: tuple[int, ...]) -> bytes:
    """Lagrange's coefficients at zero, as elements, with one inversion for all of them.

    In a complete graph all secrets are recovered from the same holders' shares.
    """
    compiled = _compiled(points)
    if compiled is not None:
        weights, scratch = (_elements(len(points)) for _ in range(2))
        compiled.lagrange(_words(points), len(points), weights, scratch)
        return weights.raw
    whole = math.prod(points) % PRIME
    denominators = [math.prod(row) % PRIME for row in _denominators(points)]
    return _pack(whole * inverse % PRIME for inverse in _invert_all(denominators))


def _evaluate(coefficients: Sequence[int], points: Sequence[int]) -> list[int]:
    """The polynomial's values at the points, by Horner's rule, the highest power first."""
    compiled = _compiled(points)
    if compiled is not None:
        room = _elements(len(points))
        packed = _pack(coefficients)
        compiled.evaluate(packed, len(coefficients), _words(points), len(points), room)
        return _integers(room.raw)
    values = []
    for x in points:
        value = 0
        for coefficient in coefficients:  # points are small: one reduction at the end is cheaper
            value = value * x + coefficient
        values.append(value % PRIME)
    return values


def _denominators(points: Sequence[int]) -> list[list[int]]:
    """For each point x, factors of the product of x and of all (other - x).

    Factors are small: as many as fit a machine word are multiplied there, exactly.
    """
    distinct = np.array(points, dtype=np.int64)
    factors = distinct[None, :] - distinct[:, None]
    np.fill_diagonal(factors, distinct)
    together = max(1, 62 // int(np.abs(factors).max(initial=1)).bit_length())
    missing = -len(points) % together
    padded = np.pad(factors, ((0, 0), (0, missing)), constant_values=1)
    products: list[list[int]] = padded.reshape(len(points), -1, together).prod(axis=2).tolist()
    return products


def _invert_all(values: Sequence[int]) -> list[int]:
    """Invert non-zero field elements at the price of one (Montgomery's trick)."""
    prefix = [1]
    for value in values:
        prefix.append(prefix[-1] * value % PRIME)
    inverse = pow(prefix[-1], -1, PRIME)
    inverses = [0] * len(values)
    for at in range(len(values) - 1, -1, -1):
        inverses[at] = inverse * prefix[at] % PRIME
        inverse = inverse * values[at] % PRIME
    return inverses


def _compiled(points: Sequence[int]) -> ctypes.CDLL | None:
    """``native/field.c``, which computes the same; None without it, or for points from 2^32 on."""
    return None if max(points, default=0) >= 1 << 32 else native.load("field")


def _words(points: Sequence[int]) -> ctypes.Array[ctypes.c_uint64]:
    return (ctypes.c_uint64 * len(points))(*points)


def _elements(count: int) -> ctypes.Array[ctypes.c_char]:
    return ctypes.create_string_buffer(count * _ELEMENT_BYTES)


def _pack(integers: Iterable[int]) -> bytes:
    return b"".join(integer.to_bytes(_ELEMENT_BYTES, "little") for integer in integers)


def _integers(elements: bytes) -> list[int]:
    pieces = range(0, len(elements), _ELEMENT_BYTES)
    return [_integer(elements[at : at + _ELEMENT_BYTES]) for at in pieces]


def _integer(raw: bytes) -> int:
    return int.from_bytes(raw, "little")
