"""A stream of correlated noise whose clip norm moves from round to round."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from pfl_lm.dp.clipping import Clipping
from pfl_lm.dp.correlated.sensitivity import sensitivity
from pfl_lm.dp.grid import Grid
from pfl_lm.dp.mechanisms import Opened
from pfl_lm.dp.policy import Noise, Participation, Policy
from pfl_lm.dp.sampler.random_bits import reproducible_bits
from pfl_lm.streams import key

ROUNDS, DIM, CLIP = 8, 4000, 0.5


def mechanism_of(kind: str):
    policy = Policy(
        *("user", "zero_out", 2.0, 1e-6, 10_000, 100, ROUNDS),
        Participation("rotation", 3),
        Noise("server", kind),
        clipping=Clipping(1e-3, 1e3),
    )
    return policy.mechanism


def run(kind: str, ratios, sums=None) -> np.ndarray:
    """Release rounds at CLIP times each ratio; return the noisy sums in model units."""
    mechanism, state, released = mechanism_of(kind), b"", []
    for t, ratio in enumerate(ratios):
        grid = Grid(DIM, CLIP * ratio, 8.0, 40)
        total = np.zeros(DIM, np.int64) if sums is None else sums[t]
        bits = reproducible_bits(key(0, "noise", t))
        opened = Opened(total, grid, 1, 2.0, bits, t, None, DIM, clip_ratio=ratio)
        mean, state = mechanism.mean(opened, state)
        released.append(mean.astype(np.float64))
    return np.array(released)


@pytest.mark.parametrize("kind", ["blt", "banded", "banded_inverse_root", "tree"])
def test_the_stream_runs_in_units_of_each_rounds_clip_norm(kind):
    """The same integers on another grid: the same stream, to the byte, at another scale."""
    sums = np.random.default_rng(0).integers(-400, 400, size=(ROUNDS, DIM))
    ratios = [2.0 ** (t % 4 - 2) for t in range(ROUNDS)]
    fixed, moving = run(kind, [1.0] * ROUNDS, sums), run(kind, ratios, sums)
    assert (moving == fixed * np.array(ratios)[:, None]).all()


def test_noise_still_cancels_while_the_clip_norm_moves():
    """A tenth a round: at the same ε what is added up has less noise than of independent rounds."""
    ratios = [0.9**t for t in range(ROUNDS)]
    plan = mechanism_of("blt").plan
    moved = {"blt": sensitivity(plan, 3, 3), "gaussian": np.sqrt(3)}  # by a user in three rounds
    noise = {kind: run(kind, ratios).sum(axis=0).std() * moved[kind] for kind in moved}
    assert noise["blt"] < 0.75 * noise["gaussian"]


def test_a_stream_that_forgot_the_ratio_would_move_further():
    """In model units a later, smaller clip norm has too little noise for what earlier sums left."""
    mechanism = mechanism_of("blt")
    grid = Grid(DIM, CLIP, 8.0, 40)
    opened = Opened(
        np.zeros(DIM, np.int64), grid, 1, 2.0, reproducible_bits(bytes(32)), 0, size=DIM
    )
    _, state = mechanism.mean(opened, b"")
    later = replace(opened, grid=replace(grid, clip_norm=CLIP / 8), round=1)
    right = mechanism.mean(replace(later, clip_ratio=1 / 8), state)[0].std()
    wrong = mechanism.mean(later, state)[0].std()
    assert wrong > 2 * right  # the memory of round 0 alone is eight times what round 1 clips to
