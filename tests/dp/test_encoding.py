"""Clip, encode, noise, decode: norms that hold to the last bit, and noise of the right size."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import stats

from pfl_lm import native
from pfl_lm.dp import encoding
from pfl_lm.dp.encoding import decode, protect
from pfl_lm.dp.grid import Grid
from pfl_lm.dp.noise import (
    NoiseShare,
    add_central_gaussian,
    cohort_noise,
    skellam_from_seed,
)
from pfl_lm.dp.sampler.arrays import Octets
from pfl_lm.dp.sampler.random_bits import RandomBits, reproducible_bits, secure_bits
from pfl_lm.streams import key
from tests.dp import reference
from tests.dp.reference import noise_share

ANY_ROWS = hnp.arrays(np.float32, hnp.array_shapes(min_dims=2, max_dims=2, max_side=12))


def bits(*labels: str | int) -> RandomBits:
    return reproducible_bits(key(11, *labels))


def gaussians(rows: int, dim: int, seed: int = 0) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).normal(size=(rows, dim)).astype(np.float32)


def is_standard_normal(values: np.ndarray[Any, Any]) -> bool:
    """Whether shape and size fit; the size to five standard errors of a variance."""
    size = abs(values.var() - 1) < 5 * (2 / len(values)) ** 0.5
    return bool(size and stats.kstest(values, "norm").pvalue > 1e-4)


# ── clip and round ───────────────────────────────────────────────────────────────────────────────

FINE = 2.0**10  # grid steps, at which rounding hardly shows


def decoded(rows: np.ndarray[Any, Any], clip_norm: float = 1.0) -> np.ndarray[Any, Any]:
    """Return what each row alone decodes to, on a grid so fine that only the clip shows."""
    grid = Grid(rows.shape[1], clip_norm, FINE, 40)
    vectors, _ = protect(rows, grid, None, bits("fine"))
    return np.stack([decode(vector, grid, 1) for vector in vectors])


@given(
    rows=ANY_ROWS,
    clip_norm=st.floats(1e-30, 1e30),
    grid_steps=st.floats(0.01, 50),
    seed=st.integers(0, 1000),
)
def test_no_encoded_row_is_longer_than_the_grid_allows(
    rows: Any, clip_norm: float, grid_steps: float, seed: int
) -> None:
    """Any float32 at all, checked in whole numbers."""
    grid = Grid(rows.shape[1], clip_norm, grid_steps, 40)
    vectors, clipped = protect(rows, grid, None, bits("encode", seed))
    for vector in vectors.tolist():
        assert sum(value * value for value in vector) <= grid.norm_bound**2
    assert (vectors[~rows.any(axis=1)] == 0).all()
    finite = np.isfinite(rows).all(axis=1)
    assert (vectors[~finite] == 0).all()
    assert (np.isnan(clipped.norms) == ~finite).all()
    assert clipped.clipped[~finite].all()


@given(
    rows=hnp.arrays(
        np.float32, (3, 40), elements=st.floats(-9, 9, width=32) | st.sampled_from([np.nan, np.inf])
    ),
    exponent=st.sampled_from([-30, -3, 0, 30]),
    seed=st.integers(0, 1000),
)
def test_protect_is_the_plain_steps_in_turn(rows: Any, exponent: int, seed: int) -> None:
    """With the same dither; float32's rounding tips a coordinate now and then, by one step."""
    rows = rows * np.float32(10.0**exponent)
    grid = Grid(40, 1.5, 8.0, 40)
    fused, clipped = protect(rows, grid, None, [bits(seed, k) for k in range(3)])
    clips = reference.clip(rows, 1.5)
    plain = reference.encode(clips, grid, [bits(seed, k) for k in range(3)])
    # Where one rounding was refused by a hair and the other was not, they use different bits.
    differ = np.abs(fused - plain).max(axis=1) > 1
    assert (np.linalg.norm(fused[differ], axis=1) > 0.95 * grid.norm_bound).all()
    finite = np.isfinite(rows).all(axis=1)
    lengths = np.linalg.norm(rows[finite].astype(np.float64), axis=1)
    np.testing.assert_allclose(clipped.norms[finite], lengths, rtol=1e-12)


def test_at_many_coordinates_protect_differs_from_the_plain_steps_in_almost_none() -> None:
    rows = gaussians(4, 1000) * np.float32([[1e-3], [1.0], [1e30], [1.0]])
    rows[3, 7] = np.nan
    grid = Grid(1000, 1.0, 8.0, 30)
    fused, clipped = protect(rows, grid, None, [bits(k) for k in range(4)])
    plain = reference.encode(reference.clip(rows, 1.0), grid, [bits(k) for k in range(4)])
    assert np.abs(fused - plain).max() <= 1
    assert (fused != plain).mean() < 1e-3
    assert not fused[3].any()
    assert clipped.clipped.tolist() == [False, True, True, True]
    assert np.isnan(clipped.norms[3])


@given(rows=hnp.arrays(np.float32, (3, 40), elements=st.floats(-1e3, 1e3, width=32)))
def test_a_clipped_row_keeps_its_direction_and_all_the_length_it_may(rows: Any) -> None:
    for before, after in zip(rows, decoded(rows, 0.5), strict=True):
        norm = np.linalg.norm(before.astype(np.float64))
        expected = before * (0.5 / norm) if norm > 0.5 else before
        np.testing.assert_allclose(after, expected, atol=1.01 * 0.5 / (FINE * 40**0.5))


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ([0.0, 0.0], [0.0, 0.0]),
        ([-0.0, 0.0], [0.0, 0.0]),
        ([np.nan, 1.0], [0.0, 0.0]),
        ([np.inf, 1.0], [0.0, 0.0]),
        ([-np.inf, np.nan], [0.0, 0.0]),
        ([1e-45, -1e-45], [0.0, 0.0]),
        ([1e30, 0.0], [1.0, 0.0]),
        ([3.4e38, -3.4e38], [2**-0.5, -(2**-0.5)]),
        ([1.0, 0.0], [1.0, 0.0]),
    ],
)
def test_edge_cases_of_the_clip(row: list[float], expected: list[float]) -> None:
    rows = np.array([row], dtype=np.float32)
    np.testing.assert_allclose(decoded(rows)[0], np.float32(expected), atol=1 / FINE)
    np.testing.assert_allclose(reference.clip(rows, 1.0)[0], expected, rtol=1e-6, atol=1e-44)


def test_updates_are_left_as_they_are() -> None:
    rows = gaussians(3, 50)
    original = rows.copy()
    protect(rows, Grid(50, 1.0, 8.0, 30), None, bits("left"))
    assert (rows == original).all()


@pytest.mark.parametrize("clip_norm", [0.0, -1.0, float("nan"), float("inf"), 1e-31])
def test_a_senseless_clip_norm_is_refused(clip_norm: float) -> None:
    with pytest.raises(ValueError, match="clip_norm"):
        Grid(2, clip_norm, 8.0, 20)


def test_only_contiguous_float32_is_taken() -> None:
    grid = Grid(3, 1.0, 8.0, 20)
    for rows in (np.zeros((2, 3)), np.zeros(3, np.float32), np.zeros((2, 6), np.float32)[:, ::2]):
        with pytest.raises(ValueError, match=r"float32\[K, d\]"):
            protect(rows, grid, None, secure_bits())
    with pytest.raises(ValueError, match="coordinates"):
        protect(np.zeros((1, 7), np.float32), grid, None, secure_bits())
    with pytest.raises(ValueError, match="one for each of 2 rows"):
        protect(np.zeros((2, 3), np.float32), grid, None, [secure_bits()])


class AlwaysUp(RandomBits):
    """The worst dither: every coordinate that can be is rounded up."""

    def __init__(self) -> None:
        super().__init__(bytes(32))
        self.drawn = 0

    def octets(self, count: int) -> Octets:
        self.drawn += 1
        return np.full(count, 255, np.uint8)


def test_the_redraw_ends_and_what_it_ends_with_obeys_the_bound() -> None:
    grid = Grid(400, 1.0, 0.5, 20)
    row = np.full((1, 400), 0.05, dtype=np.float32)  # of norm 1; half a grid step each
    dither = AlwaysUp()
    up = np.ones(400)
    assert np.linalg.norm(up) > grid.norm_bound
    vectors, _ = protect(row, grid, None, dither)
    assert dither.drawn == encoding.TRIES
    assert not vectors.any(), "rounded towards zero"


def check_unbiased(vectors: np.ndarray[Any, Any], row: Any, grid: Grid) -> None:
    """Fail unless many roundings of one row (1, d) have its mean, and their fractions' variance."""
    exact = reference.clip(row, grid.clip_norm)[0] * grid.scale
    fraction = exact - np.floor(exact)
    spread = np.sqrt(fraction * (1 - fraction) / len(vectors))
    steady = spread > 0.005
    deviations = (vectors.mean(axis=0) - exact)[steady] / spread[steady]
    assert stats.kstest(deviations, "norm").pvalue > 1e-4
    assert abs(deviations.mean()) < 5 / steady.sum() ** 0.5
    # Had every coordinate a bias of 0.004 grid steps, this would tell.
    assert abs((deviations + 0.004 / spread[steady]).mean()) > 5 / steady.sum() ** 0.5
    found = vectors.var(axis=0).mean()
    assert found == pytest.approx((fraction * (1 - fraction)).mean(), rel=0.02)


def test_rounding_is_unbiased_and_has_its_variance() -> None:
    """Two-sided, with a fraction in every coordinate and at a dimension where nobody is refused."""
    row, grid = gaussians(1, 4096, 3), Grid(4096, 1.0, 8.0, 30)
    vectors, _ = protect(np.repeat(row, 600, 0), grid, None, bits("unbiased"))
    check_unbiased(vectors, row, grid)


def test_a_refusal_costs_no_more_than_the_stated_bias() -> None:
    """A handful of coordinates, where a fifth of all roundings are refused."""
    grid = Grid(4, 1.0, 1.0, 20)
    row = np.full((40_000, 4), 0.4999, dtype=np.float32)
    found = protect(row, grid, None, bits("refused"))[0].mean(axis=0)
    bias = np.linalg.norm(found - row[0].astype(np.float64) * grid.scale)
    assert bias < 1.6 * 2


def test_many_devices_at_once_are_each_alone() -> None:
    """Bit-equal, since each row has its own source."""
    rows = gaussians(5, 3000)
    grid = Grid.choose(3000, 2.0, reports_max=5, noise_multiplier=1.0)
    share = noise_share("skellam", grid, 1.0, 5)
    together, _ = protect(rows, grid, share, [bits("noise", k) for k in range(5)])
    for k in range(5):
        alone, _ = protect(rows[k : k + 1], grid, share, bits("noise", k))
        assert (alone[0] == together[k]).all()


def test_protect_writes_where_it_is_told() -> None:
    grid = Grid(10, 1.0, 8.0, 30)
    rows, out = gaussians(2, 10), np.full((2, 10), 99, dtype=grid.integer)
    vectors, _ = protect(rows, grid, None, bits("out"), out=out)
    assert vectors is out
    assert (out == protect(rows, grid, None, bits("out"))[0]).all()
    for wrong in (out[:1], out.astype(np.int64)):
        with pytest.raises(ValueError, match="out must be int32"):
            protect(rows, grid, None, bits("out"), out=wrong)


@pytest.mark.parametrize("compiled", [True, False])
@pytest.mark.parametrize(
    "share",
    [
        None,
        *(NoiseShare("skellam", variance) for variance in (9.0, 700.0**2)),
        *(NoiseShare("discrete_gaussian", variance) for variance in (9.0, 2.0**70)),
    ],
)
def test_integers_of_32_bits_are_those_of_64_in_every_ring_that_they_serve(
    share: Any, compiled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Noise far beyond the ring wraps at 32 bits, and therefore as the ring does."""
    if not compiled:
        monkeypatch.setattr(native, "load", lambda name: None)
    rows = gaussians(3, 5001)
    rows[1] = np.nan
    narrow, wide = (Grid(5001, 1.0, 200.0, ring) for ring in (31, 32))
    found, expected = (protect(rows, grid, share, bits("w"))[0] for grid in (narrow, wide))
    assert (found.dtype, expected.dtype) == (np.int32, np.int64)
    assert np.array_equal(found, expected.astype(np.int32))
    wraps = share is not None and share.variance > 2.0**62
    assert np.array_equal(found, expected) != wraps


def test_a_row_that_no_rounding_brings_below_the_bound_is_measured_in_64_bits() -> None:
    """The squares of 2^20 four times over are 0 modulo 2^32."""
    grid, out = Grid(4, 1.0, 8.0, 30), np.ones(4, np.int32)
    encoder = encoding._Encoder(grid, None, past_caches=False)
    encoder.write(np.ones(4, np.float32), 2.0**20 / grid.scale, bits("long"), out)
    assert (out == 0).all()


@given(seed=st.integers(0, 200), victim=st.integers(0, 5))
def test_one_device_moves_the_integer_sum_by_at_most_the_sensitivity(
    seed: int, victim: int
) -> None:
    rows = gaussians(6, 200, seed) * np.float32(10.0 ** (seed % 7 - 3))
    grid = Grid.choose(200, 1.0, reports_max=6)
    vectors, _ = protect(rows, grid, None, [bits(seed, k) for k in range(6)])
    without = rows.copy()
    without[victim] = 0
    others, _ = protect(without, grid, None, [bits(seed, k) for k in range(6)])
    moved = (vectors.sum(axis=0) - others.sum(axis=0)).tolist()
    assert sum(value * value for value in moved) <= grid.norm_bound_squared


# ── noise ────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("kind", ["skellam", "discrete_gaussian"])
def test_the_noise_of_the_sum_has_the_promised_size(kind: Any) -> None:
    """Accepts the multiplier it was made for; rejects one that is 4% off, either way."""
    dim, devices, multiplier, clip_norm = 40_000, 20, 0.7, 0.3
    grid = Grid.choose(dim, clip_norm, reports_max=devices, noise_multiplier=multiplier, kind=kind)
    share = noise_share(kind, grid, multiplier, devices)
    silent = np.zeros((devices, dim), dtype=np.float32)
    vectors, _ = protect(silent, grid, share, [bits("share", k) for k in range(devices)])
    total = vectors.sum(axis=0) / (multiplier * clip_norm * grid.scale)
    assert is_standard_normal(total)
    assert not is_standard_normal(total * 1.04)
    assert not is_standard_normal(total / 1.04)
    assert abs(np.corrcoef(vectors).sum() - devices) < 0.3, "shares are independent"


def test_noise_is_in_every_coordinate_of_every_report_also_of_an_erased_one() -> None:
    dim = 200_000  # more than two blocks
    rows = gaussians(2, dim)
    rows[1, 0] = np.inf
    grid = Grid.choose(dim, 1.0, reports_max=2, noise_multiplier=1.0)
    share = noise_share("skellam", grid, 1.0, 2)
    vectors, _ = protect(rows, grid, share, bits("everywhere"))
    clean, _ = protect(rows, grid, None, bits("else"))
    for k in range(2):
        for part in np.array_split((vectors - clean)[k], 50):
            assert part.var() / share.variance == pytest.approx(1, abs=0.2)


def test_wide_noise_passes_through_the_fused_path() -> None:
    """Shares too wide for 32-bit integers are added in 64."""
    grid = Grid(70_000, 1.0, 8.0, 63)
    share = NoiseShare("discrete_gaussian", 2.0**80)
    vectors, _ = protect(gaussians(1, 70_000), grid, share, bits("wide"))
    assert vectors[0].std() / 2.0**40 == pytest.approx(1, abs=0.02)


def test_a_cohorts_noise_at_once_is_that_of_its_devices() -> None:
    share = NoiseShare("skellam", 40.0)
    at_once = cohort_noise(share, 25, 60_000, bits("at once"))
    one_by_one = np.zeros((25, 60_000), dtype=np.int64)
    reference.add_shares(one_by_one, share, [bits("one by one", k) for k in range(25)])
    assert stats.ks_2samp(at_once, one_by_one.sum(axis=0)).pvalue > 1e-3
    assert at_once.var() / 1000 == pytest.approx(1, abs=0.03)
    with pytest.raises(ValueError, match="closed under addition"):
        cohort_noise(NoiseShare("discrete_gaussian", 40.0), 25, 10, bits("no"))


def test_noise_can_be_removed_by_who_is_told_its_seed() -> None:
    noise = skellam_from_seed(key(1, "component"), 300.0, 50_000)
    assert (noise == skellam_from_seed(key(1, "component"), 300.0, 50_000)).all()
    assert (noise != skellam_from_seed(key(2, "component"), 300.0, 50_000)).any()
    assert noise.var() / 300 == pytest.approx(1, abs=0.03)


@pytest.mark.parametrize("multiplier", [-1.0, float("nan"), float("inf")])
def test_a_senseless_noise_multiplier_is_refused(multiplier: float) -> None:
    with pytest.raises(ValueError, match="noise_multiplier"):
        Grid(100, 1.0, 0.1, 30).noise_variance(multiplier)


def test_central_noise_is_gaussian_of_the_promised_size() -> None:
    total = np.linspace(-50, 50, 60_000)
    noisy = add_central_gaussian(total, 0.3, 2.0, bits("central"))
    noise = (noisy - total) / 0.6
    assert is_standard_normal(noise)
    assert not is_standard_normal(noise * 1.04)
    assert not is_standard_normal(noise / 1.04)


def test_the_low_bits_of_a_central_release_tell_nothing_of_the_sum() -> None:
    """Mironov 2012: whatever the sum, every output lies on the same public lattice."""
    step = 2.0**-31  # for a standard deviation in [1/2, 1)
    for total in (np.zeros(500), np.full(500, np.pi), np.full(500, 1e-9), np.full(500, 1e5 / 3)):
        cells = add_central_gaussian(total, 0.5, 1.2, bits("lattice")) / step
        assert (cells == np.rint(cells)).all()


def test_central_noise_refuses_what_it_cannot_protect() -> None:
    for total in ([np.nan], [np.inf], [1e300]):
        with pytest.raises(ValueError, match="total must be finite"):
            add_central_gaussian(np.array(total), 1.0, 1.0, secure_bits())
    with pytest.raises(ValueError, match="positive and finite"):
        add_central_gaussian(np.zeros(1), 1.0, float("nan"), secure_bits())
    total = np.array([1.25])
    assert add_central_gaussian(total, 1.0, 0.0, secure_bits()) == total


# ── decode and the ring ──────────────────────────────────────────────────────────────────────────


def test_without_noise_the_decoded_mean_is_the_mean_over_the_report_goal() -> None:
    rows = gaussians(40, 500)
    grid = Grid.choose(500, 1.0, reports_max=50, grid_steps=1000.0)
    vectors, _ = protect(rows, grid, None, bits("mean"))
    mean = decode(vectors.sum(axis=0), grid, report_goal=50)
    assert mean.dtype == np.float32
    expected = reference.clip(rows, 1.0).sum(axis=0) / 50
    np.testing.assert_allclose(mean, expected, atol=4 / grid.scale)
    with pytest.raises(ValueError, match="report_goal"):
        decode(np.zeros(500, np.int64), grid, 0)


@given(
    dim=st.integers(1, 10**7),
    grid_steps=st.floats(0.5, 64),
    reports=st.integers(1, 10**5),
    multiplier=st.floats(0, 20),
)
def test_the_ring_holds_the_largest_sum_and_is_not_wasteful(
    dim: int, grid_steps: float, reports: int, multiplier: float
) -> None:
    grid = Grid.choose(
        dim, 1.0, reports_max=reports, noise_multiplier=multiplier, grid_steps=grid_steps
    )
    signal = reports * int(grid.norm_bound)
    deviation = grid.noise_variance(multiplier) ** 0.5
    # 2^-40 over dim coordinates, two-sided, is at least 7.1 standard deviations; a Chernoff bound
    # for Skellam needs more where the variance is small.
    needed = signal + stats.norm.isf(2.0**-41 / dim) * deviation
    half = 2 ** (grid.modulus_bits - 1)
    assert needed < half
    assert half <= max(2 * (signal + 1), 4 * needed + 200)


def test_more_reports_than_carry_the_noise_mean_more_noise_in_the_ring() -> None:
    narrow = Grid.choose(100, 1.0, reports_max=1000, noise_multiplier=1e4, noise_reports=1000)
    wide = Grid.choose(100, 1.0, reports_max=1000, noise_multiplier=1e4, noise_reports=50)
    assert wide.modulus_bits > narrow.modulus_bits


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ({"dim": 0, "clip_norm": 1.0, "reports_max": 1}, "dim"),
        ({"dim": 5, "clip_norm": 1.0, "reports_max": 0}, "noise_reports"),
        ({"dim": 5, "clip_norm": 1.0, "reports_max": 5, "noise_reports": 6}, "noise_reports"),
        ({"dim": 5, "clip_norm": 1.0, "reports_max": 5, "grid_steps": 0.0}, "grid_steps"),
        ({"dim": 5, "clip_norm": 1.0, "reports_max": 5, "grid_steps": 1e9}, "grid_steps"),
        ({"dim": 5, "clip_norm": 1.0, "reports_max": 2**60}, "needs .* bits"),
        ({"dim": 5, "clip_norm": 1.0, "reports_max": 5, "noise_multiplier": 1e17}, "bits"),
    ],
)
def test_grids_that_cannot_be_are_refused(arguments: Any, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        Grid.choose(**arguments)
