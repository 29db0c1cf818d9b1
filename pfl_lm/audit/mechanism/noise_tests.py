"""Statistical tests of the noise: how much of it, how little after dropout, and always new."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from itertools import combinations

import numpy as np
from scipy import stats

from pfl_lm.audit.accounting.streams import noise_covariance
from pfl_lm.audit.findings import Finding
from pfl_lm.audit.mechanism.harness import (
    Opened,
    at_one_clip,
    dim_of,
    encoded,
    fewest,
    lengthened,
    places,
    probe_round,
    probed_round,
    zeros,
)
from pfl_lm.run.context import RunContext

DEVIATIONS = 5.0  # two-sided chance 6e-7
UNLIKELY = 1e-6


def noise(context: RunContext, quiet: Sequence[Opened]) -> Finding:
    """Hold the noise on the sum against its stated standard deviation."""
    name = "noise on the sum"
    values = np.concatenate([opened.total / at_first(context, opened) for opened in quiet])
    stated = context.privacy.sum_multiplier * quiet[0].unit
    if stated == 0:
        return Finding(name, None, "The run promises no noise; none was looked for.")
    if context.privacy.mechanism.place == "server":  # sized for updates that rounding lengthened
        stated *= lengthened(context, int(quiet[0].recorded["round"]))
    spread = _spread(values)
    text = (
        f"{spread.stddev / stated:.4f} of what is stated, ± {spread.error:.4f} "
        f"({values.size:,} draws; 10% more or less would be {0.1 / spread.error:.0f} standard "
        f"errors away)."
    )
    right = abs(spread.stddev / stated - 1) <= DEVIATIONS * spread.error
    centred = abs(values.mean()) <= DEVIATIONS * stated / math.sqrt(values.size)
    if not centred:
        text += f" It is not centred: {values.mean() / stated:.3f} standard deviations off."
    return Finding(name, bool(right and centred), f"Its standard deviation is {text}")


def at_first(context: RunContext, opened: Opened) -> float:
    """Return the deviation of a round's noise, for noise of 1, in which its stream begins.

    1, but for a tree: its first release has the noise of all intervals of a prefix sum.
    """
    follows = context.privacy.guarantee
    if follows is None or follows.stream is None:
        return 1.0
    variance = noise_covariance(asdict(follows.stream), int(opened.recorded["round"]), 1)
    return math.sqrt(float(variance[0, 0]))


@dataclass(frozen=True)
class _Spread:
    stddev: float
    error: float  # of the standard deviation, relative


def _spread(values: np.ndarray) -> _Spread:
    """Estimate a standard deviation about zero, with an error that knows the kurtosis."""
    squares = values**2
    variance = float(squares.mean())
    kurtosis = float((squares**2).mean() / variance**2) if variance else 3.0
    return _Spread(math.sqrt(variance), math.sqrt(max(kurtosis - 1, 0.1) / values.size) / 2)


def fewer_reports(context: RunContext) -> Finding:
    """Check that what a smaller cohort's noise lacks is exactly the missing shares."""
    name = "noise after dropout"
    privacy = context.privacy
    if privacy.policy is None or privacy.policy.noise.at != "device":
        return Finding(name, None, "Devices add no noise; dropout costs none.")
    reports = fewest(context)
    opened = probe_round(context, probed_round(context), places(context, reports), zeros)
    values = opened.total
    removed = privacy.policy.noise.excess == "removed"
    share = 1.0 if removed else math.sqrt(reports / privacy.cohort)
    stated = privacy.sum_multiplier * opened.unit * share
    spread = _spread(values)
    right = abs(spread.stddev / stated - 1) <= DEVIATIONS * spread.error
    text = (
        f"With {reports} reports it is {spread.stddev / stated:.4f} of "
        f"{reports} shares, ± {spread.error:.4f} ({values.size:,} draws)."
    )
    return Finding(name, bool(right), text)


def vanished(context: RunContext) -> Finding:
    """Let as many devices vanish as the policy tolerates; the noise must be what is recorded."""
    name, privacy = "noise when devices vanish", context.privacy
    noise = None if privacy.policy is None else privacy.policy.noise
    if privacy.groups > 1:
        return Finding(name, None, "Dropout leaves out whole groups; see noise after dropout.")
    if noise is None or noise.at != "device" or noise.tolerated_dropout * privacy.cohort < 1:
        return Finding(name, None, "No dropout is tolerated in so small a cohort; not tested.")
    thinned = replace(context, scenario=replace(context.scenario, dropout=noise.tolerated_dropout))
    opened = probe_round(thinned, probed_round(context), places(context), zeros)
    reports, recorded = opened.recorded["reports"], opened.recorded["noise"]
    share = math.sqrt(reports / privacy.cohort)
    if noise.excess == "removed":
        share = recorded["achieved"] / recorded["planned"]
    stated = privacy.sum_multiplier * opened.unit * share
    spread = _spread(opened.total)
    right = abs(spread.stddev / stated - 1) <= DEVIATIONS * spread.error
    text = (
        f"{reports} of {privacy.cohort} devices reported. The noise is "
        f"{spread.stddev / stated:.4f} of what their round accounts for, ± {spread.error:.4f}; "
        f"its excess is {noise.excess}."
    )
    return Finding(name, bool(right), text)


def reuse(quiet: Sequence[Opened]) -> Finding:
    """Look for rounds whose noise is the same, or correlated."""
    name = "fresh noise every round"
    if not np.any(quiet[0].total):
        return Finding(name, None, "There is no noise to compare.")
    if len(quiet) == 1:
        return Finding(name, None, "The noise was planned for one round alone.")
    size = min(opened.total.size for opened in quiet)
    for (i, first), (j, second) in combinations(enumerate(quiet), 2):
        match = _correlation(first.total[:size], second.total[:size])
        if abs(match) > DEVIATIONS / math.sqrt(size):
            text = (
                f"The noise of rounds {i} and {j} of the probe correlates at {match:.3f}: reused."
            )
            return Finding(name, False, text)
    pairs = len(quiet) * (len(quiet) - 1) // 2
    text = f"No two of {len(quiet)} rounds in a row share noise ({pairs} pairs, {size:,} draws)."
    return Finding(name, True, text)


def repeated(context: RunContext, quiet: Opened) -> Finding:
    """Probe one round of the run a second time: noise that repeats comes from a known stream."""
    name = "the same round never draws the same noise"
    if not np.any(quiet.total):
        return Finding(name, None, "There is no noise to compare.")
    if context.privacy.reproducible:
        text = "The scenario asks for reproducible noise, and the run guarantees nothing for it."
        return Finding(name, None, text)
    number = int(quiet.recorded["round"])
    again = probe_round(context, number, places(context), zeros).total
    match = _correlation(quiet.total, again)
    if abs(match) > DEVIATIONS / math.sqrt(again.size):
        text = (
            f"Round {number}, probed twice, draws noise that correlates at {match:.3f}: it comes "
            "from a stream that repeats, not from the operating system."
        )
        return Finding(name, False, text)
    text = f"Round {number}, probed twice, draws two different noises ({again.size:,} draws)."
    return Finding(name, True, text)


def _correlation(first: np.ndarray, second: np.ndarray) -> float:
    norms = float(np.linalg.norm(first) * np.linalg.norm(second))
    return float(first @ second) / norms if norms else 0.0


def devices(context: RunContext) -> Finding:
    """Give some devices one and the same update; what rounding and noise add must differ.

    The clip norm is fixed, for indicators of the same update are alike.
    """
    name, context = "fresh randomness on every device", at_one_clip(context)
    number = probed_round(context)
    grid = context.privacy.grid(dim_of(context, number))
    value = np.float32(0.5 / grid.scale)  # half a grid step everywhere: every coin is fair

    def same(users: Sequence[int], dim: int) -> np.ndarray:
        updates = np.full((len(users), dim), value, np.float32)
        if (rotation := context.privacy.rotation(dim, number)) is not None:
            rotation.inverse(updates)  # so that it is half a step once the device has rotated it
        return updates

    vectors = np.concatenate(list(encoded(context, number, range(8), same)))
    centred = vectors - vectors.mean(axis=1, keepdims=True)
    worst = max(abs(_correlation(centred[i], centred[j])) for i, j in combinations(range(8), 2))
    right = worst <= DEVIATIONS / math.sqrt(vectors.shape[1])
    text = (
        f"The rounding and noise of 8 devices with the same update correlate at most at "
        f"{worst:.4f} ({vectors.shape[1]:,} coordinates)."
    )
    return Finding(name, bool(right), text)


def least_bits(context: RunContext, quiet: Opened) -> Finding:
    """Compare the least bits of the released sum with and without an update (Mironov 2012)."""
    name = "least bits tell nothing"
    if not np.any(quiet.total):
        return Finding(name, None, "There is no noise; every bit tells.")
    number = probed_round(context)
    scale = context.privacy.grid(dim_of(context, number)).scale

    def odd(users: Sequence[int], dim: int) -> np.ndarray:
        updates = np.zeros((len(users), dim), np.float32)
        if 0 in users:
            updates[list(users).index(0)] = np.float32(1.0 / scale)  # one grid step everywhere
        return updates

    loud = probe_round(context, number, places(context), odd)
    bits = _covered_bits(context, scale)
    if bits < 1:
        text = "In this small simulation the noise is narrower than a grid step; not tested."
        return Finding(name, None, text)
    tables = np.stack([np.bincount(_bits(context, o.total, bits)) for o in (quiet, loud)])
    chance = float(stats.chi2_contingency(tables).pvalue)
    text = (
        f"The {bits} least bits of {quiet.total.size:,} released sums look alike with and without "
        f"an update of one step (p = {chance:.2g})."
    )
    return Finding(name, chance > UNLIKELY, text)


def _covered_bits(context: RunContext, scale: float) -> int:
    """Return how many least bits of the sum the noise makes uniform to within 1e-6, at most 3.

    Noise of σ grid steps is uniform modulo 2^b up to exp(−2π²σ²/4^b).
    """
    if context.privacy.mechanism.place == "server":
        return 3
    sigma = context.privacy.sum_multiplier * context.privacy.clip_norm * scale
    return min(3, int(math.log2(max(1.0, sigma * math.pi * math.sqrt(2 / math.log(1e6))))))


def _bits(context: RunContext, total: np.ndarray, count: int) -> np.ndarray:
    """Return the least bits of each released number, as integers below 2^count."""
    if context.privacy.mechanism.place == "server":
        integers = total.astype(np.float32).view(np.uint32).astype(np.int64)
    else:
        scale = context.privacy.grid(len(total)).scale * context.privacy.update_weight
        integers = np.rint(total * scale).astype(np.int64)
    return integers & (2**count - 1)
