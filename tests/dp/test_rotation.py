"""The rotation keeps norms, is undone exactly, and makes any update flat."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.linalg import hadamard
from scipy.stats import binomtest

from pfl_lm.dp.encoding import decode, protect
from pfl_lm.dp.grid import Grid
from pfl_lm.dp.rotation import Rotation, block_of
from pfl_lm.dp.sampler.random_bits import reproducible_bits


def seed_of(number: int) -> bytes:
    return number.to_bytes(32, "little")


@given(st.integers(1, 5000), st.integers(0, 2**32))
def test_norms_are_kept_and_the_inverse_undoes(dim, number):
    rows = np.random.default_rng(number).standard_normal((2, dim)).astype(np.float32)
    rotation, turned = Rotation(dim, seed_of(number)), rows.copy()
    rotation.forward(turned)
    lengths = np.linalg.norm(rows, axis=1)
    assert np.linalg.norm(turned, axis=1) == pytest.approx(lengths, rel=1e-5)
    rotation.inverse(turned)
    assert np.abs(turned - rows).max() < 1e-5 * lengths.max()


@pytest.mark.parametrize("dim", [64, 100, 1024])
def test_it_is_the_signed_hadamard_matrix_on_both_ends(dim):
    """Written out: H·D on the first block, then on the last; signs from the stated key stream."""
    block, turned = block_of(dim), np.eye(dim, dtype=np.float32)
    Rotation(dim, seed_of(3)).forward(turned)
    matrix, bits = np.eye(dim), reproducible_bits(seed_of(3))
    for start in [0] if block == dim else [0, dim - block]:
        packed = np.empty(-(-block // 8), dtype=np.uint8)
        bits.fill(packed)
        signs = 1 - 2.0 * np.unpackbits(packed, bitorder="little")[:block]
        stage = np.eye(dim)
        stage[start : start + block, start : start + block] = hadamard(block) * signs / block**0.5
        matrix = stage @ matrix
    assert np.allclose(turned.T, matrix, atol=1e-6)


@pytest.mark.parametrize("dim", [1, 7, 8, 9, 100, 4097, 70_001, 530_000])
def test_the_kernel_rotates_as_numpy_does(dim, without_compiled):
    """From single numbers to transforms of several columns; an inverse without the compiler."""
    rows = np.random.default_rng(dim).standard_normal((2, dim)).astype(np.float32)
    rotation, turned = Rotation(dim, seed_of(dim)), rows.copy()
    rotation.forward(turned)
    without_compiled()
    expected = rows.copy()
    rotation.forward(expected)
    assert np.abs(turned - expected).max() < 1e-5
    rotation.inverse(turned)
    assert np.abs(turned - rows).max() < 1e-5


@pytest.mark.parametrize("dim", [4096, 5000, 8191])
@pytest.mark.parametrize("place", [0, 2500, -1])
def test_whatever_lies_in_one_coordinate_spreads_over_all(dim, place):
    row = np.zeros((1, dim), dtype=np.float32)
    row[0, place] = 1
    Rotation(dim, seed_of(dim)).forward(row)
    # Subgaussian with variance proxy 1/m: beyond 6/√m with chance d·2e^-18.
    assert np.abs(row).max() < 6 / block_of(dim) ** 0.5


def test_rounds_rotate_differently_and_rows_that_are_not_finite_stay_so():
    rows = np.ones((3, 100), dtype=np.float32)
    other = rows.copy()
    rows[1, 3], rows[2, 5] = np.nan, np.inf
    Rotation(100, seed_of(1)).forward(rows)
    Rotation(100, seed_of(2)).forward(other)
    assert not np.allclose(rows[0], other[0])
    assert not np.isfinite(rows[1:]).all(axis=1).any()
    with pytest.raises(ValueError, match="float32"):
        Rotation(100, seed_of(1)).forward(rows.astype(np.float64))
    with pytest.raises(ValueError, match="dim"):
        Rotation(0, seed_of(1))


def test_a_rotated_sum_is_decoded_without_bias():
    """Mean over many roundings of two rotated, clipped, encoded and decoded updates."""
    dim, trials, clip = 300, 400, 0.5
    grid = Grid.choose(dim, clip, reports_max=2, rotated=True)
    rng = np.random.default_rng(5)
    rows = rng.standard_normal((2, dim)).astype(np.float32)
    rows *= [[0.4 / np.linalg.norm(rows[0])], [3.0 / np.linalg.norm(rows[1])]]
    expected = (rows[0] + rows[1] * (clip / 3.0)) / 2
    decoded = np.empty((trials, dim), dtype=np.float32)
    for trial in range(trials):
        rotation, turned = Rotation(dim, seed_of(trial)), rows.copy()
        rotation.forward(turned)
        vectors, found = protect(turned, grid, None, reproducible_bits(seed_of(10_000 + trial)))
        assert found.norms == pytest.approx([0.4, 3.0], rel=1e-4)
        decoded[trial] = decode(vectors.sum(axis=0), grid, 2)
        rotation.inverse(decoded[trial : trial + 1])
    error = decoded.mean(axis=0) - expected
    deviation = decoded.std(axis=0, ddof=1) / trials**0.5
    within = int((np.abs(error) < 2 * deviation).sum())
    assert binomtest(within, dim, 0.9545).pvalue > 1e-6
    assert abs(float(error @ expected)) < 5 * float(deviation.mean() * np.linalg.norm(expected))
