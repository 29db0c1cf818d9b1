"""Tests of the sum: each report counts once, by a public constant, and moves it no further."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from pfl_lm.audit.findings import Finding
from pfl_lm.audit.mechanism.adversarial import adversarial_updates
from pfl_lm.audit.mechanism.harness import (
    dim_of,
    encoded,
    fewest,
    places,
    probe_round,
    probed_round,
    without_device_noise,
)
from pfl_lm.audit.mechanism.noise_tests import DEVIATIONS
from pfl_lm.run.context import RunContext

_ADVERSARIES = 800  # devices; a fault in one of a hundred is missed with chance 3e-4
_MOST_COORDINATES = 150_000_000  # encoded for the sensitivity test


def sum_of_all(context: RunContext) -> Finding:
    """Let every device, of little text or much, send a full clip; each must count once."""
    name, count = "each report counts once", context.privacy.cohort
    number = probed_round(context)
    if dim_of(context, number) < count:
        return Finding(name, None, "There are more reports than coordinates; not tested.")
    shares, noise = _counted(context, number, count)
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


def division(context: RunContext) -> Finding:
    """Let fewer devices report: each must count as it does in a full cohort."""
    name, count = "division by a public constant", fewest(context)
    number = probed_round(context)
    if dim_of(context, number) < count or count == context.privacy.cohort:
        return Finding(name, None, "A smaller cohort cannot be had; not tested.")
    shares, noise = _counted(context, number, count)
    off = abs(shares.mean() - 1)
    right = off <= DEVIATIONS * noise / math.sqrt(count) + 1e-3
    text = (
        f"Where {count} of {context.privacy.cohort} devices report, each counts "
        f"{shares.mean():.3f} of what it does in a full cohort"
    )
    text += "." if right else ": the mean divides by how many came, and so tells it."
    return Finding(name, bool(right), text)


def _counted(context: RunContext, number: int, count: int) -> tuple[np.ndarray, float]:
    """Let each device send a full clip on coordinates of its own.

    Returns:
        What each counted for, float64[count], and the standard deviation of the noise on it.
    """
    clip, width = context.privacy.clip_norm, dim_of(context, number) // count
    value = clip / math.sqrt(width)

    def blocks(users: Sequence[int], dim: int) -> np.ndarray:
        updates = np.zeros((len(users), dim), np.float32)
        for row, user in enumerate(users):
            updates[row, user * width : (user + 1) * width] = value
        return updates

    opened = probe_round(context, number, places(context, count), blocks)
    shares = opened.total[: width * count].reshape(count, width).sum(axis=1) / (value * width)
    # Noise on one share: σ/(clip) per report; rounding adds at most half a step a coordinate.
    noise = (
        math.sqrt(context.privacy.sum_multiplier**2 + 1 / (4 * _steps(context, number) ** 2)) + 1e-6
    )
    return shares, noise


def _steps(context: RunContext, number: int) -> float:
    grid = context.privacy.grid(dim_of(context, number))
    return float(grid.scale * grid.clip_norm)


def sensitivity(context: RunContext) -> Finding:
    """Measure by how much one device can move the integer sum, over adversarial updates."""
    name = "no device moves the sum by more than the sensitivity"
    number = probed_round(context)
    dim = dim_of(context, number)
    bound = context.privacy.grid(dim).norm_bound
    count = int(np.clip(_MOST_COORDINATES // dim, 100, _ADVERSARIES))
    quiet = replace(context, privacy=without_device_noise(context.privacy))
    longest = 0.0
    for vectors in encoded(
        quiet, number, range(count), adversarial_updates(context.privacy.clip_norm)
    ):
        norms = np.sqrt(np.einsum("kd,kd->k", vectors, vectors, dtype=np.float64))
        longest = max(longest, float(norms.max()))
    right = longest <= bound * (1 + 1e-9)
    text = (
        f"Of {count} adversarial devices the strongest moved the sum by {longest / bound:.4f} of "
        "what is accounted for"
    )
    text += "." if right else ": its update was not clipped."
    return Finding(name, bool(right), text)
