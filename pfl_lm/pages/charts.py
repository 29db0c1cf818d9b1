"""Small line charts as inline SVG: no library, no network, readable in light, dark and print.

Colours are CSS classes (``s0``, ``s1``, …), so the page's theme decides them. A chart carries its
values as JSON for the page's cross-hair; without scripts it is complete all the same.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from markupsafe import Markup, escape

from pfl_lm.numbers import is_number, plain, significant

_WIDTH, _HEIGHT = 460, 250
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 12, 12, 40
_DECIMALS = 6  # that a mark at an axis has; smaller numbers are written as powers
_MARKS = 8  # at a logarithmic axis
_POINTS = 240  # more than a screen shows; longer series are averaged in bins


@dataclass(frozen=True)
class Series:
    """One line: values over x, None where there is none.

    Attributes:
        style: CSS classes, such as ``s0``, ``s1 faint`` or ``s2 dashed``.
        named: part of the legend and the cross-hair.
    """

    name: str
    x: Sequence[float]
    y: Sequence[float | None]
    style: str = "s0"
    named: bool = True


@dataclass(frozen=True)
class Level:
    """A horizontal line across the chart, labelled."""

    name: str
    y: float
    style: str = "s2"


@dataclass(frozen=True)
class Scale:
    """From values to the picture, straight or logarithmic."""

    low: float
    high: float
    begin: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        low, high, value = map(self._warp, (self.low, self.high, value))
        return self.begin + (value - low) / ((high - low) or 1) * (self.end - self.begin)

    def _warp(self, value: float) -> float:
        return math.log10(max(value, 1e-300)) if self.log else value


def line_chart(
    series: Sequence[Series],
    *,
    x_label: str,
    y_label: str,
    format_x: Callable[[float], str] = plain,
    format_y: Callable[[float], str] = significant,
    tick_y: Callable[[float], str] | None = None,
    levels: Sequence[Level] = (),
    zero: bool = False,
    log: bool = False,
) -> Markup | None:
    """Draw lines over a common x.

    Args:
        format_y, tick_y: how values are written in the cross-hair and at the axis; at the axis by
            default with as many decimals as tell its marks apart.
        zero: the y axis begins at zero.
        log: logarithmic y axis; values that are not positive have no place there.

    Returns:
        The SVG, or None where there is not one point to draw.
    """
    drawn = [thinned(_positive(line) if log else line) for line in series]
    xs = [x for line in drawn for x, y in zip(line.x, line.y, strict=True) if is_number(y)]
    ys = [y for line in drawn for y in line.y if y is not None and is_number(y)]
    if not ys:
        return None
    if log:
        levels = [level for level in levels if level.y > 0]
    y_low, y_high, y_ticks = _span([*ys, *(level.y for level in levels)], zero, log)
    x_scale = Scale(min(xs), max(xs), _LEFT, _WIDTH - _RIGHT)
    y_scale = Scale(y_low, y_high, _HEIGHT - _BOTTOM, _TOP, log)
    x_ticks = ticks(x_scale.low, x_scale.high)
    if all(float(x).is_integer() for x in xs):  # rounds: there is no round 1.5
        x_ticks = [tick for tick in x_ticks if tick.is_integer()]
    parts = [
        _axes(
            x_scale, y_scale, x_ticks, y_ticks, format_x, tick_y or axis_format(y_ticks), x_label
        ),
        *(_level(level, y_scale) for level in levels),
        *(_line(line, x_scale, y_scale) for line in drawn),
    ]
    data = _hover_data(drawn, x_scale, y_scale, format_x, format_y, x_label)
    return Markup(
        '<svg class="chart" viewBox="0 0 {w} {h}" role="img" aria-label="{label}" '
        'data-chart="{data}">{body}<g class="hover"></g></svg>'
    ).format(w=_WIDTH, h=_HEIGHT, label=y_label, data=data, body=Markup("").join(parts))


def thinned(line: Series, points: int = _POINTS) -> Series:
    """Average a long series in bins of equal length."""
    if len(line.x) <= points:
        return line
    cuts = [round(i * len(line.x) / points) for i in range(points + 1)]
    x: list[float] = []
    y: list[float | None] = []
    for begin, end in pairwise(cuts):
        values = [value for value in line.y[begin:end] if value is not None and is_number(value)]
        x.append(line.x[end - 1])
        y.append(sum(values) / len(values) if values else None)
    return Series(line.name, x, y, line.style, line.named)


def smoothed(y: Sequence[float | None], reach: int) -> list[float | None]:
    """Average each value with up to ``reach`` neighbours on either side."""
    out: list[float | None] = []
    for place in range(len(y)):
        beside = y[max(0, place - reach) : place + reach + 1]
        near = [value for value in beside if value is not None and is_number(value)]
        out.append(sum(near) / len(near) if near else None)
    return out


def _positive(line: Series) -> Series:
    """Leave out what a logarithmic axis has no place for."""
    return replace(line, y=[y if y is not None and y > 0 else None for y in line.y])


def axis_format(marks: Sequence[float]) -> Callable[[float], str]:
    """Return how the marks of an axis are written: 147.5 beside 150.0, but 150 beside 160."""
    steps = [high - low for low, high in pairwise(marks)]
    if not steps or max(steps) > 1.5 * min(steps):  # powers: each has digits of its own
        return plain
    digits = range(_DECIMALS + 1)
    decimals = next((d for d in digits if all(_has(mark, d) for mark in marks)), 0)
    return lambda value: plain(value) if decimals == 0 else f"{value:,.{decimals}f}"


def _has(value: float, decimals: int) -> bool:
    """Whether a number needs no more decimals."""
    return abs(value - round(value, decimals)) <= 1e-9 * max(1e-12, abs(value))


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Choose about ``count`` round values that cover [low, high]."""
    rough = (high - low) / count or 1.0
    size = 10.0 ** math.floor(math.log10(rough))
    step = next(size * factor for factor in (1, 2, 2.5, 5, 10) if size * factor >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(i * step, 12) for i in range(first, last + 1)]


def _span(values: Sequence[float], zero: bool, log: bool) -> tuple[float, float, list[float]]:
    """Return the ends of the y axis and its ticks."""
    low, high = min(values), max(values)
    if log and 0 < low < high < 4 * low:  # too few powers lie between: round steps instead
        marks = ticks(low, high)
        return marks[0], marks[-1], marks
    if log and low > 0:
        powers = range(math.floor(math.log10(low)) - 1, min(math.ceil(math.log10(high)) + 2, 308))
        candidates = [10.0**e * f for e in powers for f in (1, 2, 5)]
        below = max((c for c in candidates if c <= low), default=low)
        above = min((c for c in candidates if c >= high), default=high)
        if below == above:
            above = below * 10
        inside = [c for c in candidates if below <= c <= above]
        return below, above, _fewer(inside)
    low = min(low, 0.0) if zero else low
    if low == high:
        low, high = (0.0, high or 1.0) if low >= 0 else (low, 0.0)
    marks = ticks(low, high)
    return marks[0], marks[-1], marks


def _fewer(marks: list[float]) -> list[float]:
    """Leave out marks of a logarithmic axis: first those that are no powers of ten."""
    if len(marks) <= _MARKS:
        return marks
    powers = [mark for mark in marks if f"{mark:e}".startswith("1.000000e")]
    return powers[:: math.ceil(len(powers) / _MARKS)]


def _axes(
    x_scale: Scale,
    y_scale: Scale,
    x_ticks: Sequence[float],
    y_ticks: Sequence[float],
    format_x: Callable[[float], str],
    tick_y: Callable[[float], str],
    x_label: str,
) -> Markup:
    parts = []
    for tick in y_ticks:
        y = y_scale(tick)
        parts.append(
            Markup('<line class="grid" x1="{}" x2="{}" y1="{:.1f}" y2="{:.1f}"/>').format(
                _LEFT, _WIDTH - _RIGHT, y, y
            )
        )
        parts.append(
            Markup('<text class="tick end" x="{}" y="{:.1f}">{}</text>').format(
                _LEFT - 7, y + 3.5, tick_y(tick)
            )
        )
    for tick in x_ticks:
        if x_scale.low <= tick <= x_scale.high:
            parts.append(
                Markup('<text class="tick middle" x="{:.1f}" y="{}">{}</text>').format(
                    x_scale(tick), _HEIGHT - _BOTTOM + 17, format_x(tick)
                )
            )
    parts.append(
        Markup('<text class="axis middle" x="{}" y="{}">{}</text>').format(
            (_LEFT + _WIDTH - _RIGHT) / 2, _HEIGHT - 5, x_label
        )
    )
    return Markup("").join(parts)


def _line(line: Series, x_scale: Scale, y_scale: Scale) -> Markup:
    """Draw one series; gaps where values are missing, a dot where there is one value only."""
    runs: list[list[str]] = [[]]
    for x, y in zip(line.x, line.y, strict=True):
        if y is None or not is_number(y):
            runs.append([])
        else:
            runs[-1].append(f"{x_scale(x):.1f},{y_scale(y):.1f}")
    drawn = []
    for run in filter(None, runs):
        if len(run) == 1:
            cx, cy = run[0].split(",")
            drawn.append(
                Markup('<circle class="{}" cx="{}" cy="{}" r="3"/>').format(line.style, cx, cy)
            )
        else:
            path = "M" + "L".join(run)
            drawn.append(Markup('<path class="line {}" d="{}"/>').format(line.style, path))
    return Markup("").join(drawn)


def _level(level: Level, y_scale: Scale) -> Markup:
    y = y_scale(level.y)
    above = y - 5 if y > _TOP + 12 else y + 13
    return Markup(
        '<line class="level {s}" x1="{a}" x2="{b}" y1="{y:.1f}" y2="{y:.1f}"/>'
        '<text class="label end {s}" x="{b}" y="{t:.1f}">{n}</text>'
    ).format(s=level.style, a=_LEFT, b=_WIDTH - _RIGHT, y=y, t=above, n=level.name)


def _hover_data(
    drawn: Sequence[Series],
    x_scale: Scale,
    y_scale: Scale,
    format_x: Callable[[float], str],
    format_y: Callable[[float], str],
    x_label: str,
) -> str:
    """Values for the cross-hair, in the picture's coordinates and as text."""
    rows: dict[float, list[tuple[str, str, float, str]]] = {}
    for line in drawn:
        for x, y in zip(line.x, line.y, strict=True) if line.named else ():
            if y is not None and is_number(y):
                rows.setdefault(x, []).append(
                    (line.name, format_y(y), round(y_scale(y), 1), line.style.split()[0])
                )
    points = [[round(x_scale(x), 1), f"{x_label} {format_x(x)}", rows[x]] for x in sorted(rows)]
    return json.dumps({"points": points, "top": _TOP, "bottom": _HEIGHT - _BOTTOM})


def legend(series: Sequence[Series]) -> Markup | None:
    """Name the lines, if there are several to tell apart."""
    named = [line for line in series if line.named and any(is_number(y) for y in line.y)]
    if len(named) < 2:
        return None
    items = (
        Markup('<li><i class="swatch {}"></i>{}</li>').format(line.style, escape(line.name))
        for line in named
    )
    return Markup('<ul class="legend">{}</ul>').format(Markup("").join(items))
