"""Plots as inline SVG: no library, no script, nothing to fetch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

from pfl_lm.audit.findings import Plot, figure

_WIDTH, _HEIGHT, _LEFT, _RIGHT = 720, 260, 60, 20
_ROW, _LABEL = 26, 250


def draw(plot: Plot) -> str:
    """Return a plot as an ``<svg>`` element; empty where there is nothing to draw."""
    series = {name: list(values) for name, values in plot.series.items() if len(values)}
    if not series:
        return ""
    return _axis(plot, series) if plot.kind == "axis" else _lines(plot, series)


def _axis(plot: Plot, series: dict[str, list[float]]) -> str:
    """One row per name, a dot at its value, all on one axis that starts at 0."""
    known = [v[0] for v in series.values() if math.isfinite(v[0])]
    high = max([*known, 1e-9]) * 1.08
    width = _WIDTH - _LABEL - 90
    parts, top = [], 10
    for row, (name, (value, *_)) in enumerate(series.items()):
        y = top + _ROW * row + _ROW / 2
        x = _LABEL + width * (min(value, high) / high)
        kind = "promise" if name in ("guaranteed", "stated") else "found"
        parts.append(
            f'<text x="{_LABEL - 12}" y="{y + 4:.1f}" text-anchor="end">{escape(name)}</text>'
            f'<line x1="{_LABEL}" x2="{x:.1f}" y1="{y:.1f}" y2="{y:.1f}" class="stem"/>'
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="6" class="{kind}"/>'
            f'<text x="{x + 12:.1f}" y="{y + 4:.1f}">{figure(value)}</text>'
        )
        if kind == "promise":
            bottom = top + _ROW * len(series)
            parts.append(
                f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{top}" y2="{bottom}" class="limit"/>'
            )
    height = top + _ROW * len(series) + 14
    return _svg(plot, height, "".join(parts))


def _lines(plot: Plot, series: dict[str, list[Sequence[float]]]) -> str:
    """Polylines of (x, y) points on common axes."""
    points = [p for values in series.values() for p in values if all(map(math.isfinite, p))]
    if not points:
        return ""
    x0, x1 = min(p[0] for p in points), max(p[0] for p in points)
    y0, y1 = min(0.0, min(p[1] for p in points)), max(p[1] for p in points) * 1.05 or 1.0
    bottom = _HEIGHT - 44

    def place(p: Sequence[float]) -> str:
        x = _LEFT + (_WIDTH - _LEFT - _RIGHT) * (p[0] - x0) / ((x1 - x0) or 1)
        return f"{x:.1f},{12 + (bottom - 12) * (1 - (p[1] - y0) / ((y1 - y0) or 1)):.1f}"

    parts = [_frame(x0, x1, y0, y1, bottom, plot.x_label)]
    for number, (name, values) in enumerate(series.items()):
        drawn = " ".join(place(p) for p in values if all(map(math.isfinite, p)))
        parts.append(f'<polyline points="{drawn}" class="line c{number}"/>')
        x = _LEFT + 12 + 230 * number
        parts.append(
            f'<line x1="{x}" x2="{x + 22}" y1="{_HEIGHT - 8}" y2="{_HEIGHT - 8}" '
            f'class="line c{number}"/><text x="{x + 28}" y="{_HEIGHT - 4}">{escape(name)}</text>'
        )
    return _svg(plot, _HEIGHT, "".join(parts))


def _frame(x0: float, x1: float, y0: float, y1: float, bottom: float, label: str) -> str:
    """Return axes with their ends labelled."""
    right = _WIDTH - _RIGHT
    return (
        f'<line x1="{_LEFT}" x2="{right}" y1="{bottom}" y2="{bottom}" class="stem"/>'
        f'<text x="{_LEFT}" y="{bottom + 16}">{x0:.3g}</text>'
        f'<text x="{right}" y="{bottom + 16}" text-anchor="end">{x1:.3g} {escape(label)}</text>'
        f'<text x="{_LEFT - 8}" y="20" text-anchor="end">{y1:.3g}</text>'
        f'<text x="{_LEFT - 8}" y="{bottom}" text-anchor="end">{y0:.3g}</text>'
    )


def _svg(plot: Plot, height: float, body: str) -> str:
    return (
        f'<svg viewBox="0 0 {_WIDTH} {height:.0f}" role="img" '
        f'aria-label="{escape(plot.title)}">{body}</svg>'
    )
