"""Amplification by sampling: the bounds dominate what they bound, computed by quadrature."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import special

from pfl_lm.dp.accounting import gaussian, poisson, renyi

GRID = np.linspace(-60, 60, 24_001)


def gaussian_curve(z, sensitivity=1.0):
    return lambda orders: orders * sensitivity**2 / (2 * z**2)


def log_mixture(rate, absent, present, z):
    """Return ln of (1−rate)·N(absent, z²) + rate·N(present, z²) on the grid."""
    terms = [-((GRID - mean) ** 2) / (2 * z**2) for mean in (absent, present)]
    with np.errstate(divide="ignore"):
        weights = np.log([[1 - rate], [rate]])
    return special.logsumexp(np.array(terms) + weights, axis=0) - math.log(
        z * math.sqrt(2 * math.pi)
    )


def divergence(log_p, log_q, order):
    step = GRID[1] - GRID[0]
    integral = special.logsumexp(order * log_p + (1 - order) * log_q) + math.log(step)
    return integral / (order - 1)


@pytest.mark.parametrize(
    ("order", "rate", "slope", "expected"),
    [
        (8, 0.01, 0.05, 3.850862935641876e-05),
        (32, 0.001, 0.02, 6.560431769008752e-07),
        (4, 0.1, 0.5, 0.026349175535839525),
    ],
)
def test_poisson_reproduces_published_code(order, rate, slope, expected):
    curve = renyi.amplified_by_poisson(lambda orders: orders * slope / 2, rate)
    assert curve[list(renyi.ORDERS).index(order)] == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(("z", "rate"), [(0.5, 0.01), (1.0, 0.001), (1.0, 0.3), (4.0, 0.02)])
def test_poisson_dominates_the_exact_gaussian(z, rate):
    general = renyi.amplified_by_poisson(gaussian_curve(z), rate)
    exact = poisson.curve(z, rate)
    assert np.all(general >= exact * (1 - 1e-9))
    assert np.all(general <= gaussian_curve(z)(renyi.ORDERS))


@pytest.mark.parametrize("order", [2, 3, 8, 20])
@pytest.mark.parametrize(("z", "rate"), [(2.0, 0.01), (1.5, 0.2)])
@pytest.mark.parametrize(
    "means",
    [(-1, 1, 0), (-1, 1, -1), (0, 1, -1)],  # without the user; with; with the other data
    ids=["zero_out", "add_remove", "poisson replace_one"],
)
def test_fixed_size_dominates_explicit_pairs(order, z, rate, means):
    without, one, other = means
    bound = renyi.amplified_by_fixed_size(gaussian_curve(z, sensitivity=2), rate)
    bound = bound[list(renyi.ORDERS).index(order)]
    p, q = log_mixture(rate, without, one, z), log_mixture(rate, without, other, z)
    for first, second in ((p, q), (q, p)):
        assert divergence(first, second, order) <= bound * (1 + 1e-9)


def test_fixed_size_costs_more_than_poisson():
    poisson_ = renyi.amplified_by_poisson(gaussian_curve(1.0), 0.001)
    fixed = renyi.amplified_by_fixed_size(gaussian_curve(1.0, 2), 0.001)
    assert np.all(fixed >= poisson_)


@given(st.floats(0.3, 20), st.floats(1e-9, 1e-2))
def test_conversion_is_sound_for_the_gaussian(z, delta):
    """Rényi loses against the exact figure, and not much."""
    exact = gaussian.epsilon(z, delta)
    converted = renyi.epsilon(gaussian_curve(z)(renyi.ORDERS), delta)
    assert exact - 1e-9 <= converted
    if exact < 10:  # above, orders between 1 and 2 would be needed to stay close
        assert converted <= 1.35 * exact + 0.05


def test_no_divergence_costs_nothing():
    assert renyi.epsilon(np.zeros(len(renyi.ORDERS)), 1e-6) == 0.0
    assert renyi.epsilon(np.full(len(renyi.ORDERS), np.inf), 1e-6) == math.inf
