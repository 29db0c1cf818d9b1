"""Does the running code do what the formula says? Statistical tests of clip, noise and sum.

Each test states its sample size and what it would have noticed. A test is wrong about correct
code once in a million.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np
from scipy import stats

from pfl_lm.audit.findings import Finding, Part, Plot
from pfl_lm.audit.hostile import hostile_updates
from pfl_lm.audit.probe import Opened, encoded, probe_round
from pfl_lm.world import World

_DEVIATIONS = 5.0  # two-sided chance 6e-7
_UNLIKELY = 1e-6
_FIRST_ROUND = 1_000_000  # far from every round of the run: a probe repeats none of its streams
_ROUNDS = 4  # consecutive ones: reuse in every second or third round shows
_ADVERSARIES = 800  # devices; a fault in one of a hundred is missed with chance 3e-4
_MOST_COORDINATES = 150_000_000  # encoded for the sensitivity test

NOT_CHECKED = (
    "Noise as real phones draw it: the code is tested here, not the installed app.",
    "Cryptography: secure aggregation is its ideal stand-in unless the scenario says otherwise.",
)


def audit_mechanism(world: World) -> Part:
    """Test the code that a run ran, with the run's own settings."""
    started = time.monotonic()
    quiet = [probe_round(world, _FIRST_ROUND + i, _cohort(world), _zeros) for i in range(_ROUNDS)]
    findings = [
        _noise(world, quiet),
        _fewer_reports(world),
        _reuse(quiet),
        _devices(world),
        _sum(world),
        _sensitivity(world),
        _least_bits(world, quiet[0]),
    ]
    samples = sum(opened.total.size for opened in quiet)
    return Part(
        "mechanism",
        "Does the running code do what the formula says?",
        (
            f"{_ROUNDS} rounds of silent devices: {samples:,} draws of the noise on the sum.",
            "A round of known updates: each counts once, none counts more.",
            "Devices that send nothing, too much, NaN, infinity, or all on one coordinate.",
        ),
        findings,
        NOT_CHECKED,
        (),
        [_distribution(world, quiet[0])],
        {"noise_samples": samples, "sum_multiplier": world.protection.sum_multiplier},
        time.monotonic() - started,
    )


def _cohort(world: World, count: int | None = None) -> range:
    return range(count or world.protection.cohort)


def _zeros(users: Sequence[int], dim: int) -> np.ndarray:
    return np.zeros((len(users), dim), np.float32)


def _noise(world: World, quiet: Sequence[Opened]) -> Finding:
    """Hold the noise on the sum against its stated standard deviation."""
    name = "noise on the sum"
    values = np.concatenate([opened.total for opened in quiet])
    stated = world.protection.sum_multiplier * world.protection.clip_norm
    if stated == 0:
        return Finding(name, None, "The run promises no noise; none was looked for.")
    found = _spread(values)
    text = (
        f"{found.stddev / stated:.4f} of what is stated, ± {found.error:.4f} "
        f"({values.size:,} draws; 10% more or less would be {0.1 / found.error:.0f} standard "
        f"errors away)."
    )
    right = abs(found.stddev / stated - 1) <= _DEVIATIONS * found.error
    centred = abs(values.mean()) <= _DEVIATIONS * stated / math.sqrt(values.size)
    if not centred:
        text += f" It is not centred: {values.mean() / stated:.3f} standard deviations off."
    return Finding(name, bool(right and centred), f"Its standard deviation is {text}")


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


def _fewer_reports(world: World) -> Finding:
    """Check that what a smaller cohort's noise lacks is exactly the missing shares."""
    name = "noise after dropout"
    protection = world.protection
    if protection.policy is None or protection.policy.noise.at != "device":
        return Finding(name, None, "Devices add no noise; dropout costs none.")
    reports = max(protection.least_reports, 2)
    values = probe_round(world, _FIRST_ROUND + 50, _cohort(world, reports), _zeros).total
    share = math.sqrt(reports / protection.cohort)
    stated = protection.sum_multiplier * protection.clip_norm * share
    found = _spread(values)
    right = abs(found.stddev / stated - 1) <= _DEVIATIONS * found.error
    text = (
        f"With {reports} reports, the fewest that are opened, it is {found.stddev / stated:.4f} of "
        f"{reports} shares, ± {found.error:.4f} ({values.size:,} draws)."
    )
    return Finding(name, bool(right), text)


def _reuse(quiet: Sequence[Opened]) -> Finding:
    """Look for rounds whose noise is the same, or correlated."""
    name = "fresh noise every round"
    if not np.any(quiet[0].total):
        return Finding(name, None, "There is no noise to compare.")
    size = min(opened.total.size for opened in quiet)
    for (i, first), (j, second) in combinations(enumerate(quiet), 2):
        match = _correlation(first.total[:size], second.total[:size])
        if abs(match) > _DEVIATIONS / math.sqrt(size):
            text = (
                f"The noise of rounds {i} and {j} of the probe correlates at {match:.3f}: reused."
            )
            return Finding(name, False, text)
    pairs = len(quiet) * (len(quiet) - 1) // 2
    text = f"No two of {len(quiet)} rounds in a row share noise ({pairs} pairs, {size:,} draws)."
    return Finding(name, True, text)


def _correlation(first: np.ndarray, second: np.ndarray) -> float:
    norms = float(np.linalg.norm(first) * np.linalg.norm(second))
    return float(first @ second) / norms if norms else 0.0


def _devices(world: World) -> Finding:
    """Give some devices one and the same update; what rounding and noise add must differ."""
    name = "fresh randomness on every device"
    grid = world.protection.grid(_dim(world))
    value = np.float32(0.5 / grid.scale)  # half a grid step everywhere: every coin is fair

    def same(users: Sequence[int], dim: int) -> np.ndarray:
        return np.full((len(users), dim), value, np.float32)

    vectors = np.concatenate(list(encoded(world, _FIRST_ROUND + 60, range(8), same)))
    centred = vectors - vectors.mean(axis=1, keepdims=True)
    worst = max(abs(_correlation(centred[i], centred[j])) for i, j in combinations(range(8), 2))
    right = worst <= _DEVIATIONS / math.sqrt(vectors.shape[1])
    text = (
        f"The rounding and noise of 8 devices with the same update correlate at most at "
        f"{worst:.4f} ({vectors.shape[1]:,} coordinates)."
    )
    return Finding(name, bool(right), text)


def _dim(world: World) -> int:
    from pfl_lm.world import choose_payload

    return int(choose_payload(world, _FIRST_ROUND).dim)


def _sum(world: World) -> Finding:
    """Let every device send a full clip on coordinates of its own; each must count once."""
    name = "each report counts once"
    clip, count = world.protection.clip_norm, world.protection.cohort
    width = _dim(world) // count
    if width < 1:
        return Finding(name, None, "There are more reports than coordinates; not tested.")
    value = clip / math.sqrt(width)

    def blocks(users: Sequence[int], dim: int) -> np.ndarray:
        updates = np.zeros((len(users), dim), np.float32)
        for row, user in enumerate(users):
            updates[row, user * width : (user + 1) * width] = value
        return updates

    opened = probe_round(world, _FIRST_ROUND + 70, _cohort(world), blocks)
    shares = opened.total[: width * count].reshape(count, width).sum(axis=1) / (value * width)
    # Noise on one share: σ/(clip) per report; rounding adds at most half a step a coordinate.
    noise = math.sqrt(world.protection.sum_multiplier**2 + 1 / (4 * _steps(world) ** 2)) + 1e-6
    mean_off = abs(shares.mean() - 1) > _DEVIATIONS * noise / math.sqrt(count) + 1e-3
    alone = np.abs(shares - 1) > (_DEVIATIONS + 1) * noise + 1e-3
    if mean_off or alone.any():
        text = (
            f"{count} reports of a full clip count {shares.mean():.3f} on average "
            f"({int(alone.sum())} of them are wrong by themselves): reports were lost, weighted "
            "or doubled although the ledger counts them."
        )
        return Finding(name, False, text)
    power = "each by itself" if noise < 0.1 else "on average"
    return Finding(name, True, f"{count} reports of a full clip count once, {power}.")


def _steps(world: World) -> float:
    grid = world.protection.grid(_dim(world))
    return float(grid.scale * grid.clip_norm)


def _sensitivity(world: World) -> Finding:
    """Measure by how much one device can move the integer sum, over adversarial updates."""
    name = "no device moves the sum by more than the sensitivity"
    dim = _dim(world)
    bound = world.protection.grid(dim).norm_bound
    count = int(np.clip(_MOST_COORDINATES // dim, 100, _ADVERSARIES))
    # Without a policy devices add no noise, so a submitted vector is what the device moves.
    silent = replace(world, protection=replace(world.protection, policy=None))
    longest, worst = 0.0, -1
    place = 0
    for vectors in encoded(
        silent, _FIRST_ROUND + 80, range(count), hostile_updates(world.protection.clip_norm)
    ):
        norms = np.sqrt(np.einsum("kd,kd->k", vectors, vectors, dtype=np.float64))
        if norms.max() > longest:
            longest, worst = float(norms.max()), place + int(norms.argmax())
        place += len(vectors)
    right = longest <= bound * (1 + 1e-9)
    text = (
        f"Of {count} hostile devices the strongest moved the sum by {longest / bound:.4f} of what "
        "is accounted for"
    )
    text += "." if right else f" (device {worst}): its update was not clipped."
    return Finding(name, bool(right), text)


def _least_bits(world: World, quiet: Opened) -> Finding:
    """Compare the least bits of the released sum with and without an update (Mironov 2012)."""
    name = "least bits tell nothing"
    if not np.any(quiet.total):
        return Finding(name, None, "There is no noise; every bit tells.")
    scale = world.protection.grid(_dim(world)).scale

    def odd(users: Sequence[int], dim: int) -> np.ndarray:
        updates = np.zeros((len(users), dim), np.float32)
        if 0 in users:
            updates[list(users).index(0)] = np.float32(1.0 / scale)  # one grid step everywhere
        return updates

    loud = probe_round(world, _FIRST_ROUND + 90, _cohort(world), odd)
    bits = _covered_bits(world, scale)
    if bits < 1:
        text = "In this small simulation the noise is narrower than a grid step; not tested."
        return Finding(name, None, text)
    tables = np.stack([np.bincount(_bits(world, o.total, bits)) for o in (quiet, loud)])
    chance = float(stats.chi2_contingency(tables).pvalue)
    text = (
        f"The {bits} least bits of {quiet.total.size:,} released sums look alike with and without "
        f"an update of one step (p = {chance:.2g})."
    )
    return Finding(name, chance > _UNLIKELY, text)


def _covered_bits(world: World, scale: float) -> int:
    """Return how many least bits of the sum the noise makes uniform to within 1e-6, at most 3.

    Noise of σ grid steps is uniform modulo 2^b up to exp(−2π²σ²/4^b).
    """
    if world.protection.kind == "gaussian":
        return 3
    sigma = world.protection.sum_multiplier * world.protection.clip_norm * scale
    return min(3, int(math.log2(max(1.0, sigma * math.pi * math.sqrt(2 / math.log(1e6))))))


def _bits(world: World, total: np.ndarray, count: int) -> np.ndarray:
    """Return the least bits of each released number, as integers below 2^count."""
    if world.protection.kind == "gaussian":
        found = total.astype(np.float32).view(np.uint32).astype(np.int64)
    else:
        found = np.rint(total * world.protection.grid(len(total)).scale).astype(np.int64)
    return found & (2**count - 1)


def _distribution(world: World, quiet: Opened) -> Plot:
    """Plot the cumulative distribution: a grid coarser than a bin would comb a histogram."""
    stated = world.protection.sum_multiplier * world.protection.clip_norm or 1.0
    points = np.linspace(-4, 4, 81)
    below = np.searchsorted(np.sort(quiet.total / stated), points, side="right") / quiet.total.size
    return Plot(
        "Share of the noise below a value, in stated standard deviations",
        "lines",
        {
            "drawn by the running code": list(zip(points.tolist(), below.tolist(), strict=True)),
            "as stated": [(float(x), float(stats.norm.cdf(x))) for x in points],
        },
        "standard deviations",
    )
