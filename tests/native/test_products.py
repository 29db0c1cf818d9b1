"""The compiled product against numpy's, on sizes that fill no tile, and row by row."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pfl_lm import native
from pfl_lm.native import products

SIZES = st.integers(1, 70)


@pytest.fixture(scope="module", autouse=True)
def compiled_here():
    if native.load("products") is None:
        pytest.skip("no C kernels: no compiler, or PFL_LM_NATIVE=0")


def product(x: np.ndarray, matrix: np.ndarray, into: np.ndarray | None = None) -> np.ndarray:
    """x times matrix of one device; added to ``into`` if that is given."""
    y = None if into is None else torch.from_numpy(into.copy())[None]
    return products.times(torch.from_numpy(x)[None], torch.from_numpy(matrix), None, y)[0].numpy()


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


@given(st.integers(1, 4), SIZES, SIZES, st.one_of(SIZES, st.just(340)), st.integers(0, 15))
def test_devices_together_shared_or_not_with_bias_and_gradients(
    devices: int, rows: int, outputs: int, inputs: int, case: int
) -> None:
    draw = torch.Generator().manual_seed(case)
    shared, own_bias, strided = case & 1, case & 2, case & 4
    x = torch.randn(devices, rows + 3, inputs, generator=draw)[:, 3:]
    dy = torch.randn(devices, rows, outputs + 2, generator=draw)[..., : None if strided else -2]
    width = dy.shape[-1]
    weight = torch.randn(*(() if shared else (devices,)), width, inputs, generator=draw)
    bias = torch.randn(*((devices,) if own_bias else ()), width, generator=draw)
    expected = x.double() @ weight.double().mT + (bias[:, None] if own_bias else bias)
    close = {"atol": 1e-4, "rtol": 1e-4}
    torch.testing.assert_close(products.times(x, weight.mT, bias).double(), expected, **close)
    back = dy.double() @ weight.double()
    torch.testing.assert_close(products.times(dy, weight).double(), back, **close)
    summed = dy.double().mT @ x.double()
    torch.testing.assert_close(products.gradient(dy, x).double(), summed, **close)


@given(
    st.integers(1, 3),
    st.one_of(SIZES, st.just(340)),
    st.sampled_from([1, 12, 13, 143, 144, 150, 300]),
    st.sampled_from([1, 16, 17, 96]),
    st.booleans(),
)
def test_gradients_added_straight_to_what_is_trained(
    devices: int, rows: int, outputs: int, inputs: int, with_bias: bool
) -> None:
    draw = torch.Generator().manual_seed(rows)
    x = torch.randn(devices, rows, inputs, generator=draw)
    dy = torch.randn(devices, rows, outputs + 5, generator=draw)[..., 5:]
    trained = torch.randn(devices, outputs * (inputs + 1) + 3, generator=draw)
    into = trained[:, 3 : 3 + outputs * inputs].view(devices, outputs, inputs)
    bias = trained[:, 3 + outputs * inputs :]
    expected, biases = (into - 0.3 * dy.mT @ x, bias - 0.3 * dy.sum(1) if with_bias else bias + 0)
    before = trained[:, :3].clone()
    products.gradient(dy, x, into, bias if with_bias else None, -0.3)
    torch.testing.assert_close(into, expected, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(bias, biases, atol=1e-4, rtol=1e-4)
    assert torch.equal(trained[:, :3], before)


@given(
    *(st.integers(1, 3), SIZES, SIZES, st.one_of(SIZES, st.integers(660, 700))),
    *(st.booleans(), st.booleans(), st.booleans(), st.integers(0, 9)),
)
def test_products_in_bfloat16(devices, rows, columns, depth, own, flipped, add, seed) -> None:
    """Of what torch rounds to 16 bits, summed in 32: by one instruction for two, or without it."""
    draw = torch.Generator().manual_seed(seed)
    x = torch.randn(devices, rows, depth, generator=draw)
    held = (devices,) if own else ()
    matrix = torch.randn(*held, depth, columns, generator=draw).bfloat16()
    matrix = matrix.mT.contiguous().mT if flipped else matrix
    y = torch.randn(devices, rows, columns, generator=draw)
    exact = x.bfloat16().double() @ matrix.double() + (y if add else 0)
    found = products.times(x, matrix, None, y) if add else products.times(x, matrix)
    np.testing.assert_allclose(found, exact, atol=6e-6 * depth**0.5)
    alone = products.times(x[:1, -1:], matrix[:1] if own else matrix)
    together = products.times(x, matrix)
    assert torch.equal(alone[0, 0], together[0, -1]), "a row has the same bits beside any others"


@given(
    *(st.integers(1, 3), st.one_of(SIZES, st.just(700)), st.sampled_from([1, 12, 17, 150])),
    *(st.sampled_from([1, 7, 33, 96]), st.integers(0, 9)),
)
def test_gradients_in_bfloat16(devices, rows, outputs, inputs, seed) -> None:
    draw = torch.Generator().manual_seed(seed)
    x = torch.randn(devices, rows, inputs, generator=draw)
    dy = torch.randn(devices, rows, outputs, generator=draw)
    into, bias = torch.zeros(devices, outputs, inputs), torch.zeros(devices, outputs)
    products.gradient(dy, x, into, bias, -0.5, low=True)
    exact = (-0.5 * dy).bfloat16().double().mT @ x.bfloat16().double()
    np.testing.assert_allclose(into, exact, atol=6e-6 * rows**0.5)
    torch.testing.assert_close(bias, -0.5 * dy.sum(1), atol=1e-4, rtol=1e-4)
    alone = products.gradient(dy[-1:], x[-1:], low=True)
    np.testing.assert_allclose(alone[0], -2 * into[-1], atol=1e-5 * rows**0.5)


@given(
    *(st.integers(1, 3), st.one_of(SIZES, st.just(150)), SIZES, st.one_of(SIZES, st.just(600))),
    *(st.integers(1, 40), st.integers(0, 15), st.booleans()),
)
def test_a_layer_with_factors_in_one_call(
    devices: int, rows: int, outputs: int, inputs: int, rank: int, case: int, low: bool
) -> None:
    """Forward and back; factors of few columns, of one vector and of several; of odd length."""
    draw = torch.Generator().manual_seed(case)
    own, own_factors, own_bias, back = case & 1, case & 2, case & 4, case & 8
    held, (o, i) = (devices,), (outputs, inputs)
    weight = torch.randn(*(held if own else ()), o, i, generator=draw) / i**0.5
    weight = weight.bfloat16() if low else weight
    a = torch.randn(*(held if own_factors else ()), rank, i, generator=draw) / i**0.5
    b = torch.randn(*(held if own_factors else ()), o, rank, generator=draw)
    bias = None if back else torch.randn(*(held if own_bias else ()), o, generator=draw)
    x = torch.randn(devices, rows, o if back else i, generator=draw)
    y, inner = products.through_layer(x, weight, a, b, 0.5, bias, back=bool(back))
    through = (x.bfloat16() if low else x).double()
    near = 0.5 * x.double() @ (b.double() if back else a.double().mT)
    far = near @ (a.double() if back else b.double().mT)
    exact = through @ (weight.double() if back else weight.double().mT) + far
    exact = exact if bias is None else exact + (bias[:, None] if own_bias else bias)
    close = {"atol": 1e-5 * (rank * max(o, i)) ** 0.5, "rtol": 1e-5}
    torch.testing.assert_close(inner.double(), near, **close)
    torch.testing.assert_close(y.double(), exact, **close)
    alone = [each[:1] if own_factors else each for each in (a, b)]
    first = weight[:1] if own else weight
    row, _ = products.through_layer(x[:1, -1:], first, *alone, 0.5, None, back=bool(back))
    together, _ = products.through_layer(x, weight, a, b, 0.5, None, back=bool(back))
    assert torch.equal(row[0, 0], together[0, -1]), "a row has the same bits beside any others"


@pytest.mark.parametrize("rank", [1, 3, 4, 8, 9, 16, 17])
def test_infinity_in_the_last_odd_place_of_a_narrow_product(rank: int) -> None:
    x = torch.ones(1, 2, 5)
    x[0, 1, 4] = torch.inf
    weight, a, b = torch.zeros(3, 5), torch.ones(rank, 5), torch.ones(3, rank)
    y, inner = products.through_layer(x, weight, a, b, 1.0)
    assert torch.equal(inner[0], torch.tensor([[5.0], [torch.inf]]).expand(2, rank))
    assert torch.equal(y[0, 0], torch.full((3,), 5.0 * rank))


@pytest.mark.parametrize("place", [0, 1, 30, 31, 32, 38])
def test_numbers_are_rounded_to_bfloat16_as_torch_does(place: int) -> None:
    """To the nearest, ties to even, up to infinity; NaN stays NaN whatever bits it has."""
    ties = torch.tensor([0x3F808000, 0x3F818000, 0x3F808001, 0x3F817FFF, 0x7F7F8000, 0x7F7F7FFF])
    nans = torch.tensor([0x7FFFFFFF, 0x7F800001, 0x7FC00000, 0x7F800000, 0, 0x00800000])
    drawn = torch.randint(
        0x00800000, 0x7F800000, (100,), generator=torch.Generator().manual_seed(1)
    )
    numbers = torch.cat([ties, nans, drawn]).to(torch.int32).view(torch.float32)
    numbers = torch.cat([numbers, -numbers])
    x = torch.zeros(1, len(numbers), 39)
    x[0, :, place] = numbers
    found = products.times(x, torch.ones(39, 1).bfloat16())[0, :, 0]
    np.testing.assert_array_equal(found, numbers.bfloat16().float())
