"""The C kernels of the privacy path give the integers that numpy gives, to the last bit."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pfl_lm import native
from pfl_lm.dp.encoding import norms, protect
from pfl_lm.dp.grid import Grid
from pfl_lm.dp.noise import NoiseShare
from pfl_lm.dp.sampler.alias import SIGN, Alias
from pfl_lm.dp.sampler.discrete_noise import add_noise, table
from pfl_lm.dp.sampler.inversion import CdfTable
from pfl_lm.dp.sampler.random_bits import reproducible_bits
from pfl_lm.dp.sampler.rounding import round_at_random, sum_of_squares
from pfl_lm.streams import key

pytestmark = [
    pytest.mark.skipif(
        any(native.load(name) is None for name in ("encode", "inversion", "rejection")),
        reason="no C compiler",
    ),
]
SIZES = st.sampled_from([1, 2, 15, 16, 17, 31, 33, 255, 256, 257, 1000, 5001, 65_536, 65_539])
VARIANCES = st.sampled_from([None, 0.3, 20.0, 253.0**2, 300.0**2, 2000.0**2])
INTEGERS = [np.int32, np.int64]
fixtures_are_fine = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture
def both():
    """Run an action with the C kernels and with numpy."""

    def run(action):
        compiled = action()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(native, "load", lambda name: None)
            return compiled, action()

    return run


def values_of(count: int, seed: int, exponent: int) -> np.ndarray:
    drawn = np.random.default_rng(seed).standard_normal(count) * 2.0**exponent
    drawn[::7] = 0.0
    return drawn.astype(np.float32)


@fixtures_are_fine
@given(SIZES, st.integers(0, 99), st.integers(-140, 120))
def test_norms(both, count, seed, exponent):
    values = values_of(count, seed, exponent)
    compiled, numpy = both(lambda: sum_of_squares(values))
    assert compiled == numpy
    assert compiled == pytest.approx(float(np.sum(values.astype(np.float64) ** 2)), rel=1e-12)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 3e38, 1e-45, -0.0])
@pytest.mark.parametrize("place", [0, 700, 999])
def test_norms_of_what_is_no_ordinary_number(both, bad, place):
    rows = np.zeros((1, 1000), np.float32)
    rows[0, place] = bad
    compiled, numpy = both(lambda: norms(rows))
    assert np.array_equal(compiled, numpy, equal_nan=True)
    assert np.isfinite(compiled[0]) == np.isfinite(np.float32(bad))


@fixtures_are_fine
@given(
    *(SIZES, st.integers(0, 99), st.integers(-100, 100), st.floats(1e-3, 2e3), VARIANCES),
    *(st.sampled_from([None, 0, 1, 2, 3, 15]), st.sampled_from(INTEGERS)),
)
def test_rounding(both, count, seed, exponent, steps, variance, past_caches, integer):
    """At any factor whose product lies on the grid, be it below the least that float32 holds.

    Past the caches, at any distance from where a vector of the machine may begin.
    """
    values, factor = values_of(count, seed, exponent), steps * 2.0**-exponent
    alias = None if variance is None else table("skellam", variance).alias

    def action():
        whole, bits = np.full(count + 16, 77, integer), reproducible_bits(key(seed, "rounding"))
        out = whole[past_caches or 0 :][:count]
        squares, left = round_at_random(values, factor, bits, out, alias, past_caches is not None)
        assert (whole[: past_caches or 0] == 77).all()
        assert (whole[count + (past_caches or 0) :] == 77).all()
        return squares, out, left.tolist(), bits.integer(64)

    compiled, numpy = both(action)
    assert np.array_equal(compiled[1], numpy[1])
    assert (compiled[0], *compiled[2:]) == (numpy[0], *numpy[2:])
    if alias is None:
        assert compiled[0] == sum(int(v) ** 2 for v in compiled[1])


@pytest.mark.parametrize("variance", [None, 253.0**2])
@pytest.mark.parametrize("largest", [4000, 2**18, 2**21])
def test_squares_that_float32_does_not_hold(both, largest, variance):
    """Some pieces are summed in floats, some in doubles; both sums are exact, and without noise."""
    values = np.random.default_rng(1).integers(-largest, largest, 3001).astype(np.float32)
    values[:1000] = 1.0
    alias = None if variance is None else table("skellam", variance).alias

    def action():
        bits, out = reproducible_bits(key(1, "squares")), np.empty(len(values), np.int64)
        squares, _ = round_at_random(values, 1.0, bits, out, alias)
        if alias is not None:
            noise, again = np.zeros(len(values), np.int64), reproducible_bits(key(1, "squares"))
            alias.add(again.octets(4 * len(values)), noise)
            out -= noise
        return squares, out

    (compiled, out), (numpy, _) = both(action)
    assert compiled == numpy == sum(int(v) ** 2 for v in out)


@pytest.mark.parametrize("low_bits", range(10))
def test_every_layout_of_a_word(both, low_bits):
    """Whatever its table, so that columns with large and small shares, and the rest, all come."""
    cuts = np.sort(np.random.default_rng(low_bits).integers(0, 2**20, 1023))
    alias = Alias.of(np.diff(cuts, prepend=0, append=2**20).tolist(), low_bits)
    values = values_of(20_000, low_bits, 8)

    def action():
        bits, out = reproducible_bits(key(2, "layout")), np.empty(len(values), np.int64)
        squares, left = round_at_random(values, 0.7, bits, out, alias)
        return squares, out.tolist(), left.tolist()

    compiled, numpy = both(action)
    assert compiled == numpy
    assert len(compiled[2]) > 0


@pytest.mark.parametrize("share", [None, 3.5, 253.0**2, 2**25 + 0.5])
@pytest.mark.parametrize("kind", ["skellam", "discrete_gaussian"])
def test_protected_updates(both, share, kind):
    """Blocks whole and broken; rows to scale down, to leave, to erase."""
    dim = 70_001
    rows = np.stack([values_of(dim, k, e) for k, e in enumerate((0, -12, -60, 100, 3))])
    rows[4, 5] = np.nan
    grid = Grid.choose(dim, 1.0, reports_max=100, noise_multiplier=0.0)
    noise = None if share is None else NoiseShare(kind, share)

    def action():
        return protect(rows, grid, noise, reproducible_bits(key(3, "both", kind)))[0]

    compiled, numpy = both(action)
    assert np.array_equal(compiled, numpy)


@fixtures_are_fine
@given(SIZES, VARIANCES.filter(bool), st.integers(0, 99), st.sampled_from(INTEGERS))
def test_samples(both, count, variance, seed, integer):
    """Vectors near the ends of 32 bits wrap there, compiled and in numpy."""
    alias = table("skellam", variance).alias

    def action():
        out, bits = np.arange(count, dtype=integer), reproducible_bits(key(seed, "samples"))
        out[::2] += 2**31 - 9 - count
        return alias.add(bits.octets(4 * count), out).tolist(), out.tolist(), bits.integer(64)

    compiled, numpy = both(action)
    assert compiled == numpy


@pytest.mark.parametrize("integer", INTEGERS)
@pytest.mark.parametrize("variance", [0.3, 20.0, 253.0**2, 9000.0**2])
def test_boundaries(both, variance, integer):
    """Numbers everywhere, in the far tails, and exactly on boundaries and beside them."""
    found = table("skellam", variance).rest
    assert isinstance(found, CdfTable)
    ends = found.sorted[:: max(1, len(found.sorted) // 500)]
    tails = np.uint64(1) << np.arange(64, dtype=np.uint64)
    drawn = np.random.default_rng(1).integers(0, 2**64, 5000, dtype=np.uint64)
    uniform = np.concatenate([ends, ends + np.uint64(1), ends - np.uint64(1), tails, ~tails, drawn])
    places = np.random.default_rng(2).permutation(len(uniform)).astype(np.uint32)
    places[::3] |= np.uint32(SIGN)

    def action():
        out = np.full(len(uniform), 2**31 - 2, integer)
        return found.add(uniform, places, out).tolist(), out.tolist()

    compiled, numpy = both(action)
    assert compiled == numpy
    tied = np.isin(uniform, found.sorted)
    assert compiled[0] == np.flatnonzero(tied).tolist()
    magnitudes = np.where(tied, 0, found.magnitude - np.searchsorted(found.sorted, uniform))
    signed = np.where(places >= SIGN, -magnitudes, magnitudes)
    expected = (2**31 - 2 + signed).astype(integer)  # wraps at 32 bits
    assert np.array_equal(np.array(compiled[1])[places & np.uint32(SIGN - 1)], expected)


def test_noise_of_every_sampler_in_one_stream(both):
    def action(integer):
        bits, out = reproducible_bits(key(4, "stream")), np.zeros(66_000, integer)
        for variance in (0.2, 900.0, 5000.0**2):
            add_noise("skellam", variance, out, bits)
            add_noise("discrete_gaussian", variance, out, bits)
        for variance in (2.0**44, 2.0**63 + 2.0**40, 2.0**88):
            add_noise("discrete_gaussian", variance, out, bits)
        return out

    (narrow, same), (wide, numpy) = (both(partial(action, integer)) for integer in INTEGERS)
    assert np.array_equal(wide, numpy)
    assert np.array_equal(narrow, same)
    assert np.array_equal(narrow, wide.astype(np.int32))
