"""Named values on one axis that starts at 0, as inline SVG: a dot for each, a line for a limit."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

from markupsafe import Markup

_WIDTH, _ROW, _RIGHT = 460, 38, 76  # room for a value's digits beside its dot


def dot_chart(
    values: Mapping[str, float],
    *,
    label: str,
    limit: str = "",
    format: Callable[[float], str] = str,
) -> Markup | None:
    """Draw one row for each name; None where no value is finite.

    Args:
        label: what the chart shows, for who cannot see it.
        limit: the name whose value is drawn as a line through all rows.
        format: how a value is written beside its dot.
    """
    finite = {name: value for name, value in values.items() if math.isfinite(value)}
    if not finite:
        return None
    high = max(*finite.values(), 1e-9)
    scale = (_WIDTH - _RIGHT) / high
    parts = []
    for row, (name, value) in enumerate(finite.items()):
        x, y = max(0.0, value) * scale + 6, _ROW * row + 27
        style = "s1" if name == limit else "s0"
        parts.append(
            Markup(
                '<text class="name" x="0" y="{t:.0f}">{n}</text>'
                '<line class="stem" x1="0" x2="{x:.1f}" y1="{y}" y2="{y}"/>'
                '<circle class="dot {s}" cx="{x:.1f}" cy="{y}" r="5"/>'
                '<text x="{v:.1f}" y="{w}">{f}</text>'
            ).format(t=y - 12, n=name, x=x, y=y, s=style, v=x + 11, w=y + 4, f=format(value))
        )
    height = _ROW * len(finite) + 6
    if limit in finite:
        x = max(0.0, finite[limit]) * scale + 6
        parts.insert(
            0,
            Markup('<line class="level s1" x1="{x:.1f}" x2="{x:.1f}" y1="4" y2="{h}"/>').format(
                x=x, h=height
            ),
        )
    return Markup(
        '<svg class="chart" viewBox="0 0 {w} {h}" role="img" aria-label="{l}">{b}</svg>'
    ).format(w=_WIDTH, h=height, l=label, b=Markup("").join(parts))
