"""Fields of b bits back to back: the textbook's bit string, in numpy and compiled alike."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pfl_lm import native
from pfl_lm.secagg import packing
from pfl_lm.secagg.ring import Ring

BITS = st.integers(8, 64)


@pytest.fixture(params=["compiled", "numpy"])
def way(request, without_compiled):
    if request.param == "numpy":
        without_compiled()
    elif native.load("packed") is None:
        pytest.skip("no C compiler")
    return request.param


def words_of(ring: Ring, count: int, seed: int) -> np.ndarray:
    drawn = np.random.default_rng(seed).integers(0, 2**64, count, dtype=np.uint64)
    return drawn.astype(ring.word)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(BITS, st.integers(1, 300), st.integers(0, 2**32))
def test_packing_is_the_textbook_bit_string(way, bits, dim, seed):
    ring = Ring(bits)
    words = words_of(ring, dim, seed)  # bits above b are left out
    number = sum((int(word) % 2**bits) << (bits * place) for place, word in enumerate(words))
    packed = ring.pack(words)
    assert packed == number.to_bytes(ring.packed_bytes(dim), "little")
    back = ring.unpack(packed, dim)
    assert back.dtype == ring.word
    assert np.array_equal(back, ring.reduce(words.copy()))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(BITS, st.integers(1, 5000), st.integers(1, 8), st.booleans(), st.integers(0, 2**32))
def test_rows_are_added_and_subtracted_in_the_ring(way, bits, count, vectors, subtract, seed):
    """A part of a longer total; what stands beside the part does not change."""
    ring, first = Ring(bits), 11
    rows = np.random.default_rng(seed).integers(
        0, 256, (packing.TOGETHER, packing.packed_bytes(count, bits)), dtype=np.uint8
    )
    total = words_of(ring, count + 20, seed + 1)
    expected = total.copy()
    packing.adder(total, list(rows), bits, subtract)(first, count, vectors)
    for row in rows[:vectors]:
        number = int.from_bytes(row.tobytes(), "little")
        fields = [(number >> (bits * place)) % 2**bits for place in range(min(count, 40))]
        part = expected[first : first + len(fields)]
        (np.subtract if subtract else np.add)(part, np.array(fields, ring.word), out=part)
    inside = slice(first, first + min(count, 40))
    assert np.array_equal(ring.reduce(total[inside].copy()), ring.reduce(expected[inside].copy()))
    assert np.array_equal(total[:first], expected[:first])
    assert np.array_equal(total[first + count :], expected[first + count :])


@pytest.mark.parametrize("bits", range(8, 65))
def test_a_long_vector_is_packed_and_read_back(way, bits):
    ring = Ring(bits)
    words = ring.reduce(words_of(ring, 10_003, bits))
    assert np.array_equal(ring.unpack(ring.pack(words), words.size), words)
