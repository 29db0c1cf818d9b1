"""The ring holds every sum of a round, with the stated probability, or the round is refused."""

from __future__ import annotations

import csv
import math

import numpy as np
import pytest
from scipy import stats

from pfl_lm.dp.grid import Grid
from pfl_lm.dp.noise import skellam_from_seed
from pfl_lm.dp.rotation import Rotation
from pfl_lm.dp.sampler.pmf import joint_radius, tail_radius

_KINDS = {"ddgauss": "discrete_gaussian", "dskellam": "skellam"}


def rows_of(shared) -> list[dict[str, str]]:
    with (shared / "oracles" / "ddp.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    return [row for row in rows if row["direction"] == "forward z->eps" and row["rounds"] != "1"]


def bits_of(row, grid_steps: float | None = None, rotated: bool = True) -> int:
    dim, clip = int(row["dim_padded"]), float(row["l2_clip"])
    if grid_steps is None:
        grid_steps = float(row["scale=1/gamma"]) * clip / math.sqrt(dim)
    return Grid.choose(
        dim,
        clip,
        reports_max=int(row["n_clients"]),
        noise_multiplier=float(row["central_noise_mult_vs_clip"]),
        kind=_KINDS[row["mechanism"]],
        grid_steps=grid_steps,
        rotated=rotated,
    ).modulus_bits


def test_integers_of_vectors_are_as_wide_as_the_ring_needs():
    assert [Grid(9, 1.0, 8.0, bits).integer for bits in (2, 31)] == [np.int32] * 2
    assert [Grid(9, 1.0, 8.0, bits).integer for bits in (32, 63)] == [np.int64] * 2


def test_rotation_brings_the_ring_down_to_the_oracles_bits(shared):
    """Theirs allow a coordinate to wrap beyond 4 deviations, ours any with chance 2^-40: where
    both use one scale, that is the ratio of 9.5 to 4 deviations, up to 2 bits."""
    for row in rows_of(shared):
        theirs = int(row["bits"])
        assert theirs <= bits_of(row) <= theirs + 2, row["id"]
        if int(row["n_clients"]) <= 6500:
            assert 16 <= bits_of(row, 8.0) <= 20, row["id"]
        assert bits_of(row, 8.0, rotated=False) >= bits_of(row, 8.0) + 4, row["id"]


@pytest.mark.parametrize("kind", ["skellam", "discrete_gaussian"])
@pytest.mark.parametrize("variance", [0.0, 3.0, 4e4, 1e9])
def test_the_joint_tail_covers_signal_and_noise(kind, variance):
    """Above each alone, below their sum; without noise, or with Gaussian noise, in closed form."""
    proxy, bits = 1e6, 61.0
    found = joint_radius(kind, proxy, variance, bits)
    alone = math.sqrt(2 * proxy * bits * math.log(2))
    noise = tail_radius(kind, variance, bits) if variance else 0
    assert max(alone, noise) * (1 - 1e-5) <= found <= alone + noise + 2
    if kind == "discrete_gaussian" or not variance:
        assert found == pytest.approx(alone * math.sqrt(1 + variance / proxy), abs=1.5)


@pytest.mark.parametrize("bits", [4, 8, 12])
def test_sums_go_beyond_the_joint_tail_as_rarely_as_stated(bits):
    """Signs of one update and Skellam noise: Chernoff is loose, but never on the wrong side."""
    reports, dim, variance = 50, 1 << 14, 300.0
    update = np.zeros((1, dim), dtype=np.float32)
    update[0, 7] = reports * 4
    Rotation(dim, bytes(32)).forward(update)
    total = np.rint(update[0] * math.sqrt(dim) / 8) + skellam_from_seed(bytes(32), variance, dim)
    beyond = int(
        (np.abs(total) >= joint_radius("skellam", (reports / 2) ** 2, variance, bits)).sum()
    )
    assert stats.binomtest(beyond, dim, 2.0 ** (1 - bits), alternative="greater").pvalue > 1e-6


def test_a_rotated_sum_of_the_worst_updates_fits():
    """Everybody pushes one coordinate as far as the clip allows."""
    reports, dim, clip = 200, 5000, 1.0
    wide = Grid.choose(dim, clip, reports_max=reports)
    narrow = Grid.choose(dim, clip, reports_max=reports, rotated=True)
    assert narrow.modulus_bits <= wide.modulus_bits - 3
    update = np.zeros((1, dim), dtype=np.float32)
    update[0, 4999] = clip
    half = 2 ** (narrow.modulus_bits - 1)
    assert reports * wide.scale * update.max() > half
    Rotation(dim, bytes(32)).forward(update)
    assert reports * (np.abs(update).max() * narrow.scale + 1) < half


def test_a_fixed_width_is_kept_or_refused_with_the_bits_it_needs():
    need = {"dim": 5000, "clip_norm": 1.0, "reports_max": 200, "noise_multiplier": 1.0}
    free = Grid.choose(**need).modulus_bits
    assert Grid.choose(**need, modulus_bits=free + 3).modulus_bits == free + 3
    with pytest.raises(ValueError, match=rf"needs {free} bits .* raise it, or rotate"):
        Grid.choose(**need, modulus_bits=free - 1)
    rotated = Grid.choose(**need, rotated=True).modulus_bits
    with pytest.raises(ValueError, match=rf"needs {rotated} bits .* raise it, or leave"):
        Grid.choose(**need, rotated=True, modulus_bits=rotated - 1)
