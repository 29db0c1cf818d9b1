"""Tests of the sum: each report counts once, by a public constant, and moves it no further."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from pfl_lm.audit.findings import Finding
from pfl_lm.audit.hostile import hostile_updates
from pfl_lm.audit.noise_tests import DEVIATIONS
from pfl_lm.audit.probe import FIRST_ROUND, dim_of, encoded, fewest, places, probe_round
from pfl_lm.world import World

_ADVERSARIES = 800  # devices; a fault in one of a hundred is missed with chance 3e-4
_MOST_COORDINATES = 150_000_000  # encoded for the sensitivity test


def sum_of_all(world: World) -> Finding:
    """Let every device, of little text or much, send a full clip; each must count once."""
    name, count = "each report counts once", world.protection.cohort
    if dim_of(world) < count:
        return Finding(name, None, "There are more reports than coordinates; not tested.")
    shares, noise = _counted(world, FIRST_ROUND + 70, count)
    mean_off = abs(shares.mean() - 1) > DEVIATIONS * noise / math.sqrt(count) + 1e-3
    alone = np.abs(shares - 1) > (DEVIATIONS + 1) * noise + 1e-3
    if mean_off or alone.any():
        text = (
            f"{count} reports of a full clip count {shares.mean():.3f} on average "
            f"({int(alone.sum())} of them are wrong by themselves): reports were lost, weighted "
            "or doubled although the ledger counts them."
        )
        return Finding(name, False, text)
    power = "each by itself" if noise < 0.1 else "on average"
    text = f"{count} reports of a full clip, from one sentence or many, count once, {power}."
    return Finding(name, True, text)


def division(world: World) -> Finding:
    """Let fewer devices report: each must count as it does in a full cohort."""
    name, count = "division by a public constant", fewest(world)
    if dim_of(world) < count or count == world.protection.cohort:
        return Finding(name, None, "A smaller cohort cannot be had; not tested.")
    shares, noise = _counted(world, FIRST_ROUND + 75, count)
    off = abs(shares.mean() - 1)
    right = off <= DEVIATIONS * noise / math.sqrt(count) + 1e-3
    text = (
        f"Where {count} of {world.protection.cohort} devices report, each counts "
        f"{shares.mean():.3f} of what it does in a full cohort"
    )
    text += "." if right else ": the mean divides by how many came, and so tells it."
    return Finding(name, bool(right), text)


def _counted(world: World, number: int, count: int) -> tuple[np.ndarray, float]:
    """Let each device send a full clip on coordinates of its own.

    Returns:
        What each counted for, float64[count], and the standard deviation of the noise on it.
    """
    clip, width = world.protection.clip_norm, dim_of(world) // count
    value = clip / math.sqrt(width)

    def blocks(users: Sequence[int], dim: int) -> np.ndarray:
        updates = np.zeros((len(users), dim), np.float32)
        for row, user in enumerate(users):
            updates[row, user * width : (user + 1) * width] = value
        return updates

    opened = probe_round(world, number, places(world, count), blocks)
    shares = opened.total[: width * count].reshape(count, width).sum(axis=1) / (value * width)
    # Noise on one share: σ/(clip) per report; rounding adds at most half a step a coordinate.
    noise = math.sqrt(world.protection.sum_multiplier**2 + 1 / (4 * _steps(world) ** 2)) + 1e-6
    return shares, noise


def _steps(world: World) -> float:
    grid = world.protection.grid(dim_of(world))
    return float(grid.scale * grid.clip_norm)


def sensitivity(world: World) -> Finding:
    """Measure by how much one device can move the integer sum, over adversarial updates."""
    name = "no device moves the sum by more than the sensitivity"
    dim = dim_of(world)
    bound = world.protection.grid(dim).norm_bound
    count = int(np.clip(_MOST_COORDINATES // dim, 100, _ADVERSARIES))
    # Without a policy devices add no noise, so a submitted vector is what the device moves.
    silent = replace(world, protection=replace(world.protection, policy=None))
    longest = 0.0
    for vectors in encoded(
        silent, FIRST_ROUND + 80, range(count), hostile_updates(world.protection.clip_norm)
    ):
        norms = np.sqrt(np.einsum("kd,kd->k", vectors, vectors, dtype=np.float64))
        longest = max(longest, float(norms.max()))
    right = longest <= bound * (1 + 1e-9)
    text = (
        f"Of {count} hostile devices the strongest moved the sum by {longest / bound:.4f} of what "
        "is accounted for"
    )
    text += "." if right else ": its update was not clipped."
    return Finding(name, bool(right), text)
