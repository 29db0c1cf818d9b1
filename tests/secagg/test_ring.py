"""The ring: integers, wrapping, and packing to b bits."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pfl_lm.secagg.errors import MalformedMessage
from pfl_lm.secagg.ring import Ring

BITS = st.integers(8, 64)


def embedded(ring: Ring, integers: np.ndarray) -> np.ndarray:
    words = ring.zeros(integers.size)
    ring.embed(integers, words)
    return words


@given(BITS, st.integers(0, 400), st.integers(0, 2**32))
def test_embed_then_centre_is_the_identity_inside_the_ring(bits, dim, seed):
    ring = Ring(bits)
    values = np.random.default_rng(seed).integers(-ring.largest, ring.largest, dim, endpoint=True)
    assert np.array_equal(ring.centre(embedded(ring, values)), values)


@pytest.mark.parametrize("bits", [8, 9, 16, 17, 20, 32, 33, 53, 63, 64])
def test_the_ring_wraps_one_beyond_its_largest_sum(bits):
    ring = Ring(bits)
    edge = np.array([ring.largest, -ring.largest])
    beyond = np.array([1, -1])
    exact = ring.centre(embedded(ring, edge))
    assert exact.tolist() == [ring.largest, -ring.largest]
    total = embedded(ring, edge) + embedded(ring, beyond)
    # One above the largest is the most negative representative, which belongs to -(largest + 1).
    assert ring.centre(ring.reduce(total)).tolist() == [-ring.largest - 1, -ring.largest - 1]
    further = total + embedded(ring, beyond)
    assert ring.centre(ring.reduce(further)).tolist() == [-ring.largest, ring.largest]


def test_integers_above_float_precision_survive():
    ring = Ring(63)
    values = np.array([2**24 + 1, 2**53 + 1, -(2**53) - 1, 2**62 - 1])
    assert np.array_equal(ring.centre(embedded(ring, values)), values)


@pytest.mark.parametrize("bits", [16, 20, 32])
def test_a_packed_vector_has_one_length_and_one_encoding(bits):
    ring = Ring(bits)
    packed = bytes(ring.pack(embedded(ring, np.arange(7))))
    for wrong in (packed[:-1], packed + b"\0", b""):
        with pytest.raises(MalformedMessage, match="bytes"):
            ring.unpack(wrong, 7)
    if bits == 20:  # 140 bits leave four unused
        with pytest.raises(MalformedMessage, match="unused"):
            ring.unpack(packed[:-1] + bytes([packed[-1] | 0x80]), 7)


@pytest.mark.parametrize("bits", [7, 65, 20.0, True])
def test_impossible_rings_are_refused(bits):
    with pytest.raises(ValueError, match="bits"):
        Ring(bits)
