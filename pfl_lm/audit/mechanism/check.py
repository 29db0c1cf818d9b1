"""Does the running code do what the formula says? Statistical tests of clip, noise and sum.

Each test states its sample size and what it would have noticed. A test is wrong about correct
code once in a million.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Sequence

import numpy as np
from scipy import stats

from pfl_lm.audit.artifacts import RunArtifacts
from pfl_lm.audit.findings import Finding, Part, Plot
from pfl_lm.audit.mechanism import noise_tests, sum_tests
from pfl_lm.audit.mechanism.clipping_tests import clipping_findings
from pfl_lm.audit.mechanism.harness import (
    Opened,
    everybody_reports,
    most_probed,
    of_silent_devices,
    places,
    probe_round,
    probed_round,
    zeros,
)
from pfl_lm.audit.mechanism.records import record_findings
from pfl_lm.audit.mechanism.stream_tests import stream_findings
from pfl_lm.run.context import RunContext

_ROUNDS = 4  # consecutive ones: reuse in every second or third round shows

NOT_CHECKED = (
    "Noise as real phones draw it: the code is tested here, not the installed app.",
    "Noise as the run drew it: it leaves no trace, and it is today's code that is tested.",
    "Noise of a stream that an attacker can continue, and that never repeats: nobody can tell.",
    "Cryptography: secure aggregation is its ideal stand-in unless the scenario says otherwise.",
)


def audit_mechanism(context: RunContext, artifacts: RunArtifacts | None = None) -> Part:
    """Test the code that a run ran, with the run's own settings.

    Args:
        artifacts: what the run wrote, to be held against its public choices; None: only the code
            is tested.
    """
    started = time.monotonic()
    recorded = [] if artifacts is None else record_findings(context, artifacts)
    context = everybody_reports(context)
    count, silent = most_probed(context, _ROUNDS), of_silent_devices(context)
    first = probed_round(context, count)
    quiet = [probe_round(silent, first + i, places(silent), zeros) for i in range(count)]
    findings = [
        noise_tests.noise(silent, quiet),
        noise_tests.fewer_reports(silent),
        noise_tests.vanished(silent),
        noise_tests.reuse(quiet),
        noise_tests.repeated(silent, secrets.choice(quiet)),
        noise_tests.devices(context),
        sum_tests.sum_of_all(context),
        sum_tests.division(context),
        sum_tests.sensitivity(context),
        noise_tests.least_bits(silent, quiet[0]),
        *clipping_findings(context),
        *stream_findings(context, None if artifacts is None else artifacts.guarantee.get("stream")),
        *recorded,
    ]
    samples = sum(opened.total.size for opened in quiet)
    return Part(
        "mechanism",
        "Does the running code do what the formula says?",
        (
            f"{count} rounds of silent devices: {samples:,} draws of the noise on the sum.",
            "The run's own rounds, drawn at random as the audit began; one of them twice.",
            "A round of known updates: each counts once, none counts more.",
            "Devices that send nothing, too much, NaN, infinity, or all on one coordinate.",
            "Under rotation the rounds of every user; of correlated noise the covariance.",
            "Payloads and a rotation's cohorts, drawn again from the scenario's seed.",
            "Round 0, repeated from that seed; the model against the checkpoints.",
            "The manifest, stated again by the code that is installed here.",
            "The model and its start, measured again on the test users of the scenario.",
        ),
        findings,
        NOT_CHECKED,
        (),
        [_distribution(silent, quiet[0])],
        {"noise_samples": samples, "sum_multiplier": context.privacy.sum_multiplier},
        time.monotonic() - started,
        _headline(findings),
    )


def _headline(findings: Sequence[Finding]) -> str:
    right = sum(finding.holds is True for finding in findings)
    tested = sum(finding.holds is not None for finding in findings)
    return f"{right} of {tested} tests of the code that clips, adds noise and sums were passed."


def _distribution(context: RunContext, quiet: Opened) -> Plot:
    """Plot the cumulative distribution: a grid coarser than a bin would comb a histogram."""
    stated = context.privacy.sum_multiplier * quiet.unit or 1.0
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
