"""Adaptive clipping: one vector of norm ≤ C holds update and indicator; the clip norm's rule."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from pfl_lm.dp.clipping import Clip, Clipping, clip_before, split, update_weight, with_indicators
from pfl_lm.dp.encoding import norms, protect
from pfl_lm.dp.grid import Grid
from pfl_lm.dp.sampler.random_bits import reproducible_bits
from pfl_lm.streams import key

ANY_ROWS = hnp.arrays(np.float32, hnp.array_shapes(min_dims=2, max_dims=2, max_side=8))
WIDE = Clipping(lowest=1e-6, highest=1e6)


@given(rows=ANY_ROWS, clip=st.floats(1e-6, 1e6), weight=st.floats(1e-4, 0.5), seed=st.integers(0))
def test_whatever_the_update_is_the_joint_vector_is_within_the_bound_of_the_grid(
    rows: Any, clip: float, weight: float, seed: int
) -> None:
    """So a device moves the sum of updates and indicators together by norm_bound at most."""
    joint, told = with_indicators(np.ascontiguousarray(rows), clip, weight)
    assert joint.shape == (len(rows), rows.shape[1] + 1)
    lengths = norms(joint)
    assert (lengths[np.isfinite(lengths)] <= clip * (1 + 1e-5)).all()
    grid = Grid(joint.shape[1], clip, 8.0, 40)
    vectors, _ = protect(joint, grid, None, reproducible_bits(key(seed, "rows")))
    assert (np.square(vectors).sum(axis=1) <= grid.norm_bound_squared).all()
    broken = ~np.isfinite(norms(np.ascontiguousarray(rows)))
    assert not vectors[broken].any()  # nothing of it is sent, the indicator neither
    assert told.clipped[broken].all()
    assert np.isnan(told.norms[broken]).all()


def test_what_is_summed_splits_into_the_clipped_mean_and_the_share_of_short_updates() -> None:
    rows = np.array([[3.0, 4.0], [0.3, 0.4], [0.0, 0.0], [0.0, 1.0]], np.float32)
    joint, told = with_indicators(rows, 1.0, 0.3)
    update, share = split(joint.mean(axis=0), 1.0, 0.3)
    np.testing.assert_allclose(update, [(0.6 + 0.3) / 4, (0.8 + 0.4 + 1.0) / 4], rtol=1e-6)
    assert share == pytest.approx(3 / 4, rel=1e-6)  # a norm of exactly C is short
    assert told.clipped.tolist() == [True, False, False, False]
    _, half_came = split(joint[:2].sum(axis=0) / 4, 1.0, 0.3)
    assert half_came == pytest.approx(0.5, rel=1e-6)  # who is missing counts as half


@given(z=st.floats(0.1, 200), goal=st.integers(1000, 10**6), noise=st.floats(0.02, 1))
def test_the_noise_is_split_as_published(z: float, goal: int, noise: float) -> None:
    """Andrew et al. 2021, Theorem 1: σ_Δ = (z⁻² − (2σ_b)⁻²)^(−1/2)."""
    rule = Clipping(1e-3, 1e3, indicator_noise=noise)
    try:
        weight = rule.weight(z, goal)
    except ValueError:
        assert z / (2 * goal * noise) > 0.5
        return
    of_updates, of_count = z / update_weight(weight), z / (2 * weight)
    assert of_count / goal == pytest.approx(noise)
    assert of_updates == pytest.approx((z**-2 - (2 * of_count) ** -2) ** -0.5, rel=1e-9)


def test_indicators_that_would_crowd_out_updates_are_refused() -> None:
    with pytest.raises(ValueError, match=r"clipping.indicator_noise = 0.05 .* write 0.3 or more"):
        WIDE.weight(3.0, 10)


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"lowest": 0.0}, "lowest"),
        ({"highest": math.inf}, "highest"),
        ({"lowest": math.nan}, "lowest"),
        ({"lowest": 2.0, "highest": 1.0}, "lowest = 2 exceeds highest = 1"),
        ({"quantile": 0.0}, "quantile"),
        ({"quantile": 1.0}, "quantile"),
        ({"rate": 0.0}, "rate"),
        ({"rate": 5.0}, "rate"),
        ({"first_rate": 0.0}, "first_rate"),
        ({"indicator_noise": 0.0}, "indicator_noise"),
    ],
)
def test_a_senseless_table_is_refused_by_its_field(changes: dict[str, float], field: str) -> None:
    with pytest.raises(ValueError, match=field):
        Clipping(**{"lowest": 1e-3, "highest": 1e3, **changes})


def test_the_clip_norm_falls_where_more_are_short_than_aimed_at() -> None:
    at_one = Clip(1.0, 0.2)
    assert WIDE.after(at_one, 0.75).norm == pytest.approx(math.exp(-0.2 * 0.25))
    assert WIDE.after(at_one, 0.5).norm == 1.0
    assert WIDE.after(at_one, 7.0) == WIDE.after(at_one, 1.0)  # noise may tell more than everybody
    narrow = Clipping(0.9, 1.1, rate=4.0)
    assert narrow.after(Clip(1.0, 4.0), 1.0).norm == 0.9
    assert narrow.after(Clip(1.0, 4.0), 0.0).norm == 1.1


def test_the_rate_halves_where_the_share_crosses_the_quantile() -> None:
    clip = WIDE.begin(1.0)
    rates = []
    for share in (1.0, 0.9, 0.1, 0.2, 0.6, 0.5, 0.7, 0.4, 0.6, 0.3, 0.7):
        clip = WIDE.after(clip, share)
        rates.append(clip.rate)
    assert rates == [2.0, 2.0, 1.0, 1.0, 0.5, 0.5, 0.5, 0.25, 0.2, 0.2, 0.2]


def test_a_round_whose_noise_was_made_for_far_longer_updates_is_told_by_its_share() -> None:
    assert WIDE.is_far_above(0.91)
    assert not WIDE.is_far_above(0.89)
    assert not WIDE.is_far_above(0.0)  # too small a clip norm wastes nothing
    assert not Clipping(1e-3, 1e3, indicator_noise=0.5).is_far_above(1.9)  # it may be the noise


@given(
    shares=st.lists(st.floats(-3, 4), max_size=30),
    first=st.floats(1e-3, 1e3),
    rate=st.floats(0.01, 4),
    quantile=st.floats(0.05, 0.95),
)
def test_no_shares_lead_beyond_what_a_device_allows(
    shares: list[float], first: float, rate: float, quantile: float
) -> None:
    rule = Clipping(1e-3, 1e3, quantile, rate)
    clip = rule.begin(first)
    for round, share in enumerate([*shares, 0.5]):
        least, largest = rule.reach(first, round)
        assert least <= clip.norm <= largest
        clip = rule.after(clip, share)


def test_the_reach_of_any_round_is_finite() -> None:
    assert WIDE.reach(1.0, 10**9) == pytest.approx((1e-6, 1e6))


@pytest.mark.parametrize("spread", [0.1, 0.4, 0.8])
@pytest.mark.parametrize("quantile", [0.3, 0.5, 0.8])
@pytest.mark.parametrize("first", [10.0, 0.1])
def test_it_settles_at_the_quantile_from_ten_times_off(first, quantile, spread) -> None:
    """Norms of a lognormal population, 5,000 reports a round, the noise of the policy."""
    draws, rule = np.random.default_rng(0), Clipping(1e-3, 1e3, quantile)
    true = np.quantile(np.exp(spread * draws.normal(size=10**5)), quantile)
    clip, off = rule.begin(first), []
    for _ in range(50):
        lengths = np.exp(spread * draws.normal(size=5000))
        share = float((lengths <= clip.norm).mean()) + 0.05 * draws.normal()
        off.append(math.log(clip.norm / true))
        clip = rule.after(clip, share)
    assert abs(off[10]) < 0.7  # a factor of two, after ten rounds
    assert np.std(off[25:]) < 0.1
    assert abs(np.mean(off[25:])) < 0.1


def test_the_ledger_tells_the_clip_norm_of_every_round() -> None:
    moved = [
        {"kind": "genesis"},
        {"round": 0, "clipping": {"share": 1.0, "next": {"norm": 0.9, "rate": 2.0, "side": 1}}},
        {"round": 1, "released": None},
        {"round": 2, "clipping": {"share": 0.1, "next": {"norm": 1.8, "rate": 1.0, "side": -1}}},
    ]
    first, second = Clip(0.9, 2.0, 1), Clip(1.8, 1.0, -1)
    assert [clip_before(n, moved) for n in range(5)] == [None, first, first, second, second]
