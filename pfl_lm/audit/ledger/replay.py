"""What a recorded round cost, derived from what it recorded and from nothing that it concluded."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from pfl_lm.audit.accounting.renyi import rounded_norm
from pfl_lm.audit.accounting.round_groups import RoundGroup
from pfl_lm.audit.accounting.stated import StatedGuarantee
from pfl_lm.audit.artifacts import RunArtifacts
from pfl_lm.audit.chain import Chain

_DEVIATIONS = 8
TOLERANCE = 1e-6  # relative, between figures that went through JSON

Entry = dict[str, Any]

_LEFT_OUT: Entry = {  # what an event that lacks a key is accounted for with
    "rate": 1.0,
    "min_separation": 1,
    "max_participations": None,
    "dim": 1,
    "grid_steps": 8.0,
    "reports": 1,
    "pivotal_probability": 0.0,
    "stream": None,
}


def is_complete(entry: Entry) -> bool:
    """Tell whether a round's record holds what its cost is derived from, as numbers in range."""
    numbers = [entry.get(name) for name in ("sum_multiplier", "divisor", "reports", "round")]
    numbers.append((entry.get("payload") or {}).get("dim"))
    right = (isinstance(value, int | float) and 0 <= value < math.inf for value in numbers)
    return all(right) and bool(entry["divisor"] and entry["payload"]["dim"])


def deviation(guarantee: StatedGuarantee, artifacts: RunArtifacts, entry: Entry) -> str:
    """Return how a round's record deviates, or ""."""
    event, grid, dim = entry["event"], entry["grid"], entry["payload"]["dim"]
    clip = _clip_norm(guarantee, artifacts, entry)
    if event is None:
        return "it records no event, so nothing was accounted for"
    if entry["clip_norm"] != clip:
        return f"updates were clipped to {entry['clip_norm']}, not to {clip}"
    noise = noise_multiplier(guarantee, entry)
    if not event["noise_multiplier"] <= noise * (1 + TOLERANCE):
        return (
            f"it claims a noise multiplier of {event['noise_multiplier']:.4g}, but its "
            f"{entry['reports']} reports carried {noise:.4g}"
        )
    if not noise >= guarantee.noise_multiplier * (1 - TOLERANCE):
        return (
            f"its noise was {noise:.4g} clip norms, {guarantee.noise_multiplier:.4g} were promised"
        )
    planned = guarantee.sum_multiplier(entry["divisor"])
    if not math.isclose(entry["sum_multiplier"], planned, rel_tol=TOLERANCE):
        return (
            f"it says that {entry['divisor']} reports carry noise of "
            f"{entry['sum_multiplier']:.4g} clip norms, the promise makes it {planned:.4g}"
        )
    least = fewest_reports(guarantee, entry["divisor"], invited_to(artifacts, entry))
    if entry["reports"] < least:
        return (
            f"it opened {entry['reports']} reports; with fewer than {least} it must not be opened"
        )
    if guarantee.at == "device" and dim < guarantee.min_dim:
        return f"{dim} coordinates travelled, the promise covers {guarantee.min_dim} or more"
    return (
        _event_deviation(event, expected_event(guarantee, entry))
        or _grid_deviation(guarantee, grid, guarantee.summed(dim), clip)
        or _ring_deviation(guarantee, entry)
        or _noise_deviation(guarantee, artifacts, entry)
    )


def _clip_norm(guarantee: StatedGuarantee, artifacts: RunArtifacts, entry: Entry) -> float:
    """Return what a round's updates must be clipped to; ``ledger.clipping`` replays what moves."""
    if guarantee.clipping is not None:
        return float(entry["clip_norm"])
    return float(artifacts.manifest["scenario"]["clip_norm"])


def fewest_reports(guarantee: StatedGuarantee, divisor: int, invited: int) -> int:
    """Return the public least count at the scale of a simulation of ``divisor`` reports a round.

    A small Poisson cohort varies by more than dropout tolerates: eight standard deviations of it
    are no dropout. Dropouts are counted against those invited, where the metrics tell how many.
    """
    if guarantee.at != "device":
        return 0
    least = divisor * guarantee.least_reports / guarantee.report_goal
    if guarantee.participation == "poisson" and divisor < guarantee.report_goal:
        least -= _DEVIATIONS * math.sqrt(divisor)
        least = max(least, invited * (1 - guarantee.tolerated_dropout))
    return max(2, math.ceil(least - 1e-9))


def invited_to(artifacts: RunArtifacts, entry: Entry) -> int:
    """Return how many devices the metrics say were invited to a round; 0 where they do not."""
    lines = (line for line in artifacts.rounds if line.get("round") == entry["round"])
    invited = next(lines, {}).get("invited", 0)
    return invited if isinstance(invited, int) else 0


def expected_event(guarantee: StatedGuarantee, entry: Entry) -> Entry:
    """Return the event that a round must be accounted for with, every key of it."""
    expected = {
        **_LEFT_OUT,
        "mechanism": guarantee.mechanism,
        "neighboring": guarantee.neighboring,
        "sampling": guarantee.participation,
        "noise_multiplier": noise_multiplier(guarantee, entry),
        "rate": guarantee.rate if guarantee.amplified else 1.0,
        "min_separation": guarantee.min_separation,
        "max_participations": guarantee.max_participations or None,
        "stream": guarantee.stream,
        "round": entry["round"],
    }
    if guarantee.at == "device":
        dim = guarantee.summed(entry["payload"]["dim"])
        expected |= {"grid_steps": guarantee.grid_steps, "dim": dim}
    if guarantee.mechanism == "discrete_gaussian":
        expected["reports"] = max(1, _honest_shares(guarantee, entry))
    return expected


def _event_deviation(event: Entry, expected: Entry) -> str:
    """Return how the accounted event differs from the policy and the round's record, or ""."""
    if unknown := sorted(event.keys() - expected.keys()):
        return f"its event holds {unknown[0]}, which no version of pfl-lm writes"
    if {**_LEFT_OUT, **event}["stream"] != expected["stream"]:
        return "its noise was correlated by other numbers than the promise states"
    told = {**_LEFT_OUT, **event, "noise_multiplier": expected["noise_multiplier"]}
    for name, value in expected.items():
        if told[name] != value:
            return f"it was accounted for with {name} {told[name]}, the promise says {value}"
    if not math.isclose(event["noise_multiplier"], expected["noise_multiplier"], rel_tol=TOLERANCE):
        return (
            f"it was accounted for with a noise multiplier of {event['noise_multiplier']:.4g}, and "
            f"its reports carried {expected['noise_multiplier']:.4g}"
        )
    return ""


def _grid_deviation(guarantee: StatedGuarantee, grid: Entry, dim: int, clip: float) -> str:
    """Return how the round's grid or ring differs from what the accounting assumes, or ""."""
    steps = guarantee.grid_steps * math.sqrt(dim)
    if not math.isclose(grid["scale"] * clip, steps, rel_tol=TOLERANCE):
        return f"its grid has {grid['scale'] * clip:.6g} steps to the clip, not {steps:.6g}"
    if grid["norm_bound"] > rounded_norm(steps, dim) * (1 + TOLERANCE):
        return "rounding was allowed to lengthen updates beyond what is accounted for"
    return ""


def _ring_deviation(guarantee: StatedGuarantee, entry: Entry) -> str:
    """Return whether the sum of the round's reports, with its noise, could be misread."""
    grid = entry["grid"]
    sigma = 0.0
    if guarantee.at == "device":
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


def noise_multiplier(guarantee: StatedGuarantee, entry: Entry) -> float:
    """Return the noise that a round's reports carried, at the scale of the deployment.

    ``sum_multiplier`` is what ``divisor`` simulated reports carry together; more than the promise
    makes it is not believed. In the deployment a sum of report_goal reports has
    report_goal ÷ divisor times that; only the shares of the least honest count are relied on.
    Where the excess is removed, any sum of the least count or more carries the whole, of which a
    share is honest.
    """
    counted = min(entry["sum_multiplier"], guarantee.sum_multiplier(entry["divisor"]))
    deployed = counted * guarantee.report_goal / entry["divisor"]
    if guarantee.at != "device":
        return deployed
    if guarantee.excess == "removed":
        came = entry["reports"] / entry["divisor"] * guarantee.report_goal
        short = 1.0 if guarantee.participation == "poisson" else came / guarantee.least_reports
        return deployed * math.sqrt(guarantee.honest_share * min(1.0, short))
    share = deployed / math.sqrt(guarantee.report_goal)
    return share * math.sqrt(_honest_shares(guarantee, entry))


def _honest_shares(guarantee: StatedGuarantee, entry: Entry) -> int:
    """Return the shares of noise that are relied on in a round's sum, in the deployment."""
    if guarantee.participation == "poisson" or guarantee.excess == "removed":
        return guarantee.honest_reports
    came = guarantee.report_goal * min(entry["reports"], entry["divisor"]) // entry["divisor"]
    return math.floor(came * guarantee.honest_fraction)


def _noise_deviation(guarantee: StatedGuarantee, artifacts: RunArtifacts, entry: Entry) -> str:
    """Return how the noise that a round says it had differs from that of its reports, or ""."""
    recorded = entry.get("noise")
    if (
        recorded is None
    ):  # of a run that did not record it yet; what follows from its reports counts
        return ""
    planned = guarantee.noise_multiplier
    if not math.isclose(recorded["planned"], planned, rel_tol=TOLERANCE):
        return f"it planned noise of {recorded['planned']:.4g}, not {planned:.4g}"
    if guarantee.excess == "removed":
        return _removed_deviation(guarantee, artifacts, entry)
    expected = planned
    if guarantee.at == "device":
        came = (
            entry["reports"] / entry["divisor"] * guarantee.report_goal * guarantee.honest_fraction
        )
        expected *= math.sqrt(came / guarantee.honest_reports)
    if math.isclose(recorded["achieved"], expected, rel_tol=TOLERANCE):
        return ""
    return (
        f"it says that its sum carries noise of {recorded['achieved']:.4g}, but that of its "
        f"{entry['reports']} reports is {expected:.4g}"
    )


def _removed_deviation(guarantee: StatedGuarantee, artifacts: RunArtifacts, entry: Entry) -> str:
    """Return how the noise that stayed differs from the plan, where the excess is removed, or "".

    A component covers several dropouts, of which all but one may not have happened.
    """
    achieved, planned, reports = (
        entry["noise"]["achieved"],
        guarantee.noise_multiplier,
        entry["reports"],
    )
    if not achieved >= planned * (1 - TOLERANCE):
        return f"its noise fell short, at {achieved:.4g}"
    invited = max(entry["divisor"], reports, invited_to(artifacts, entry))
    fewest = max(1, reports - math.ceil(invited / guarantee.levels))
    most = planned * math.sqrt(max(1, reports) / fewest)
    if achieved <= most * (1 + TOLERANCE):
        return ""
    return f"it says that noise of {achieved:.4g} stayed; more than {most:.4g} is removed"


def most_of_one_user(guarantee: StatedGuarantee, rounds: Sequence[Entry]) -> int:
    """Return in how many rounds of different numbers one user may be; of a sampling, in all."""
    if guarantee.participation != "rotation":
        return len(rounds)
    most, next_free = 0, -math.inf
    for number in sorted({entry["round"] for entry in rounds}):
        if number >= next_free:
            most, next_free = most + 1, number + guarantee.min_separation
    return min(most, guarantee.max_participations or most)


def round_groups_of(guarantee: StatedGuarantee, rounds: Sequence[Entry]) -> list[RoundGroup]:
    """Group recorded rounds; of a rotation, the least noisy ones that one user may be in.

    Where payloads differ, those of a rotation are counted as the smallest, which costs most.
    """
    counted = sorted(
        (noise_multiplier(guarantee, entry), guarantee.summed(entry["payload"]["dim"]))
        for entry in rounds
    )
    if guarantee.stream is not None:  # some rounds cost no more than all, at the least noise
        return [guarantee.round_group(noise_multiplier=counted[0][0])] if counted else []
    if guarantee.participation == "rotation":
        repeated = len(rounds) - len({entry["round"] for entry in rounds})
        most = repeated + most_of_one_user(guarantee, rounds)
        least = min((dim for _, dim in counted), default=1)
        counted = [(noise, least) for noise, _ in counted]
        counted = counted[: min(most, guarantee.max_participations or most)]
    grouped: dict[tuple[float, int], int] = {}
    for key in counted:
        grouped[key] = grouped.get(key, 0) + 1
    on_device = guarantee.at == "device"
    return [
        guarantee.round_group(count, noise_multiplier=noise, dim=dim if on_device else 1)
        for (noise, dim), count in grouped.items()
    ]


def replayed_groups(guarantee: StatedGuarantee | None, chain: Chain) -> list[RoundGroup]:
    """Group the rounds of a ledger; [] where it holds none, or records that lack figures."""
    rounds = [entry for entry in chain.entries if entry.get("kind") == "round"]
    if guarantee is None or not all(is_complete(entry) for entry in rounds):
        return []
    return round_groups_of(guarantee, rounds)
