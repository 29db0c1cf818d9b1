from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from pfl_lm.export.quantise import gptq as quantise
from pfl_lm.export.quantise.grids import INT4, INT8
from pfl_lm.export.quantise.grids import quantise as rounded
from pfl_lm.models.file import Model
from pfl_lm.models.models import ModelSpec, hidden_of, initialise

V, P = 300, 64


@pytest.fixture(scope="module")
def model() -> Model:
    spec = ModelSpec("cifg_lstm", V, P, hidden_dim=32)
    return Model(spec, {n: 8 * v for n, v in initialise(spec, 0).items()}, {})


@pytest.fixture(scope="module")
def windows() -> np.ndarray:
    return np.random.default_rng(0).integers(4, V, (200, 8))


WEIGHTS = st.floats(-1e3, 1e3, width=32).map(lambda x: x if abs(x) > 1e-30 else 0.0)


@given(arrays(np.float32, (3, 64), elements=WEIGHTS))
def test_rounding_errs_by_half_a_step_and_a_second_rounding_changes_nothing(matrix):
    for grid in (INT8, INT4):
        once = rounded(matrix, grid)
        step = np.repeat(once.scales, grid.group or 64, axis=1)
        assert np.abs(once.codes).max(initial=0) <= grid.most
        # A bfloat16 scale may lie 2⁻⁹ below the peak's, which the last code then misses.
        assert np.all(np.abs(once.values() - matrix) <= step * (0.5 + grid.most * 2**-8))
        assert np.array_equal(rounded(once.values(), grid).values(), once.values())


def test_zeros_stay_zeros():
    for grid in (INT8, INT4):
        assert not rounded(np.zeros((2, 32), np.float32), grid).values().any()


def test_widths_that_do_not_divide_are_refused():
    with pytest.raises(ValueError, match="multiples of 32"):
        rounded(np.zeros((2, 33), np.float32), INT4)


def test_a_fitted_table_lies_on_the_grid_so_every_quantiser_stores_it_as_it_is(model, windows):
    table = quantise.fitted(model, windows).parameters["embedding"].numpy()
    again = rounded(table, INT4).values()
    assert np.mean(np.all(np.isclose(again, table, rtol=1e-5, atol=0), axis=1)) > 0.99


def test_compensation_loses_less_of_the_scores_than_rounding_to_the_nearest(model, windows):
    table = model.parameters["embedding"]
    vectors = hidden_of(model.spec, model.parameters, windows).flatten(0, 1)

    def error(other: np.ndarray) -> float:
        return float(((torch.from_numpy(other) - table) @ vectors.mT).square().mean())

    fitted = quantise.fitted(model, windows).parameters["embedding"].numpy()
    assert error(fitted) < 0.8 * error(rounded(table.numpy(), INT4).values())


def test_the_model_that_came_in_is_untouched(model, windows):
    before = model.parameters["embedding"].clone()
    quantise.fitted(model, windows)
    assert torch.equal(before, model.parameters["embedding"])
