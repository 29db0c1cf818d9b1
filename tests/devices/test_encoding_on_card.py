"""The clip and the rounding of a graphics card, computed by torch's own processor."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pfl_lm.devices import encoding_on_card
from pfl_lm.devices.encoding_on_card import _dithers, clip_and_round
from pfl_lm.dp.encoding import TRIES, decode, protect
from pfl_lm.dp.grid import Grid
from pfl_lm.dp.sampler.random_bits import RandomBits
from tests.dp import reference
from tests.dp.test_encoding import ANY_ROWS, bits, check_unbiased, gaussians


def on_card(rows: np.ndarray[Any, Any], grid: Grid, seed: int = 0) -> tuple[Any, Any]:
    sources = [bits(seed, number) for number in range(len(rows))]
    vectors, clipped = clip_and_round(torch.from_numpy(rows), grid, sources)
    return vectors.numpy(), clipped


@given(
    rows=ANY_ROWS,
    clip_norm=st.floats(1e-30, 1e30),
    grid_steps=st.floats(0.01, 50),
    seed=st.integers(0, 1000),
)
def test_no_row_is_longer_than_the_grid_allows_and_the_clip_is_the_processors(
    rows: Any, clip_norm: float, grid_steps: float, seed: int
) -> None:
    grid = Grid(rows.shape[1], clip_norm, grid_steps, 40)
    vectors, clipped = on_card(rows, grid, seed)
    for vector in vectors.tolist():
        assert sum(value * value for value in vector) <= grid.norm_bound**2
    _, expected = protect(rows, grid, None, bits("encode", seed))
    np.testing.assert_allclose(clipped.norms, expected.norms, rtol=1e-12)
    edge = np.isclose(expected.norms, clip_norm * (1 - 2.0**-22), rtol=1e-12)
    assert (clipped.clipped == expected.clipped)[~edge].all()
    erased = ~np.isfinite(rows).all(axis=1) | ~rows.any(axis=1)
    assert not vectors[erased].any()


@pytest.mark.parametrize("clip_norm", [1.0, 1e22])
def test_a_rounded_row_is_within_a_step_of_the_clipped_one(clip_norm: float) -> None:
    """The large clip norm has a scale that float32 would lose bits of."""
    rows = gaussians(5, 3000) * np.float32([[0.0], [1e-3], [1.0], [1e8], [1e25]])
    grid = Grid(3000, clip_norm, 8.0, 30)
    vectors, _ = on_card(rows, grid)
    assert vectors.dtype == np.int32
    exact = reference.clip(rows, clip_norm) * grid.scale
    assert np.abs(vectors - exact).max() < 1.001


def test_rounding_is_unbiased_and_has_its_variance() -> None:
    row, grid = gaussians(1, 4096, 3), Grid(4096, 1.0, 8.0, 40)
    vectors, _ = on_card(np.repeat(row, 600, 0), grid)
    assert vectors.dtype == np.int64, "a ring of more than 31 bits"
    check_unbiased(vectors, row, grid)


def test_a_refused_rounding_is_made_again_with_other_bits() -> None:
    grid = Grid(4, 1.0, 1.0, 20)
    rows = np.full((20_000, 4), 0.4999, dtype=np.float32)  # a fifth of the roundings are refused
    vectors, _ = on_card(rows, grid)
    assert ((vectors.astype(np.int64) ** 2).sum(axis=1) <= grid.norm_bound_squared).all()
    kept = protect(rows, grid, None, bits("refused"))[0]
    np.testing.assert_allclose(vectors.mean(axis=0), kept.mean(axis=0), atol=0.03)


def test_what_no_rounding_brings_below_the_bound_is_rounded_towards_zero(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def always_up(seeds: torch.Tensor, count: int) -> torch.Tensor:
        rounds.append(len(seeds))
        return torch.full((len(seeds), count), 2.0**16 - 1)

    rounds: list[int] = []
    monkeypatch.setattr(encoding_on_card, "_dithers", always_up)
    rows = np.stack([np.full(400, 0.05, np.float32), np.zeros(400, np.float32)])
    rows[1, 0] = 0.9  # rounds up, and is not too long
    vectors, _ = on_card(rows, Grid(400, 1.0, 0.5, 20))  # the first row is half a step everywhere
    assert rounds == [2] + [1] * (TRIES - 1)
    assert not vectors[0].any()
    assert vectors[1, 0] == 9


def test_dithers_are_those_of_splitmix64() -> None:
    """The published constants, by Python's own integers; each word serves four coordinates."""
    mask, state, words = 2**64 - 1, 12345, []
    for _ in range(3):
        state = state + 0x9E3779B97F4A7C15 & mask
        z = (state ^ state >> 30) * 0xBF58476D1CE4E5B9 & mask
        z = (z ^ z >> 27) * 0x94D049BB133111EB & mask
        words.append(z ^ z >> 31)
    expected = [word >> shift & 0xFFFF for word in words for shift in (0, 16, 32, 48)]
    assert _dithers(torch.tensor([7, 12345]), 11)[1].tolist() == expected[:11]


def test_devices_together_are_each_alone() -> None:
    rows, grid = gaussians(5, 3000), Grid(3000, 2.0, 8.0, 30)
    together, _ = on_card(rows, grid)
    for number in range(5):
        own = [bits(0, number)]
        alone, _ = clip_and_round(torch.from_numpy(rows[number : number + 1]), grid, own)
        assert (alone[0].numpy() == together[number]).all()
    mean = np.stack([decode(each, grid, 1) for each in together.astype(np.int64)])
    np.testing.assert_allclose(mean, reference.clip(rows, 2.0), atol=1.01 / grid.scale)


def test_what_cannot_be_encoded_is_refused() -> None:
    grid = Grid(3, 1.0, 8.0, 20)
    sources: list[RandomBits] = [bits(0)]
    for wrong in (torch.zeros(1, 4), torch.zeros(3), torch.zeros(1, 3, dtype=torch.float64)):
        with pytest.raises(ValueError, match=r"updates must be float32\[K, 3\]"):
            clip_and_round(wrong, grid, sources)
    with pytest.raises(ValueError, match="one source for each of 2 rows"):
        clip_and_round(torch.zeros(2, 3), grid, sources)
    vectors, clipped = clip_and_round(torch.zeros(0, 3), grid, [])
    assert vectors.shape == (0, 3)
    assert len(clipped.norms) == 0
