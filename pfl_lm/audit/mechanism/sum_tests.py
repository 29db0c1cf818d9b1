"""Tests of the sum: each report counts once, by a public constant, and moves it no further."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

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
    without_noise,
)
from pfl_lm.audit.mechanism.noise_tests import DEVIATIONS, at_first
from pfl_lm.run.context import RunContext

_ADVERSARIES = 800  # devices; a fault in one of a hundred is missed with chance 3e-4
_MOST_COORDINATES = 150_000_000  # encoded for the sensitivity test
_EXACT = 1e-3  # of a clip norm: float32, and a rounding that lengthens
_MARGIN = 3.0  # standard errors beyond what is called wrong: a fault of these is missed 1 in 1,000
_DOUBLED = 1.0  # by how much a report that counts twice is off


@dataclass(frozen=True)
class _Counted:
    """What reports of a full clip counted for in the mean of one round.

    Attributes:
        shares: float64[n], of each report; 1 is right.
        noise: standard deviation of the noise on one of them.
        noiseless: the round was probed without noise.
    """

    shares: np.ndarray
    noise: float
    noiseless: bool

    @property
    def error(self) -> float:
        """Standard error of their mean."""
        return self.noise / math.sqrt(len(self.shares))

    @property
    def off(self) -> bool:
        """Whether they count too much or too little on average."""
        return bool(abs(self.shares.mean() - 1) > DEVIATIONS * self.error + _EXACT)

    @property
    def wrong_alone(self) -> int:
        """How many are wrong by themselves."""
        return int((np.abs(self.shares - 1) > (DEVIATIONS + 1) * self.noise + _EXACT).sum())

    @property
    def seen_on_average(self) -> float:
        """The least fault of all reports alike that a test finds, but once in a thousand."""
        return (DEVIATIONS + _MARGIN) * self.error + _EXACT

    @property
    def seen_alone(self) -> float:
        """The least fault of one report that a test finds, but once in a thousand."""
        return (DEVIATIONS + 1 + _MARGIN) * self.noise + _EXACT

    def __str__(self) -> str:
        how = "without noise " * self.noiseless
        return f"{how}{self.shares.mean():.3f} ± {self.error:.3f}"


def sum_of_all(context: RunContext) -> Finding:
    """Let every device, of little text or much, send a full clip; each must count once."""
    name, count = "each report counts once", context.privacy.cohort
    number = probed_round(context)
    if dim_of(context, number) < count:
        return Finding(name, None, "There are more reports than coordinates; not tested.")
    probes = _probed(context, number, count, lambda probe: probe.seen_alone <= _DOUBLED)
    text = f"{count} reports of a full clip count {_means(probes)} on average"
    if any(probe.off or probe.wrong_alone for probe in probes):
        wrong = max(probe.wrong_alone for probe in probes)
        text += (
            f" ({wrong} of them are wrong by themselves): reports were lost, weighted or doubled "
            "although the ledger counts them."
        )
        return Finding(name, False, text)
    if (seen := probes[-1].seen_alone) > _DOUBLED:
        return _cannot_tell(name, f"{text}; of one report", seen, "one that counts twice")
    return Finding(name, True, f"{text}, and none is {seen:.2g} or more off by itself.")


def division(context: RunContext) -> Finding:
    """Let fewer devices report: each must count as it does in a full cohort."""
    name, count, cohort = "division by a public constant", fewest(context), context.privacy.cohort
    number = probed_round(context)
    if dim_of(context, number) < count or count == cohort:
        return Finding(name, None, "A smaller cohort cannot be had; not tested.")
    fault = cohort / count - 1  # where the mean divides by how many came
    probes = _probed(context, number, count, lambda probe: probe.seen_on_average <= fault)
    text = (
        f"Where {count} of {cohort} devices report, each counts, of what it does in a full cohort, "
        f"{_means(probes)}"
    )
    if any(probe.off for probe in probes):
        return Finding(name, False, f"{text}: the mean divides by how many came, and so tells it.")
    if (seen := probes[-1].seen_on_average) > fault:
        looked_for = f"the {fault:.3f} more of a mean that divides by how many came"
        return _cannot_tell(name, f"{text}; on average", seen, looked_for)
    return Finding(name, True, f"{text}; divided by how many came it would be {fault:.3f} more.")


def _cannot_tell(name: str, text: str, seen: float, looked_for: str) -> Finding:
    text += f" faults from {seen:.2f} on are seen, and not {looked_for}: this cannot be told."
    return Finding(name, None, text)


def _means(probes: Sequence[_Counted]) -> str:
    return ", and ".join(str(probe) for probe in probes)


def _probed(
    context: RunContext, number: int, count: int, tells: Callable[[_Counted], bool]
) -> list[_Counted]:
    """Count reports with the run's noise, and where that hides a fault once more without noise.

    Args:
        tells: whether a fault would be seen.
    """
    probes = [_counted(context, number, count)]
    if not tells(probes[0]) and not context.privacy.external_noise:
        quiet = replace(context, privacy=without_noise(context.privacy))
        probes.append(_counted(quiet, number, count))
    return probes


def _counted(context: RunContext, number: int, count: int) -> _Counted:
    """Let each device send a full clip on coordinates of its own."""
    clip, width = context.privacy.clip_norm, dim_of(context, number) // count
    value = clip / math.sqrt(width)

    def blocks(users: Sequence[int], dim: int) -> np.ndarray:
        updates = np.zeros((len(users), dim), np.float32)
        for row, user in enumerate(users):
            updates[row, user * width : (user + 1) * width] = value
        return updates

    opened = probe_round(context, number, places(context, count), blocks)
    shares = opened.total[: width * count].reshape(count, width).sum(axis=1) / (value * width)
    noiseless = context.privacy.mechanism.place == "none"
    spread = 0.0 if noiseless else context.privacy.sum_multiplier * at_first(context, opened)
    # Rounding adds at most half a step a coordinate: of a report to its own, rotated to all.
    rounded = count if context.privacy.rotate else 1
    rounding = math.sqrt(rounded) / (2 * _steps(context, number))
    noise = math.hypot(spread, rounding) * opened.unit / clip + 1e-6
    return _Counted(shares, noise, noiseless)


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
