"""Did the clip norm follow the updates as promised, and did what it follows carry its noise?

Each round's clip norm is computed again from the share of short updates that the round before
released. A simulation also knows how many updates were clipped: what a released share differs by
is the noise that was drawn in the run itself.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from scipy import stats

from pfl_lm.audit.accounting.stated import StatedGuarantee
from pfl_lm.audit.artifacts import RunArtifacts
from pfl_lm.audit.findings import Finding
from pfl_lm.audit.ledger.replay import TOLERANCE, Entry

_FOLLOWS, _NOISE = "clip norm follows what was released", "shares of short updates carry noise"
_UNLIKELY = 1e-6
_FEWEST = 4  # rounds, from which the noise of the shares is judged


def clip_norms(
    guarantee: StatedGuarantee, artifacts: RunArtifacts, rounds: Sequence[Entry]
) -> list[Finding]:
    """Replay a clip norm that follows the updates; [] where it is fixed."""
    if guarantee.clipping is None:
        return []
    wrong = _wrong_weight(guarantee) or _first_wrong(guarantee, artifacts, rounds)
    text = f"{len(rounds)} clip norms follow from the shares that the rounds before released."
    follows = Finding(_FOLLOWS, not wrong, f"{wrong}." if wrong else text)
    return [follows, _noise(guarantee, artifacts, rounds)]


def _wrong_weight(guarantee: StatedGuarantee) -> str:
    """Return how the stated split of the clip norm differs from what the noise allows, or ""."""
    expected, stated = guarantee.indicator_weight, guarantee.stated_indicator_weight
    if stated is not None and math.isclose(stated, expected, rel_tol=TOLERANCE):
        return ""
    return f"Indicators of {stated} clip norms are stated, and {expected:.4g} follow from the noise"


def _first_wrong(
    guarantee: StatedGuarantee, artifacts: RunArtifacts, rounds: Sequence[Entry]
) -> str:
    """Return how the first clip norm that does not follow differs, or ""."""
    assert guarantee.clipping is not None
    clip = float(artifacts.manifest["scenario"]["clip_norm"])
    rate, side = guarantee.clipping["first_rate"], 0
    for entry in rounds:
        number, used = entry["round"], entry["clip_norm"]
        if not math.isclose(used, clip, rel_tol=TOLERANCE):
            return f"Round {number} clipped to {used:.6g}; from earlier rounds follows {clip:.6g}"
        if entry.get("released") is None:
            continue
        try:
            share, following = entry["clipping"]["share"], entry["clipping"]["next"]
        except (KeyError, TypeError):
            return f"Round {number} does not say which share of short updates it released"
        clip, rate, side = after(guarantee.clipping, (clip, rate, side), share)
        stated = [following.get(name, 0.0) for name in ("norm", "rate", "side")]
        if not np.allclose(stated, [clip, rate, side], rtol=TOLERANCE, atol=0):
            return (
                f"Round {number} released a share of {share:.4f}, from which a clip norm of "
                f"{clip:.6g} follows at a rate of {rate:.4g}, not {stated[0]:.6g} and "
                f"{stated[1]:.4g}"
            )
    return ""


def after(
    rule: Mapping[str, float], clip: tuple[float, float, int], share: float
) -> tuple[float, float, int]:
    """Return clip norm, rate and side after a round that released a share of short updates.

    Args:
        rule: the policy's clipping table.
        clip: clip norm, rate and side of the round.

    Source: Andrew et al. 2021 (arXiv:1905.03871), Equation 2; the rate halves as the share crosses
    the quantile.
    """
    norm, rate, side = clip
    short = rule["quantile"] - min(1.0, max(0.0, share))
    now = int(np.sign(-short)) or side
    if now * side < 0:
        rate = max(rule["rate"], 0.5 * rate)
    moved = norm * math.exp(rate * short)
    return min(rule["highest"], max(rule["lowest"], moved)), rate, now


def _noise(guarantee: StatedGuarantee, artifacts: RunArtifacts, rounds: Sequence[Entry]) -> Finding:
    """Hold the noise in the released shares against what is stated, two-sidedly."""
    if guarantee.stream is not None:
        text = "The noise of the shares is correlated between rounds; the mechanism part tests it."
        return Finding(_NOISE, None, text)
    pairs = [*_residuals(guarantee, artifacts, rounds)]
    if len(pairs) < _FEWEST:
        text = f"{len(pairs)} rounds tell both the share and how many updates were clipped."
        return Finding(_NOISE, None, text)
    # Indicators are rounded to the grid: that may widen the residuals and never narrows them.
    least = sum((off / narrow) ** 2 for off, narrow, _ in pairs)
    most = sum((off / wide) ** 2 for off, _, wide in pairs)
    right = (
        stats.chi2.cdf(least, len(pairs)) > _UNLIKELY
        and stats.chi2.sf(most, len(pairs)) > _UNLIKELY
    )
    ratio = math.sqrt(least / len(pairs))
    text = f"In {len(pairs)} rounds the noise in the released share was {ratio:.3f} of the stated"
    text += "." if right else ": indicators were not noised as the updates beside them."
    return Finding(_NOISE, bool(right), text)


def _residuals(
    guarantee: StatedGuarantee, artifacts: RunArtifacts, rounds: Sequence[Entry]
) -> Iterator[tuple[float, float, float]]:
    """Yield of each round (noise, its deviation, its deviation with rounding), as shares."""
    lines = {line["round"]: line for line in artifacts.rounds}
    for entry in rounds:
        line, reports = lines.get(entry["round"], {}), entry["reports"]
        clipped = line.get("clipped_share")
        if clipped is None or "clipping" not in entry or line.get("trained_devices") != reports:
            continue
        true = 0.5 + (0.5 - clipped) * reports / entry["divisor"]
        unit = 2 * guarantee.indicator_weight * entry["divisor"]  # of a clip norm, as a share
        narrow = _deviation(guarantee, entry) / unit
        steps = entry["grid"]["scale"] * entry["clip_norm"]
        rounding = math.sqrt(reports / 4) / steps / unit
        yield entry["clipping"]["share"] - true, narrow, math.hypot(narrow, rounding)


def _deviation(guarantee: StatedGuarantee, entry: Entry) -> float:
    """Return the deviation of the noise in a coordinate of a round's sum, in clip norms."""
    planned = float(entry["sum_multiplier"])
    if guarantee.at != "device":  # sized for updates that rounding lengthened
        grid = entry["grid"]
        return planned * grid["norm_bound"] / (grid["scale"] * entry["clip_norm"])
    if guarantee.excess == "removed":
        return planned * entry["noise"]["achieved"] / entry["noise"]["planned"]
    return planned * math.sqrt(entry["reports"] / entry["divisor"])
