"""The chapter on phones: how long rounds take, who is lost, who takes part, who never does."""

from __future__ import annotations

import math
from typing import Any

from pfl_lm.numbers import duration, is_number, percent, significant, size, whole
from pfl_lm.pages.charts import Series, legend, line_chart
from pfl_lm.report.source import FEDERATED, Run

_STYLES = ("s0", "s1", "s2", "s3", "s4")
_POINTS = 60  # a line over thousands of rounds is drawn by the means of so many stretches
_LATE = "after the goal"  # a phone that came to nothing, and is not lost


def fleet_facts(run: Run) -> tuple[tuple[str, str], ...]:
    """Return what a person wants to know of the phones, as (name, value)."""
    rounds = _rounds(run)
    if not rounds:
        return ()
    first, last = rounds[0], rounds[-1]
    days = (last["opened_hours"] + last["minutes"] / 60 - first["opened_hours"]) / 24
    left_out = run.manifest.fleet.left_out if run.manifest.fleet else ()
    facts = [
        ("rounds a day", significant(len(rounds) / days) if days > 0 else ""),
        ("simulated time", f"{days:.1f} days"),
        ("a round, median", duration(60 * _median(rounds, "minutes"))),
        ("waiting for free phones", percent(_share_of_time(rounds, days))),
        ("spent by a phone, a report", f"{_mean(rounds, 'joules_per_report'):.1f} J"),
        ("moved, a report", size(_mean(rounds, "bytes_per_report"))),
        ("memory at the peak of training", size(last["peak_memory_bytes"])),
        ("phones left out for memory", ", ".join(left_out) or "none"),
        ("lost of the invited", percent(_lost(rounds), 1)),
        ("came after the goal", percent(_late(rounds), 1)),
        ("to within 5% of the last perplexity", _time_to_quality(run)),
        *_taking_part(run, rounds),
        *_quality(run),
    ]
    return tuple((name, value) for name, value in facts if value)


def fleet_charts(run: Run) -> list[tuple[str, str, Any, Any]]:
    """Return (title, note, chart, legend) of each picture."""
    rounds = _rounds(run)
    if not rounds:
        return []
    minutes = [entry["minutes"] for entry in rounds]
    waited = [entry["waited_minutes"] for entry in rounds]
    lost = {
        name: [entry["lost"].get(name, 0) / _invited(entry) for entry in rounds]
        for name in rounds[0]["lost"]
        if name != _LATE
    }
    away = {
        name: [entry["rejected"].get(name, 0) / entry["checked_in"] for entry in rounds]
        for name in rounds[0]["rejected"]
    }
    taking = {
        name: [
            entry["reports_by_profile"].get(name, 0) / max(1, _reports(entry)) for entry in rounds
        ]
        for name in rounds[0]["reports_by_profile"]
    }
    learning = [
        (_hours_after(run, entry["round"]), entry["perplexity"])
        for entry in run.evaluations
        if is_number(entry.get("perplexity"))
    ]
    pictures = [
        ("Time", "Minutes of a round, and waited before it until enough phones were free.",
         _lines({"a round": minutes, "waited": waited}), "minutes"),
        ("Lost phones", "Share of the invited phones that never reported, by where they were lost.",
         _lines(lost), "share"),
        ("Rejected", "Share of the phones that checked in and were not invited, by reason.",
         _lines(away), "share"),
        ("Who takes part", "Share of the reports, by class of phone.", _lines(taking), "share"),
    ]  # fmt: skip
    drawn = [
        (title, note, line_chart(lines, x_label="round", y_label=label, zero=True), legend(lines))
        for title, note, lines, label in pictures
    ]
    hours, perplexities = [x for x, _ in learning], [y for _, y in learning]
    over_time = [Series(FEDERATED, hours, perplexities, _STYLES[0])]
    labels: dict[str, Any] = {"x_label": "simulated hours", "y_label": "perplexity"}
    note = "Perplexity on validation users, by the clock that phones go by."
    return [("Quality over time", note, line_chart(over_time, log=True, **labels), None), *drawn]


def _lines(named: dict[str, list[float]]) -> list[Series]:
    """Return a line for each name that is anything but zero, thinned to means of stretches."""
    drawn = [(name, values) for name, values in named.items() if any(values)]
    return [
        Series(name, *_thinned(values), _STYLES[place % len(_STYLES)])
        for place, (name, values) in enumerate(drawn[: len(_STYLES)])
    ]


def _thinned(values: list[float]) -> tuple[list[float], list[float | None]]:
    width = max(1, math.ceil(len(values) / _POINTS))
    starts = range(0, len(values), width)
    means = [math.fsum(values[s : s + width]) / len(values[s : s + width]) for s in starts]
    return [s + (width + 1) / 2 for s in starts], list(means)


def _taking_part(run: Run, rounds: list[dict[str, Any]]) -> list[tuple[str, str]]:
    """Say how many of the reports come from each class, beside its share of the phones."""
    total = sum(_reports(entry) for entry in rounds)
    shares = {row["name"]: row.get("share") for row in run.final.get("profiles", [])}
    return [
        (
            f"reports from {name} ({percent(shares.get(name), 0)} of the phones)",
            percent(sum(entry["reports_by_profile"].get(name, 0) for entry in rounds) / total, 0),
        )
        for name in rounds[0]["reports_by_profile"]
        if total and is_number(shares.get(name))
    ]


def _quality(run: Run) -> list[tuple[str, str]]:
    """Say how good the model is for the users of each class."""
    facts = []
    for row in run.final.get("profiles", []):
        if is_number(row.get("perplexity")):
            part = "takes part" if row.get("able") else "never takes part"
            share = percent(row.get("share"), 0)
            facts.append(
                (
                    f"perplexity, {row['name']} ({share}, {part})",
                    f"{significant(row['perplexity'])} on {whole(row['users'])} users",
                )
            )
    overall = next((r for r in run.rows if r.get("name") == FEDERATED), {})
    if facts and is_number(overall.get("perplexity")):
        facts.append(("perplexity, everybody", significant(overall["perplexity"])))
    return facts


def _hours_after(run: Run, rounds: int) -> float:
    """Return the simulated hours after which so many rounds were over."""
    over = [entry["fleet"] for entry in run.rounds[:rounds] if "fleet" in entry]
    return over[-1]["opened_hours"] + over[-1]["minutes"] / 60 if over else 0.0


def _time_to_quality(run: Run) -> str:
    """Say when validation perplexity first came within a twentieth of its last value."""
    known = [e for e in run.evaluations if is_number(e.get("perplexity"))]
    if len(known) < 2:
        return ""
    reached = next(e for e in known if e["perplexity"] <= 1.05 * known[-1]["perplexity"])
    return f"{_hours_after(run, reached['round']):.1f} hours ({reached['round']} rounds)"


def _rounds(run: Run) -> list[dict[str, Any]]:
    return [entry["fleet"] for entry in run.rounds if isinstance(entry.get("fleet"), dict)]


def _reports(entry: dict[str, Any]) -> int:
    return sum(entry["reports_by_profile"].values())


def _invited(entry: dict[str, Any]) -> int:
    return max(1, _reports(entry) + sum(entry["lost"].values()))


def _lost(rounds: list[dict[str, Any]]) -> float:
    gone = sum(sum(e["lost"].values()) - e["lost"].get(_LATE, 0) for e in rounds)
    return gone / sum(_invited(entry) for entry in rounds)


def _late(rounds: list[dict[str, Any]]) -> float:
    late = sum(entry["lost"].get(_LATE, 0) for entry in rounds)
    return late / sum(_invited(entry) for entry in rounds)


def _mean(rounds: list[dict[str, Any]], key: str) -> float:
    return math.fsum(entry[key] for entry in rounds) / len(rounds)


def _median(rounds: list[dict[str, Any]], key: str) -> float:
    values = sorted(entry[key] for entry in rounds)
    return float(values[len(values) // 2])


def _share_of_time(rounds: list[dict[str, Any]], days: float) -> float:
    waited = math.fsum(entry["waited_minutes"] for entry in rounds) / (24 * 60)
    return waited / days if days > 0 else 0.0
