"""Does the running code do what the formula says? Statistical tests of clip, noise and sum.

Each test states its sample size and what it would have noticed. A test is wrong about correct
code once in a million.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np
from scipy import stats

from pfl_lm.audit import noise_tests, sum_tests
from pfl_lm.audit.findings import Finding, Part, Plot
from pfl_lm.audit.probe import FIRST_ROUND, Opened, everybody_reports, places, probe_round, zeros
from pfl_lm.world import World

_ROUNDS = 4  # consecutive ones: reuse in every second or third round shows

NOT_CHECKED = (
    "Noise as real phones draw it: the code is tested here, not the installed app.",
    "Cryptography: secure aggregation is its ideal stand-in unless the scenario says otherwise.",
)


def audit_mechanism(world: World) -> Part:
    """Test the code that a run ran, with the run's own settings."""
    started, world = time.monotonic(), everybody_reports(world)
    quiet = [probe_round(world, FIRST_ROUND + i, places(world), zeros) for i in range(_ROUNDS)]
    findings = [
        noise_tests.noise(world, quiet),
        noise_tests.fewer_reports(world),
        noise_tests.vanished(world),
        noise_tests.reuse(quiet),
        noise_tests.devices(world),
        sum_tests.sum_of_all(world),
        sum_tests.division(world),
        sum_tests.sensitivity(world),
        noise_tests.least_bits(world, quiet[0]),
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
        _headline(findings),
    )


def _headline(findings: Sequence[Finding]) -> str:
    right = sum(finding.holds is True for finding in findings)
    tested = sum(finding.holds is not None for finding in findings)
    return f"{right} of {tested} tests of the code that clips, adds noise and sums were passed."


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
