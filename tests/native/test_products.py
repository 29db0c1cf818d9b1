"""The compiled product against numpy's, on sizes that fill no tile, and row by row."""

from __future__ import annotations

import ctypes

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pfl_lm import native

SIZES = st.integers(1, 70)


def long(*numbers: int) -> list[ctypes.c_long]:
    return [ctypes.c_long(number) for number in numbers]


def at(array: np.ndarray) -> ctypes.c_void_p:
    return ctypes.c_void_p(array.ctypes.data)


@pytest.fixture(scope="module", autouse=True)
def loops():
    found = native.library("products")
    if found is None:
        pytest.skip("no compiled loops: no compiler, or PFL_LM_NATIVE=0")
    return found


def product(x: np.ndarray, matrix: np.ndarray, into: np.ndarray | None = None) -> np.ndarray:
    """x times matrix, packed from whichever layout it has; added to ``into`` if that is given."""
    loops = native.library("products")
    (rows, depth), columns = x.shape, matrix.shape[1]
    packed = np.full(loops.packed_size(*long(depth, columns)), np.nan, np.float32)
    strides = [stride // 4 for stride in matrix.strides]
    loops.pack_matrix(*long(depth, columns), at(matrix), *long(*strides), at(packed))
    y = np.full((rows, columns), np.nan, np.float32) if into is None else into.copy()
    operands = (at(x), *long(depth), at(packed), at(y), *long(columns), int(into is not None))
    assert loops.multiply_packed(*long(rows, columns, depth), *operands) == 0
    return y


@given(SIZES, SIZES, st.one_of(SIZES, st.integers(330, 700)), st.booleans(), st.integers(0, 9))
def test_any_size_and_layout(rows: int, columns: int, depth: int, flipped: bool, seed: int) -> None:
    draw = np.random.default_rng(seed)
    x = draw.standard_normal((rows, depth), np.float32)
    matrix = draw.standard_normal((depth, columns), np.float32)
    matrix = np.asfortranarray(matrix) if flipped else matrix
    exact = x.astype(np.float64) @ matrix.astype(np.float64)
    np.testing.assert_allclose(product(x, matrix), exact, atol=6e-6 * depth**0.5)
    y = draw.standard_normal((rows, columns), np.float32)
    np.testing.assert_allclose(product(x, matrix, y), exact + y, atol=6e-6 * depth**0.5)


@given(st.integers(1, 200), st.integers(0, 9))
def test_a_row_has_the_same_bits_beside_any_others(rows: int, seed: int) -> None:
    draw = np.random.default_rng(seed)
    x = draw.standard_normal((rows, 700), np.float32)
    matrix = draw.standard_normal((700, 37), np.float32)
    together = product(x, matrix)
    for row in {0, rows // 2, rows - 1}:
        np.testing.assert_array_equal(product(x[row : row + 1], matrix)[0], together[row])


def test_infinity_and_nan_reach_their_row_and_no_other() -> None:
    x, matrix = np.ones((9, 20), np.float32), np.ones((20, 21), np.float32)
    x[2, 3], x[5, 0] = np.nan, np.inf
    y = product(x, matrix)
    assert np.isnan(y[2]).all()
    assert np.isposinf(y[5]).all()
    np.testing.assert_array_equal(np.delete(y, (2, 5), 0), 20)
