"""One word of 32 bits rounds a coordinate and draws its noise: which bits do what."""

from __future__ import annotations

from fractions import Fraction
from math import floor

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pfl_lm.dp.sampler.alias import SHARE_BITS, Alias
from pfl_lm.dp.sampler.arrays import Int64s, Octets, Words
from pfl_lm.dp.sampler.random_bits import RandomBits
from pfl_lm.dp.sampler.rounding import round_at_random

WORDS = st.integers(0, 2**32 - 1)
LOW_BITS = st.integers(0, 9)


class Given(RandomBits):
    """RandomBits that are the given words."""

    def __init__(self, words: Words) -> None:
        super().__init__(bytes(32))
        self.words = words

    def octets(self, count: int) -> Octets:
        assert count == self.words.nbytes
        return self.words.view(np.uint8)


def alias_of(low_bits: int) -> Alias:
    """A table of uneven shares, the rest's among them."""
    cuts = np.sort(np.random.default_rng(3).integers(0, 2**SHARE_BITS, 1023))
    return Alias.of(np.diff(cuts, prepend=0, append=2**SHARE_BITS).tolist(), low_bits)


def rounded(values: np.ndarray, words: np.ndarray, alias: Alias) -> tuple[Int64s, list[int]]:
    out = np.zeros(len(values), np.int64)
    given_words = np.asarray(words, dtype=np.uint32)
    _, left = round_at_random(values.astype(np.float32), 1.0, Given(given_words), out, alias)
    return out, left.tolist()


@given(word=WORDS, low_bits=LOW_BITS, value=st.integers(-(2**12), 2**12))
def test_a_word_is_read_as_it_is_written_down(word: int, low_bits: int, value: int) -> None:
    """Spare bits and nothing else round; the others draw, as if nothing had been rounded."""
    alias = alias_of(low_bits)
    spare = alias.spare_bits
    assert spare == 11 - low_bits
    exact = Fraction(value, 16)
    dither = Fraction(2 * (word >> 1 & 2**spare - 1) + 1, 2 ** (spare + 1))
    noise = np.zeros(1, np.int64)
    left = alias.add(np.array([word], np.uint32).view(np.uint8), noise).tolist()
    out, left_here = rounded(np.array([float(exact)]), np.array([word]), alias)
    assert out[0] == floor(exact + dither) + noise[0]
    assert left_here == left


@given(word=WORDS, low_bits=LOW_BITS, flipped=st.integers(0, 2**11 - 1))
def test_spare_bits_draw_nothing(word: int, low_bits: int, flipped: int) -> None:
    alias = alias_of(low_bits)
    other = word ^ (flipped & 2**alias.spare_bits - 1) << 1
    out, left = rounded(np.array([7.0, 7.0]), np.array([word, other]), alias)
    assert out[0] == out[1]
    assert len(left) in (0, 2)


@pytest.mark.parametrize("low_bits", range(10))
def test_over_all_spare_bits_a_fraction_rounds_up_as_often_as_it_says(low_bits: int) -> None:
    """Exactly so for a fraction of as many bits, and to half a dither for any other."""
    alias = alias_of(low_bits)
    count = 2**alias.spare_bits
    words = np.arange(count, dtype=np.uint32) << np.uint32(1) | np.uint32(0xABC00000)
    sample = rounded(np.zeros(1), words[:1], alias)[0][0]
    for numerator in {0, 1, count // 3, count - 1}:
        ups = rounded(np.full(count, numerator / count - 2), words, alias)[0] - sample + 2
        assert ups.sum() == numerator
    ups = rounded(np.full(count, 0.3), words, alias)[0] - sample
    assert abs(ups.mean() - 0.3) <= 0.5 / count
