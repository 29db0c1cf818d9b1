"""What the lattice of a server's Gaussian noise adds to δ: the proof's figure, and its charge."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from scipy.special import ndtr

from pfl_lm.dp.accounting import gaussian, lattice
from pfl_lm.dp.accounting.accountant import compose
from pfl_lm.dp.events import RoundEvent
from pfl_lm.dp.mechanisms import MECHANISMS

CENTRAL = RoundEvent("gaussian", "zero_out", "none", noise_multiplier=1.0)


@pytest.mark.parametrize("sigma", [4.0, 16.0, 64.0])
def test_the_divergence_of_a_coordinate_is_below_the_proofs_figure(sigma):
    k = np.arange(-int(12 * sigma), int(12 * sigma) + 1)
    discrete = np.exp(-(k**2) / (2 * sigma**2))
    discrete /= discrete.sum()
    upper = ndtr(-(np.abs(k) - 0.5) / sigma)
    rounded = upper - ndtr(-(np.abs(k) + 0.5) / sigma)
    kl = float(np.sum(discrete * np.log(discrete / rounded)))
    assert kl * sigma**4 <= 1 / 144 + 1 / 320
    assert kl * sigma**4 >= 1e-4  # the order is right: it is not a bound on nothing


@pytest.mark.parametrize("sigma", [4.0, 16.0, 64.0])
def test_the_range_of_one_number(sigma):
    k = np.arange(-int(8 * sigma), int(8 * sigma) + 1)
    log_discrete = -(k**2) / (2 * sigma**2)
    log_discrete -= np.log(np.exp(log_discrete).sum())
    upper = ndtr(-(np.abs(k) - 0.5) / sigma)
    ratio = np.log(upper - ndtr(-(np.abs(k) + 0.5) / sigma)) - log_discrete
    assert (ratio >= -1 / (8 * sigma**2) - 1e-9).all()
    assert (ratio <= k**2 / (8 * sigma**4) + 1e-9).all()
    discrete = np.exp(log_discrete)
    assert discrete @ k**2.0 <= sigma**2 * (1 + 1e-12)
    assert discrete @ k**4.0 <= 3 * sigma**4 * (1 + 1e-12)


def test_the_figures_at_the_servers_lattice():
    assert (1 / 144 + 1 / 320 + 2**-60) * 2.0**-120 < 2.0**-126
    eta, gamma = lattice.closeness(10_000)
    assert 1e-12 < eta < 3e-9
    assert 0 < gamma < 1e-284
    assert lattice.closeness(10**9) == (math.inf, math.inf)


def test_the_sum_of_all_numbers_stays_within_its_bound():
    """The proof's steps 1 and 2 at a coarse lattice, by drawing: η scales with σ as stated."""
    sigma, numbers = 8.0, 200_000
    k = np.arange(-int(10 * sigma), int(10 * sigma) + 1)
    discrete = np.exp(-(k**2) / (2 * sigma**2))
    discrete /= discrete.sum()
    upper = ndtr(-(np.abs(k) - 0.5) / sigma)
    rounded = upper - ndtr(-(np.abs(k) + 0.5) / sigma)
    draw = np.random.default_rng(1)
    for law in (discrete, rounded / rounded.sum()):
        counts = draw.multinomial(numbers, law)
        total = float(counts @ np.log(rounded / discrete))
        width = (16**2 + 2) / (8 * sigma**2)
        kl = numbers * (1 / 144 + 1 / 320) / sigma**4
        assert abs(total) <= kl * 10 + width * math.sqrt(numbers * 64 / 2)


@pytest.mark.parametrize("delta", [1e-5, 1e-6, 1e-9, 1e-12])
@pytest.mark.parametrize("z", [0.05, 0.3, 1.0, 8.0])
def test_the_lattice_is_charged(delta, z):
    exact = gaussian.epsilon(z, delta)
    found = compose([replace(CENTRAL, noise_multiplier=z)], delta).epsilon
    assert exact < found < exact * (1 + 1e-4)
    eta, gamma = lattice.closeness(1)
    whole = gaussian.delta(found - 2 * eta, z) * math.exp(eta) + (1 + math.exp(found)) * gamma
    assert whole <= delta * (1 + 1e-9)


def test_where_delta_is_too_small_renyi_bounds_answer():
    cost = compose([CENTRAL] * 3, 1e-290)
    assert cost.accountant == "Rényi"
    assert gaussian.epsilon(3**-0.5, 1e-290) < cost.epsilon < math.inf
    sampled = replace(CENTRAL, sampling="poisson", rate=0.01)
    assert compose({sampled: 100}, 1e-290).epsilon < math.inf


def test_nothing_released_costs_nothing():
    assert compose([], 1e-300).epsilon == 0


def test_payloads_beyond_those_counted_are_refused():
    kind = MECHANISMS["gaussian"]
    assert kind.event(CENTRAL, lattice.MOST_COORDINATES, 8.0, 1) == CENTRAL
    with pytest.raises(ValueError, match="coordinates"):
        kind.event(CENTRAL, lattice.MOST_COORDINATES + 1, 8.0, 1)
