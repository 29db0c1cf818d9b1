"""Shamir's secret sharing of 32-byte secrets over a prime field.

Source: Shamir 1979, "How to share a secret".
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np

from pfl_lm import native
from pfl_lm.secagg.errors import MalformedMessage, Refused

PRIME = (1 << 256) + 297  # the least prime above 2^256: every 32-byte string is an element
SECRET_BYTES = 32
SHARE_BYTES = 33
_ELEMENT_BYTES = 40  # of a field element in the compiled loops

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
        int.from_bytes(random[at : at + 48], "little") % PRIME for at in range(0, len(random), 48)
    ]
    coefficients.append(int.from_bytes(secret, "little"))
    values = _evaluate(coefficients, [holder + 1 for holder in holders])
    return {
        holder: value.to_bytes(SHARE_BYTES, "little")
        for holder, value in zip(holders, values, strict=True)
    }


def recover(shares: Mapping[int, bytes], weights: Mapping[int, int]) -> bytes:
    """Recover the secret from shares by holder, with the ``weights`` of exactly these holders.

    Raises:
        MalformedMessage: a share outside the field.
        Refused: the shares belong to no 32-byte secret: at least one is wrong. Wrong shares that
            do give 32 bytes give wrong ones: compare the secret with its commitment.
    """
    value = sum(weights[holder] * element(share) for holder, share in shares.items()) % PRIME
    if value >> (8 * SECRET_BYTES):
        raise Refused("the shares belong to no secret: at least one of them is wrong")
    return value.to_bytes(SECRET_BYTES, "little")


def element(share: bytes) -> int:
    """Read a share as a field element.

    Raises:
        MalformedMessage: another length, or a number at or above the prime.
    """
    value = int.from_bytes(share, "little")
    if len(share) != SHARE_BYTES or value >= PRIME:
        raise MalformedMessage("a share must be 33 bytes below the field's prime")
    return value


def lagrange_weights(holders: Iterable[int]) -> dict[int, int]:
    """Lagrange's coefficients at zero for these holders, with one inversion for all of them."""
    points = [holder + 1 for holder in holders]
    loops = _native(points)
    if loops is not None:
        weights, scratch = (_elements(len(points)) for _ in range(2))
        loops.lagrange(_words(points), len(points), weights, scratch)
        return {x - 1: weight for x, weight in zip(points, _integers(weights), strict=True)}
    whole = math.prod(points) % PRIME
    denominators = [math.prod(row) % PRIME for row in _denominators(points)]
    return {
        x - 1: whole * inverse % PRIME
        for x, inverse in zip(points, _invert_all(denominators), strict=True)
    }


def _evaluate(coefficients: Sequence[int], points: Sequence[int]) -> list[int]:
    """The polynomial's values at the points, by Horner's rule, the highest power first."""
    loops = _native(points)
    if loops is not None:
        packed = b"".join(c.to_bytes(_ELEMENT_BYTES, "little") for c in coefficients)
        values = _elements(len(points))
        loops.evaluate(packed, len(coefficients), _words(points), len(points), values)
        return _integers(values)
    found = []
    for x in points:
        value = 0
        for coefficient in coefficients:  # points are small: one reduction at the end is cheaper
            value = value * x + coefficient
        found.append(value % PRIME)
    return found


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


def _native(points: Sequence[int]) -> ctypes.CDLL | None:
    """``native/field.c``, which computes the same; None without a compiler, or for huge points."""
    if max(points, default=0) >= 1 << 32:
        return None
    pointer, size = ctypes.c_void_p, ctypes.c_int64
    return native.functions(
        "field",
        evaluate=(None, ctypes.c_char_p, size, pointer, size, pointer),
        lagrange=(None, pointer, size, pointer, pointer),
    )


def _words(points: Sequence[int]) -> ctypes.Array[ctypes.c_uint64]:
    return (ctypes.c_uint64 * len(points))(*points)


def _elements(count: int) -> ctypes.Array[ctypes.c_char]:
    return ctypes.create_string_buffer(count * _ELEMENT_BYTES)


def _integers(elements: ctypes.Array[ctypes.c_char]) -> list[int]:
    raw = elements.raw
    pieces = range(0, len(raw), _ELEMENT_BYTES)
    return [int.from_bytes(raw[at : at + _ELEMENT_BYTES], "little") for at in pieces]
