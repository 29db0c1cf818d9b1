"""The page of a comparison: one HTML file that needs nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from markupsafe import Markup

from pfl_lm.files import write_atomically
from pfl_lm.numbers import duration, is_number, percent, significant, size, whole
from pfl_lm.pages import html
from pfl_lm.pages.charts import Series, legend, line_chart
from pfl_lm.report.comparison.compare import (
    Comparison,
    epsilon_of,
    figure_text,
    shown,
)
from pfl_lm.report.headline import rounds_opened
from pfl_lm.report.source import Run
from pfl_lm.version import __version__

_TEMPLATE = Path(__file__).parent / "page.html"
_STYLES = 5


def write_comparison(comparison: Comparison, output: Path) -> Path:
    """Write the page, whole or not at all."""
    with write_atomically(output) as temporary:
        temporary.write_text(render(comparison), encoding="utf-8")
    return output


def render(comparison: Comparison) -> str:
    """Return the page as one HTML text."""
    return html.render(_TEMPLATE, _content(comparison), "tables.css")


def cost_rows(comparison: Comparison) -> list[tuple[str, list[str]]]:
    """Return ε and what a run costs, each as (name, value of every run)."""
    rows = [
        ("ε of the policy, against the server", [epsilon_of(run) for run in comparison.runs]),
        ("rounds", [rounds_opened(run) for run in comparison.runs]),
        ("reports a round", [whole(run.manifest.scenario.cohort) for run in comparison.runs]),
        ("sent by a device, a round", [_bytes(run, "upload_bytes") for run in comparison.runs]),
        ("received by a device", [_bytes(run, "download_bytes") for run in comparison.runs]),
        ("noise in the mean, ℓ2 norm", [_mean(run, "noise_norm") for run in comparison.runs]),
        ("clipped updates", [percent(run.mean("clipped_share")) for run in comparison.runs]),
        ("time of all rounds here", [_time(run) for run in comparison.runs]),
    ]
    return [(name, values) for name, values in rows if any(values)]


def _content(comparison: Comparison) -> dict[str, Any]:
    return {
        "names": comparison.names,
        "styles": [f"s{place % _STYLES}" for place in range(len(comparison.names))],
        "users": comparison.measured.users,
        "whose": comparison.measured.whose,
        "judged": [
            {"name": judged.name, "verdicts": judged.verdicts, "rows": _rows(judged.differences)}
            for judged in comparison.judged
        ],
        "settings": comparison.settings,
        "curves": [figure for figure in _figures(comparison) if figure["chart"]],
        "costs": cost_rows(comparison),
        "notes": comparison.notes,
        "version": __version__,
    }


def _rows(differences: Any) -> list[dict[str, str]]:
    return [
        {
            "figure": d.figure.name,
            "first": figure_text(d.figure, d.first),
            "second": figure_text(d.figure, d.second),
            "difference": shown(d.figure, d.value),
            "low": shown(d.figure, d.low).removesuffix(" points"),
            "high": shown(d.figure, d.high),
        }
        for d in differences
    ]


def _figures(comparison: Comparison) -> list[dict[str, Any]]:
    pictures = (
        ("Perplexity", "On validation users while training.", "perplexity", True, True),
        ("Top-3 recall", "On validation users while training.", "top3", True, False),
        ("Loss on the devices", "Mean training loss of a round.", "loss", False, False),
        (
            "Privacy spent",
            "ε so far, against everybody who sees the models.",
            "epsilon",
            False,
            False,
        ),
    )
    return [_figure(comparison, *picture) for picture in pictures]


def _figure(
    comparison: Comparison, title: str, note: str, key: str, evaluated: bool, log: bool
) -> dict[str, Any]:
    lines: list[Series] = []
    for place, (name, run) in enumerate(zip(comparison.names, comparison.runs, strict=True)):
        line = run.over_evaluations if evaluated else run.over_rounds
        lines.append(line(name, key, f"s{place % _STYLES}"))
    share: dict[str, Any] = {"format_y": percent, "tick_y": percent} if key == "top3" else {}
    chart: Markup | None = line_chart(lines, x_label="round", y_label=title, log=log, **share)
    return {"title": title, "note": note, "chart": chart, "legend": legend(lines)}


def _bytes(run: Run, key: str) -> str:
    value = run.latest(key)
    return size(value) if is_number(value) else ""


def _mean(run: Run, key: str) -> str:
    value = run.mean(key)
    return "" if value is None else significant(value)


def _time(run: Run) -> str:
    return duration(sum(e["seconds"] for e in run.rounds if is_number(e.get("seconds"))))
