"""Public random directions: nearly orthonormal, made again from their name, additive."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pfl_lm.payload.directions import Directions


def test_directions_are_unit_vectors_and_nearly_orthogonal() -> None:
    found = Directions(32, 20_000, 7, 3)
    basis = np.stack([found.combine(row) for row in np.eye(32, dtype=np.float32)])
    products = basis.astype(np.float64) @ basis.T
    assert np.allclose(np.diag(products), 1, atol=1e-5)
    off = products[~np.eye(32, dtype=bool)]
    assert abs(off.std() * np.sqrt(20_000) - 1) < 0.1


def test_a_direction_is_its_name() -> None:
    first = Directions(4, 1000, 7, 3)
    assert np.array_equal(first.signs(2), Directions(4, 1000, 7, 3).signs(2))
    for other in (Directions(4, 1000, 8, 3), Directions(4, 1000, 7, 4)):
        assert not np.array_equal(first.signs(2), other.signs(2))
    assert not np.array_equal(first.signs(1), first.signs(2))


@given(
    size=st.integers(1, 200_000),
    amounts=st.lists(st.floats(-10, 10, width=32), min_size=3, max_size=3),
)
@settings(max_examples=20, deadline=None)
def test_combining_is_linear(size: int, amounts: list[float]) -> None:
    found = Directions(3, size, 0, 0)
    together = found.combine(np.asarray(amounts, np.float32))
    one_by_one = np.zeros(size, np.float32)
    for number, amount in enumerate(amounts):
        found.add(one_by_one, found.signs(number), amount)
    assert np.allclose(together, one_by_one, atol=1e-5)


def test_what_is_no_direction_is_refused() -> None:
    with pytest.raises(IndexError, match="there are 3"):
        Directions(3, 8, 0, 0).signs(3)
    with pytest.raises(ValueError, match="3 directions"):
        Directions(3, 8, 0, 0).combine(np.zeros(2, np.float32))


def test_a_projection_is_the_inner_product_with_each_direction() -> None:
    directions = Directions(3, 21, seed=5, round=2)
    values = np.random.default_rng(0).normal(size=21)
    each = [directions.combine(row) for row in np.eye(3, dtype=np.float32)]
    np.testing.assert_allclose(directions.project(values), np.stack(each) @ values, rtol=1e-5)
