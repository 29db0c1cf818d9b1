"""The Gaussian mechanism in closed form, against its own definition and textbook figures."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import integrate, stats

from pfl_lm.dp.accounting import gaussian
from tests.dp.reference import noise_multiplier_of_rho

MULTIPLIERS = st.floats(0.05, 50)
DELTAS = st.floats(1e-10, 1e-2)


@pytest.mark.parametrize(
    ("noise_multiplier", "delta", "expected"),
    [
        (1.0, 1e-5, 4.377178095681),
        (1.0, 1e-6, 4.886554117462),
        (4.0, 1e-10, 1.492026856985),
        (0.1, 1e-6, 96.71727196387),
        (0.01, 1e-6, 5474.365500195),
        (1000.0, 1e-6, 0.002718219088813),
        (1e6, 1e-6, 0.0),
    ],
)
def test_epsilon_of_one_release(noise_multiplier, delta, expected):
    assert gaussian.epsilon(noise_multiplier, delta) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(
    ("rho", "delta", "published"),
    [(0.1506840301548885, 1e-10, 3.4240074), (0.014342572340349278, 1e-10, 0.9935501)],
)
def test_published_production_guarantees(rho, delta, published):
    z = noise_multiplier_of_rho(rho)
    assert gaussian.epsilon(z, delta) == pytest.approx(published, rel=1e-6)
    assert gaussian.rho(z) == pytest.approx(rho)


@pytest.mark.parametrize(("z", "epsilon"), [(0.7, 0.3), (1.0, 2.0), (2.5, 0.0)])
def test_delta_is_the_integral_it_abbreviates(z, epsilon):
    p, q = stats.norm(1, z), stats.norm(0, z)
    start = z**2 * epsilon + 0.5  # from here on p exceeds e^ε q
    direct, _ = integrate.quad(
        lambda x: p.pdf(x) - math.exp(epsilon) * q.pdf(x), start, start + 40 * z, epsabs=1e-14
    )
    assert gaussian.delta(epsilon, z) == pytest.approx(direct, rel=1e-8)


@given(MULTIPLIERS, DELTAS)
def test_epsilon_inverts_delta_and_never_from_below(z, delta):
    epsilon = gaussian.epsilon(z, delta)
    assert gaussian.delta(epsilon, z) <= delta
    if epsilon > 1e-6:
        assert gaussian.delta(epsilon * (1 - 1e-6), z) > delta


@given(MULTIPLIERS, st.floats(1.001, 3), DELTAS)
def test_epsilon_falls_with_noise(z, factor, delta):
    assert gaussian.epsilon(z * factor, delta) <= gaussian.epsilon(z, delta)


def test_composition_equals_one_release():
    assert gaussian.composed([(10.0, 100)]) == pytest.approx(1.0)
    assert gaussian.composed([(3.0, 1), (4.0, 1)]) == pytest.approx(2.4)
    assert gaussian.composed([]) == math.inf
    assert gaussian.composed([(0.0, 1), (1.0, 1)]) == 0.0
    assert gaussian.composed([(0.0, 0), (1.0, 1)]) == 1.0


def test_the_ends_of_the_scale():
    assert gaussian.epsilon(0.0, 1e-6) == math.inf
    assert gaussian.epsilon(math.inf, 1e-6) == 0.0
    assert gaussian.rho(0.0) == math.inf
    assert noise_multiplier_of_rho(0.0) == math.inf
