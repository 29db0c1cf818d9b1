"""The Poisson-sampled Gaussian: tight, sound in both directions, silent when it cannot tell."""

from __future__ import annotations

import math

import pytest
from scipy.special import ndtr

from pfl_lm.dp.accounting import poisson


def one_round_adding(z, rate, delta):
    """Return the exact ε of one round in the direction in which a user is added."""

    def exact_delta(epsilon):
        edge = (math.exp(-epsilon) - (1 - rate)) / rate
        if edge <= 0:
            return 0.0
        x = z**2 * math.log(edge) + 0.5
        mixture = (1 - rate) * ndtr(x / z) + rate * ndtr((x - 1) / z)
        return ndtr(x / z) - math.exp(epsilon) * mixture

    low, high = 0.0, -math.log1p(-rate)
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if exact_delta(middle) > delta else (low, middle)
    return high


@pytest.mark.parametrize(("z", "rate"), [(1.0, 0.5), (0.8, 0.05)])
def test_the_direction_that_opacus_lacks(z, rate):
    exact = one_round_adding(z, rate, 1e-5)
    found = poisson._compose(((z, rate, 1),), 1e-5, 0.002, 12.0, 1e-3, removing=False)
    assert exact <= found <= exact + 0.005


@pytest.mark.parametrize(
    ("schedule", "delta"),
    [
        (((1.0, 0.01, 300),), 1e-5),
        (((0.7, 0.02, 100), (1.5, 0.1, 50)), 1e-6),
        (((1.0, 0.001, 200), (20.0, 1.0, 1)), 1e-6),
    ],
)
def test_agrees_with_an_independent_library(schedule, delta):
    import dp_accounting
    from dp_accounting import pld

    accountant = pld.PLDAccountant(value_discretization_interval=1e-3)
    for z, rate, rounds in schedule:
        event = dp_accounting.PoissonSampledDpEvent(rate, dp_accounting.GaussianDpEvent(z))
        accountant.compose(dp_accounting.SelfComposedDpEvent(event, rounds))
    independent = accountant.get_epsilon(delta)
    found = poisson.epsilon(poisson.phases(schedule), delta)
    assert found is not None
    # PLD errs upwards by up to √rounds steps of its grid.
    assert independent - 0.02 <= found <= independent * 1.01 + 0.01


@pytest.mark.parametrize(
    ("schedule", "delta"),
    [
        (((0.01, 0.001, 2000),), 1e-6),  # would need a grid of millions of points
        (((1.0, 0.001, 2000),), 1e-13),  # below what a Fourier transform in doubles resolves
        (((1.0, 0.5, 10**9),), 1e-6),
        (tuple((1.0 + i / 100, 0.01, 1) for i in range(20)), 1e-6),
    ],
)
def test_says_nothing_rather_than_something_doubtful(schedule, delta):
    assert poisson.epsilon(schedule, delta) is None


def test_equal_phases_are_one():
    assert poisson.phases([(2.0, 0.01, 500), (1.0, 0.1, 1), (2.0, 0.01, 500)]) == (
        (1.0, 0.1, 1),
        (2.0, 0.01, 1000),
    )


@pytest.mark.parametrize(
    ("z", "rate", "rounds", "independent"),  # dp-accounting 0.6.0, PLD at δ = 1e-6
    [(0.3, 0.001, 2000, 26.2921), (0.2, 0.01, 500, 173.2359), (0.1, 0.0005, 1, 70.3035)],
)
def test_small_noise_stays_tight(z, rate, rounds, independent):
    schedule = ((z, rate, rounds),)
    found = poisson.epsilon(schedule, 1e-6)
    assert independent - 0.05 <= found <= 1.01 * independent + 0.01
    assert found <= poisson.renyi_epsilon(schedule, 1e-6) <= 1.25 * independent
