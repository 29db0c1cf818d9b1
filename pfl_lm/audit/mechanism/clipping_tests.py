"""Tests of adaptive clipping: indicators count short updates with noise, and move the clip norm."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict

import numpy as np
from scipy import stats

from pfl_lm.audit.findings import Finding
from pfl_lm.audit.ledger.clipping import after
from pfl_lm.audit.mechanism.harness import (
    Opened,
    lengthened,
    places,
    probe_round,
    probed_round,
)
from pfl_lm.run.context import RunContext

_ROUNDS = 20
_UNLIKELY = 1e-6
_SHORT, _LONG = 0.5, 3.0  # of the clip norm
_EXACT = 1e-6  # relative, between figures that went through float32


def clipping_findings(context: RunContext) -> list[Finding]:
    """Test rounds of which half the devices send short updates; [] where the clip norm is fixed."""
    if context.privacy.clipping is None:
        return []
    probed = [_half_short(context, probed_round(context)) for _ in range(_ROUNDS)]
    return [indicators(context, probed), follows(context, probed)]


def _half_short(context: RunContext, number: int) -> Opened:
    clip = context.privacy.clip_norm

    def updates(users: Sequence[int], dim: int) -> np.ndarray:
        rows = np.zeros((len(users), dim), np.float32)
        rows[:, 0] = [clip * (_LONG if user % 2 else _SHORT) for user in users]
        return rows

    return probe_round(context, number, places(context), updates)


def indicators(context: RunContext, probed: Sequence[Opened]) -> Finding:
    """Hold the released shares against the true one, and their noise against the stated."""
    name, privacy = "shares of short updates are noised", context.privacy
    short = len([user for user in places(context) if user % 2 == 0])
    true = 0.5 + (short - privacy.cohort / 2) / privacy.cohort
    off = np.array([opened.recorded["clipping"]["share"] for opened in probed]) - true
    unit = 2 * privacy.indicator_weight * privacy.cohort  # a share of 1, in clip norms of the sum
    grid = privacy.grid(probed[0].payload.dim)
    stated = privacy.sum_multiplier
    if privacy.mechanism.place == "server":
        stated *= lengthened(context, int(probed[0].recorded["round"]))
    rounding = math.sqrt(privacy.cohort / 4) / (grid.scale * grid.clip_norm)
    narrow, wide = stated / unit, math.hypot(stated, rounding) / unit
    least, most = float((off**2).sum()) / narrow**2, float((off**2).sum()) / wide**2
    right = (
        stats.chi2.cdf(least, len(off)) > _UNLIKELY and stats.chi2.sf(most, len(off)) > _UNLIKELY
    )
    text = (
        f"Where {short} of {privacy.cohort} updates are short, {len(off)} rounds told shares that "
        f"are {math.sqrt(least / len(off)):.3f} of the stated noise of {narrow:.3f} off {true:.3f}"
    )
    text += "." if right else ": indicators are wrong, or not noised like the updates."
    return Finding(name, bool(right), text)


def follows(context: RunContext, probed: Sequence[Opened]) -> Finding:
    """Compute each round's next clip norm again, by the auditor's own arithmetic."""
    name, rule = "clip norm follows the quantile", context.privacy.clipping
    assert rule is not None
    for opened in probed:
        told, clip = opened.recorded["clipping"], opened.recorded["clip_norm"]
        expected, *_ = after(asdict(rule), (clip, rule.first_rate, 0), told["share"])
        if not math.isclose(told["next"]["norm"], expected, rel_tol=_EXACT):
            text = (
                f"After a share of {told['share']:.4f} at {clip:.6g} the next clip norm is "
                f"{told['next']['norm']:.6g}, not {expected:.6g}."
            )
            return Finding(name, False, text)
    return Finding(name, True, f"{len(probed)} clip norms follow from the shares released.")
