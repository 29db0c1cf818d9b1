"""What a recorded round cost, derived from what it recorded and from nothing that it concluded."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from pfl_lm.audit.evidence import Evidence
from pfl_lm.audit.phases import Phase
from pfl_lm.audit.promise import Promise
from pfl_lm.audit.renyi import rounded_norm

_DEVIATIONS = 8
TOLERANCE = 1e-6  # relative, between figures that went through JSON

Entry = dict[str, Any]


def is_complete(entry: Entry) -> bool:
    """Tell whether a round's record holds what its cost is derived from, as positive numbers."""
    numbers = [entry.get(name) for name in ("sum_multiplier", "divisor", "reports", "round")]
    numbers.append((entry.get("payload") or {}).get("dim"))
    return all(isinstance(value, int | float) and value >= 0 for value in numbers) and bool(
        entry["divisor"] and entry["payload"]["dim"]
    )


def deviation(promise: Promise, evidence: Evidence, entry: Entry) -> str:
    """Return how a round's record deviates, or ""."""
    event, grid, dim = entry["event"], entry["grid"], entry["payload"]["dim"]
    clip = evidence.manifest["scenario"]["clip_norm"]
    if event is None:
        return "it records no event, so nothing was accounted for"
    if entry["clip_norm"] != clip:
        return f"updates were clipped to {entry['clip_norm']}, not to {clip}"
    noise = noise_multiplier(promise, entry)
    if event["noise_multiplier"] > noise * (1 + TOLERANCE):
        return (
            f"it claims a noise multiplier of {event['noise_multiplier']:.4g}, but its "
            f"{entry['reports']} reports carried {noise:.4g}"
        )
    if noise < promise.noise_multiplier * (1 - TOLERANCE):
        return f"its noise was {noise:.4g} clip norms, {promise.noise_multiplier:.4g} were promised"
    if entry["reports"] < (least := fewest_reports(promise, entry["divisor"])):
        return (
            f"it opened {entry['reports']} reports; with fewer than {least} it must not be opened"
        )
    if promise.at == "device" and dim < promise.min_dim:
        return f"{dim} coordinates travelled, the promise covers {promise.min_dim} or more"
    return (
        _event_deviation(promise, event, dim)
        or _grid_deviation(promise, grid, dim, clip)
        or _ring_deviation(promise, entry)
        or _noise_deviation(promise, entry)
    )


def fewest_reports(promise: Promise, divisor: int) -> int:
    """Return the public least count at the scale of a simulation of ``divisor`` reports a round.

    A small Poisson cohort varies by more than dropout tolerates: eight standard deviations of it
    are no dropout.
    """
    if promise.at != "device":
        return 0
    least = divisor * promise.least_reports / promise.report_goal
    if promise.participation == "poisson" and divisor < promise.report_goal:
        least -= _DEVIATIONS * math.sqrt(divisor)
    return max(2, math.ceil(least - 1e-9))


def _event_deviation(promise: Promise, event: Entry, dim: int) -> str:
    """Return how the accounted event differs from the policy, or ""."""
    expected = {
        "mechanism": promise.mechanism,
        "neighboring": promise.neighboring,
        "sampling": promise.participation,
        "min_separation": promise.min_separation,
        "rate": 1.0 if promise.participation == "rotation" else promise.rate,
    }
    if promise.at == "device":
        expected |= {"grid_steps": promise.grid_steps, "dim": dim}
    for name, value in expected.items():
        if event[name] != value:
            return f"it was accounted for with {name} {event[name]}, the promise says {value}"
    return ""


def _grid_deviation(promise: Promise, grid: Entry, dim: int, clip: float) -> str:
    """Return how the round's grid or ring differs from what the accounting assumes, or ""."""
    steps = promise.grid_steps * math.sqrt(dim)
    if not math.isclose(grid["scale"] * clip, steps, rel_tol=TOLERANCE):
        return f"its grid has {grid['scale'] * clip:.6g} steps to the clip, not {steps:.6g}"
    if grid["norm_bound"] > rounded_norm(steps, dim) * (1 + TOLERANCE):
        return "rounding was allowed to lengthen updates beyond what is accounted for"
    return ""


def _ring_deviation(promise: Promise, entry: Entry) -> str:
    """Return whether the sum of the round's reports, with its noise, could be misread."""
    grid = entry["grid"]
    sigma = 0.0
    if promise.at == "device":
        sigma = entry["sum_multiplier"] * entry["clip_norm"] * grid["scale"]
    reports = max(1.0, entry["reports"] / entry["divisor"])
    signal, sigma = entry["reports"] * grid["norm_bound"], sigma * math.sqrt(reports)
    if grid.get("rotated"):
        # A random rotation spreads the sum over a power of two of coordinates.
        sigma = math.hypot(
            sigma, signal / 2 ** (math.floor(math.log2(entry["payload"]["dim"])) / 2)
        )
        signal = entry["reports"]  # of rounding, which comes after it
    largest = signal + _DEVIATIONS * sigma
    if largest < 2 ** (grid["bits"] - 1):
        return ""
    return f"its ring of {grid['bits']} bits may wrap at {entry['reports']} reports"


def noise_multiplier(promise: Promise, entry: Entry) -> float:
    """Return the noise that a round's reports carried, at the scale of the deployment.

    ``sum_multiplier`` is what ``divisor`` simulated reports carry together. In the deployment a
    sum of report_goal reports has report_goal ÷ divisor times that; only the shares of the least
    honest count are relied on. Where the excess is removed, any sum of the least count or more
    carries the whole, of which a share is honest.
    """
    deployed = entry["sum_multiplier"] * promise.report_goal / entry["divisor"]
    if promise.at != "device":
        return deployed
    if promise.excess == "removed":
        came = entry["reports"] / entry["divisor"] * promise.report_goal
        short = 1.0 if promise.participation == "poisson" else came / promise.least_reports
        return deployed * math.sqrt(promise.honest_share * min(1.0, short))
    share = deployed / math.sqrt(promise.report_goal)
    honest = promise.honest_reports
    if promise.participation != "poisson":
        came = promise.report_goal * min(entry["reports"], entry["divisor"]) // entry["divisor"]
        honest = math.floor(came * promise.honest_fraction)
    return share * math.sqrt(honest)


def _noise_deviation(promise: Promise, entry: Entry) -> str:
    """Return how the noise that a round says it had differs from that of its reports, or ""."""
    told = entry.get("noise")
    if told is None:  # of a run that did not record it yet; what follows from its reports counts
        return ""
    planned = promise.noise_multiplier
    if not math.isclose(told["planned"], planned, rel_tol=TOLERANCE):
        return f"it planned noise of {told['planned']:.4g}, not {planned:.4g}"
    if promise.excess == "removed":
        short = told["achieved"] < planned * (1 - TOLERANCE)
        return f"its noise fell short, at {told['achieved']:.4g}" if short else ""
    found = planned
    if promise.at == "device":
        came = entry["reports"] / entry["divisor"] * promise.report_goal * promise.honest_fraction
        found *= math.sqrt(came / promise.honest_reports)
    if math.isclose(told["achieved"], found, rel_tol=TOLERANCE):
        return ""
    return (
        f"it says that its sum carries noise of {told['achieved']:.4g}, but that of its "
        f"{entry['reports']} reports is {found:.4g}"
    )


def phases_of(promise: Promise, rounds: Sequence[Entry]) -> list[Phase]:
    """Turn records into phases; of a rotation, the least noisy rounds one user may be in."""
    counted = sorted(
        (noise_multiplier(promise, entry), entry["payload"]["dim"]) for entry in rounds
    )
    if promise.participation == "rotation":
        numbers = sorted({entry["round"] for entry in rounds})
        most, next_free = len(rounds) - len(numbers), -math.inf
        for number in numbers:
            if number >= next_free:
                most, next_free = most + 1, number + promise.min_separation
        counted = counted[:most]
    grouped: dict[tuple[float, int], int] = {}
    for key in counted:
        grouped[key] = grouped.get(key, 0) + 1
    on_device = promise.at == "device"
    return [
        promise.phase(count, noise_multiplier=noise, dim=dim if on_device else 1)
        for (noise, dim), count in grouped.items()
    ]
