"""Discrete noise: published code's figures, exact divergences that the bounds must dominate."""

from __future__ import annotations

import ast
import csv
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pfl_lm.dp.accounting import discrete, renyi
from pfl_lm.dp.grid import Grid
from pfl_lm.dp.grid_norms import grid_norm, l1_norm, rounded_norm

ORACLES = Path(__file__).resolve().parents[4] / "shared" / "oracles"


def rows(file, keep=lambda row: True):
    path = ORACLES / file
    if not path.is_file():
        why = "needs ../shared (oracle tables), which is absent"
        return [pytest.param(None, marks=pytest.mark.skip(reason=why))]
    with path.open(encoding="utf-8", newline="") as lines:
        return [row for row in csv.DictReader(lines) if keep(row)]


def curve_of(row):
    """Return orders → divergence of one full-participation round of a ddp.csv row."""
    dim, shares = int(row["dim_padded"]), int(row["n_clients"])
    norm = float(row["scale=1/gamma"]) * float(row["l2_clip"])
    share = float(row["local_stddev_scaled"])
    l2 = rounded_norm(norm, dim)
    l1 = l1_norm(l2, dim)
    assert l2 / norm == pytest.approx(float(row["inflated_l2_over_clip"]), rel=1e-9)
    assert l1 == pytest.approx(float(row["l1_bound_scaled"]), rel=1e-9)
    if row["mechanism"] == "dskellam":
        return lambda orders: discrete.skellam(orders, l1, l2, share**2 * shares)
    assert discrete.closure_gap(share, shares) == pytest.approx(float(row["tau"]), rel=1e-9)
    return lambda orders: discrete.discrete_gaussian(orders, l1, l2, share, shares, dim)


def name(row):
    return row["id"] if row else "absent"


@pytest.mark.parametrize("row", rows("ddp.csv"), ids=name)
def test_published_accounting(row):
    curve, rate = curve_of(row), float(row["q"])
    once = curve(renyi.ORDERS) if rate == 1 else renyi.amplified_by_poisson(curve, rate)
    found = renyi.epsilon(int(row["rounds"]) * once, float(row["delta"]))
    continuous = float(row["eps_continuous_gaussian_same_z(exact or PLD)"])
    assert found == pytest.approx(float(row["eps_reference_code"]), rel=1e-6)
    assert found >= continuous - 1e-3 or row["direction"].startswith("low-noise")


FORWARD = rows("ddp.csv", lambda row: row["direction"].startswith("forward"))
FUNCTIONS = ("rounded", "_skellam", "tau", "heuristic")


def scale_for_bits(
    share_stddev: float, clip_norm: float, bits: int, reports: int, dim: int, deviations: float
) -> float:
    """Return the scale at which ``deviations`` standard deviations of the sum fill 2^bits.

    For narrow rings where rare wrapping is accepted; it costs utility, not privacy.
    ``share_stddev`` and ``clip_norm`` are in units of the update.

    Raises:
        ValueError: so many reports do not fit so few bits at any scale.

    Source: Kairouz et al. 2021, Section 4.4, with flatness 1.
    """
    room = 4.0**bits - reports * deviations**2
    if room <= 0:
        raise ValueError(f"bits = {bits} cannot hold {reports} reports; use more bits")
    spread = (clip_norm * reports) ** 2 / dim + reports * share_stddev**2
    return math.sqrt(room) / (2 * deviations * math.sqrt(spread))


@pytest.mark.parametrize("row", FORWARD, ids=name)
def test_scale_for_bits(row):
    found = scale_for_bits(
        float(row["local_stddev_unscaled"]),
        float(row["l2_clip"]),
        int(row["bits"]),
        int(row["n_clients"]),
        int(row["dim_padded"]),
        float(row["k_stddevs"]),
    )
    assert found == pytest.approx(float(row["scale=1/gamma"]), rel=1e-9)


@pytest.mark.parametrize("row", rows("ddp_exact.csv"))
def test_bounds_dominate_exact_divergences(row):
    variance, shift = float(row["sigma_or_mu(variance)"]), float(row["n_or_shift"])
    if row["quantity"] == "skellam_renyi_1d":
        order = np.array([float(row["alpha"])])
        found = float(discrete.skellam(order, shift, shift, variance)[0])
    else:
        found = discrete.closure_gap(variance, int(shift))
    assert found >= float(row["exact"])
    assert found == pytest.approx(float(row["published_bound"]), rel=1e-9)


@pytest.mark.parametrize(
    "row", rows("ddp_primitives.csv", lambda row: row["function"].startswith(FUNCTIONS))
)
def test_single_functions(row):
    function = row["function"]
    if function == "rounded_l2_norm_bound":
        norm, beta, dim = ast.literal_eval(row["args"])
        assert rounded_norm(norm, dim, beta) == pytest.approx(float(row["value"]))
    elif function == "rounded_l1_norm_bound":
        assert l1_norm(*ast.literal_eval(row["args"])) == float(row["value"])
    elif function == "_skellam_rdp":
        l1, l2, variance, scale, order = ast.literal_eval(row["args"])
        found = discrete.skellam(
            np.array([float(order)]), l1 * scale, l2 * scale, variance * scale**2
        )
        assert found[0] == pytest.approx(float(row["value"]))
    elif function.startswith("tau"):
        shares, sigma = (part.split("=")[1] for part in row["args"].split(", "))
        found = discrete.closure_gap(float(sigma), int(shares))
        assert found == pytest.approx(float(row["value"]))
    elif row["value"].startswith("ValueError"):
        with pytest.raises(ValueError, match="more bits"):
            scale_for_bits(1.0, 1.0, 5, 1000, 1024, 4)
    else:
        found = scale_for_bits(*ast.literal_eval(row["args"]))
        assert found == pytest.approx(float(row["value"]))


def test_textbook_figures_without_the_tables():
    assert rounded_norm(100.0, 1024) == pytest.approx(101.84301645179212)
    assert rounded_norm(100.0, 1024, beta=0) == 132.0
    assert l1_norm(3.0, 2**20) == 9.0
    assert discrete.closure_gap(1.0, 100) == pytest.approx(0.000547788699060149)
    assert discrete.closure_gap(0.3, 1) == 0.0
    assert discrete.skellam(np.array([8.0]), 3.0, 2.0, 25.0)[0] == pytest.approx(
        8 * 4 / 50 + min((15 * 4 + 18) / 2500, 9 / 50)
    )


def test_no_noise_is_no_privacy():
    orders = renyi.ORDERS
    assert np.all(np.isinf(discrete.skellam(orders, 1.0, 1.0, 0.0)))
    assert np.all(np.isinf(discrete.discrete_gaussian(orders, 1.0, 1.0, 0.0, 10, 10)))


@given(st.floats(1, 32), st.integers(1, 10**7), st.integers(1, 10**7))
def test_the_smallest_payload_covers_every_larger_one(grid_steps, one, other):
    """What a policy relies on when it is accounted for at min_dim."""
    small, large = sorted((one, other))

    def curve(dim):
        norm = grid_norm(grid_steps, dim)
        l2 = rounded_norm(norm, dim)
        return discrete.skellam(renyi.ORDERS, l1_norm(l2, dim), l2, norm**2)

    assert np.all(curve(large) <= curve(small) * (1 + 1e-9))


@given(st.floats(1, 32), st.integers(1, 10**7))
def test_the_accountant_and_the_devices_round_to_the_same_norm(grid_steps, dim):
    norm = grid_norm(grid_steps, dim)
    grid = Grid(dim=dim, clip_norm=0.3, grid_steps=grid_steps, modulus_bits=63)
    assert grid.norm_bound == pytest.approx(rounded_norm(norm, dim))


def test_one_share_is_as_good_as_the_continuous_gaussian():
    curve = discrete.discrete_gaussian(renyi.ORDERS, 10.0, 10.0, 10.0, 1, 1)
    assert np.allclose(curve, renyi.ORDERS / 2)
    assert math.isclose(renyi.epsilon(curve, 1e-6), 5.2215, rel_tol=2e-2)
