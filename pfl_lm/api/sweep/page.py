"""The page of a sweep: one HTML file that needs nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pfl_lm.api.sweep.results import Combination, combinations, in_order, verdict
from pfl_lm.api.sweep.run import Sweep
from pfl_lm.files import write_atomically
from pfl_lm.numbers import percent, significant
from pfl_lm.pages import html
from pfl_lm.pages.charts import Series, legend, line_chart
from pfl_lm.report.source import read_run
from pfl_lm.run.folder import RunFolder
from pfl_lm.version import __version__

_TEMPLATE = Path(__file__).parent / "page.html"
_DRAWN = 5
_WORST = 4  # times the best perplexity: trials beyond are not drawn


def write_page(sweep: Sweep) -> Path:
    """Write ``sweep.html`` into the sweep's folder."""
    ranked = combinations(sweep)
    importance = sweep.importance or {}
    content = {
        "name": sweep.folder.resolve().name,
        "kind": "sweep" if sweep.importance is None else "search",
        "ended": len(sweep.scores),
        "trials": len(sweep.trials),
        "verdict": verdict(ranked),
        "cost": sweep.cost,
        "rows": table(ranked),
        "curves": [curve for curve in _curves(sweep, ranked) if curve["chart"]],
        "importance": [(name, share, percent(share)) for name, share in importance.items()],
        "version": __version__,
    }
    page = sweep.folder / "sweep.html"
    with write_atomically(page) as temporary:
        text = html.render(_TEMPLATE, content, "tables.css", "bars.css")
        temporary.write_text(text, encoding="utf-8")
    return page


def table(ranked: list[Combination]) -> list[tuple[str, ...]]:
    """Return settings, perplexity with its interval, recall, keystrokes, folders or the problem."""
    return [
        (
            combination.label,
            _perplexity(combination),
            percent(combination.top3) if combination.trials else "",
            percent(combination.keystrokes_saved) if combination.trials else "",
            combination.problem or ", ".join(combination.trials),
        )
        for combination in ranked
    ]


def _perplexity(combination: Combination) -> str:
    if not combination.trials:
        return ""
    shown = significant(combination.perplexity)
    width = combination.half_width
    return shown if width is None else f"{shown} ± {significant(width)}"


def _curves(sweep: Sweep, ranked: list[Combination]) -> list[dict[str, Any]]:
    """Return what to draw: how a search went on, and the losses of the best combinations."""
    best = [combination for combination in ranked[:_DRAWN] if combination.trials]
    lines = [line for place, each in enumerate(best) for line in _lines(sweep, each, place)]
    losses = _curve("Loss on the devices", "Of the best settings.", lines, "round")
    if sweep.importance is None:
        return [losses]
    history = _history(in_order(sweep))
    note = f"Of each trial with less than {_WORST} times the best, and the best so far."
    return [_curve("Perplexity", note, history, "trial"), losses]


def _curve(title: str, note: str, lines: list[Series], x_label: str) -> dict[str, Any]:
    chart = line_chart(lines, x_label=x_label, y_label=title)
    return {"title": title, "note": note, "chart": chart, "legend": legend(lines)}


def _history(tried: list[Combination]) -> list[Series]:
    """Return the trials as dots, in the order of the search, and the least so far as a line."""
    ended = [
        (float(number), each.perplexity) for number, each in enumerate(tried, 1) if each.trials
    ]
    best = min((value for _, value in ended), default=0.0)
    ended = [(number, value) for number, value in ended if value < _WORST * best]
    least = [min(value for _, value in ended[: place + 1]) for place in range(len(ended))]
    x = [number for number, _ in ended]
    dots = [gap for number in x for gap in (number, number)]
    values = [gap for _, value in ended for gap in (value, None)]
    return [Series("trial", dots, values, "s1"), Series("best so far", x, least, "s0")]


def _lines(sweep: Sweep, combination: Combination, place: int) -> list[Series]:
    """Return the losses of a combination's first run whose folder is still there, if one is."""
    folders = [RunFolder(sweep.folder / name) for name in combination.trials]
    kept = [folder for folder in folders if folder.manifest_path.is_file()]
    return [read_run(run).over_rounds(combination.label, "loss", f"s{place}") for run in kept[:1]]
