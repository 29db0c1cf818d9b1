"""Compiled functions of single numbers against numpy's in double precision."""

from __future__ import annotations

import ctypes
from pathlib import Path

import numpy as np
import pytest
from scipy.special import erf

from pfl_lm import native
from pfl_lm.native import compiler

FUNCTIONS = {  # name: reference, largest error in units of the last place
    "exp2": (np.exp2, 1.5),
    "exp": (np.exp, 1.5),
    "sigmoid": (lambda x: 1 / (1 + np.exp(-x)), 3),
    "tanh": (np.tanh, 2),
    "erf": (erf, 3),
}
LEAST = 2.4e-38  # the least number of full precision, and a bit


@pytest.fixture(scope="module")
def elementwise():
    """The functions of vector.h over arrays: elementwise.c beside this file, compiled."""
    chosen = None if native.load("products") is None else compiler.find()
    if chosen is None:
        pytest.skip("no C kernels: no compiler, or PFL_LM_NATIVE=0")
    source = Path(__file__).with_name("elementwise.c")
    return ctypes.CDLL(str(compiler.build(source, chosen, native.SOURCES)))


def applied(library, name: str, x: np.ndarray) -> np.ndarray:
    y = np.empty_like(x)
    getattr(library, f"{name}_each")(
        ctypes.c_long(len(x)), ctypes.c_void_p(x.ctypes.data), ctypes.c_void_p(y.ctypes.data)
    )
    return y


@pytest.mark.parametrize("name", FUNCTIONS)
def test_the_error_is_a_few_units_in_the_last_place_everywhere(elementwise, name: str) -> None:
    tiny = np.geomspace(1e-40, 100, 100_003)
    spread = (np.linspace(-160, 140, 400_001), np.linspace(-10, 10, 400_003), tiny, -tiny)
    x = np.concatenate(spread).astype(np.float32)
    reference, units = FUNCTIONS[name]
    with np.errstate(over="ignore"):
        exact = reference(x.astype(np.float64))
        nearest = exact.astype(np.float32)
    y = applied(elementwise, name, x)
    np.testing.assert_array_equal(np.isinf(y), np.isinf(nearest))
    full = np.isfinite(nearest) & (np.abs(nearest) > LEAST)
    error = np.abs(y[full] - exact[full]) / np.spacing(np.abs(nearest[full]))
    assert error.max() < units
    small = np.isfinite(nearest) & ~full
    np.testing.assert_allclose(y[small], exact[small], atol=LEAST)


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("count", [1, 7, 8, 9, 31])
def test_infinity_and_nan_propagate_wherever_they_stand(elementwise, name: str, count: int) -> None:
    for special in (np.inf, -np.inf, np.nan, 0.0):
        for place in range(count):
            x = np.zeros(count, np.float32)
            x[place] = special
            with np.errstate(over="ignore"):
                expected = FUNCTIONS[name][0](x)
            np.testing.assert_allclose(applied(elementwise, name, x), expected, rtol=1e-6)
