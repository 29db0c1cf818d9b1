"""An audit for people: one screen of text per part, one HTML page, one JSON file."""

from __future__ import annotations

import json
import math
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from pfl_lm.audit.accounting.stated import StatedGuarantee
from pfl_lm.audit.artifacts import AuditTarget
from pfl_lm.audit.findings import Finding, Part, Plot
from pfl_lm.audit.hazards import hazards
from pfl_lm.files import write_atomically
from pfl_lm.numbers import duration, format_epsilon
from pfl_lm.pages import html
from pfl_lm.pages.charts import Series, legend, line_chart
from pfl_lm.pages.dots import dot_chart
from pfl_lm.version import __version__

_MARKS = {True: ("✓", "good"), False: ("✗", "bad"), None: ("!", "care")}
_STATES = {
    "averted": ("no", "good"),
    "present": ("YES", "bad"),
    "to judge": ("you judge", "care"),
    "not looked for": ("not looked for", "quiet"),
}
_WIDTH = 96
_TEMPLATE = Path(__file__).parent / "page.html"


def screen(part: Part) -> str:
    """Return a part as plain text: what was checked, what was found, what was not checked."""
    lines = [f"{part.question}  ({part.name}, {part.seconds:.0f} s)", "  checked"]
    lines += [_wrapped("    · ", text) for text in part.checked]
    lines.append("  found")
    lines += [_wrapped(f"    {_MARKS[f.holds][0]} ", f"{f.name}: {f.text}") for f in part.findings]
    lines.append("  NOT checked")
    lines += [_wrapped("    · ", text) for text in part.not_checked]
    return "\n".join(lines)


def _wrapped(lead: str, text: str) -> str:
    return textwrap.fill(text, _WIDTH, initial_indent=lead, subsequent_indent=" " * len(lead))


def verdict(parts: Sequence[Part]) -> str:
    """Say in one sentence how the audit ended."""
    wrong = _alarms(parts)
    if not wrong:
        judged = sum(finding.holds is None for part in parts for finding in part.findings)
        left = f" {judged} point{'s are' if judged > 1 else ' is'} for a person to judge."
        return "Everything that was checked holds." + left * bool(judged)
    names = ", ".join(finding.name for finding in wrong)
    return f"{len(wrong)} of the checks FAILED: {names}."


def _alarms(parts: Sequence[Part]) -> list[Finding]:
    return [finding for part in parts for finding in part.findings if finding.holds is False]


def require_replaceable(page: Path) -> None:
    """Refuse a page whose JSON file would take the place of another one.

    Raises:
        ValueError: naming that file.
    """
    data = page.with_suffix(".json")
    if page == data:
        raise ValueError(
            f"{page} would be both the page and the JSON file that is written beside it: end its "
            "name in .html"
        )
    if not data.exists():
        return
    try:
        content = json.loads(data.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        content = None
    if not (isinstance(content, dict) and {"audited", "verdict", "parts"} <= content.keys()):
        raise ValueError(
            f"the audit's JSON file would replace {data}, which is no audit: choose another name "
            "for the page"
        )


def write_audit(target: AuditTarget, parts: Sequence[Part], page: Path) -> tuple[Path, Path]:
    """Write the HTML page and, beside it, the JSON file; return both paths."""
    data = page.with_suffix(".json")
    content = {
        "audited": target.title,
        "holds": all(part.holds for part in parts),
        "verdict": verdict(parts),
        "version": __version__,
        "hazards": {hazard.text: hazard.state for hazard in hazards(parts)},
        "parts": {part.name: part.as_json() for part in parts},
    }
    for path, text in (
        (page, render(target, parts)),
        (data, json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n"),
    ):
        with write_atomically(path) as temporary:
            temporary.write_text(text, encoding="utf-8")
    return page, data


def render(target: AuditTarget, parts: Sequence[Part]) -> str:
    """Return the audit as one self-contained HTML text."""
    content = {
        "title": target.title,
        "version": __version__,
        "verdict": verdict(parts),
        "meaning": meaning(StatedGuarantee.of(target)),
        "statements": target.statements,
        "alarms": _alarms(parts),
        "hazards": [(*_STATES[hazard.state], hazard) for hazard in hazards(parts)],
        "parts": [_shown(part) for part in parts],
    }
    return html.render(_TEMPLATE, content)


def meaning(guarantee: StatedGuarantee | None) -> str:
    """Say in a sentence for everybody what ε promises: how well a guess can get."""
    if guarantee is None:
        return "Nothing was promised: a person who sees the model may find out who took part."
    odds = 1 / (1 + math.exp(-min(guarantee.epsilon, 700.0)))
    # A chance is printed rounded up, and never as certain unless it is.
    shown = f"{min(math.ceil(odds * 1000) / 10, 99.9):g}%"
    return (
        f"ε = {format_epsilon(guarantee.epsilon)} means: somebody who sees every released model, "
        "knows all else there is to know, and must tell whether one person's text was used, can be "
        f"right in at most {shown} of cases, where a coin is right in 50%. The smaller ε, the "
        f"closer to the coin. δ is the chance that this fails: one in "
        f"{round(1 / guarantee.delta):,}."
    )


def _shown(part: Part) -> dict[str, Any]:
    holds = sum(finding.holds is True for finding in part.findings)
    fails = sum(finding.holds is False for finding in part.findings)
    judged = len(part.findings) - holds - fails
    summary = f"{fails} FAILED, {holds} hold" if fails else f"{holds} hold"
    return {
        "name": part.name,
        "question": part.question,
        "holds": part.holds,
        "headline": part.headline,
        "summary": summary + (f", {judged} for you to judge" if judged else ""),
        "took": duration(part.seconds),
        "checked": part.checked,
        "not_checked": part.not_checked,
        "findings": [
            {
                "name": f.name,
                "text": f.text,
                "mark": _MARKS[f.holds][0],
                "style": _MARKS[f.holds][1],
            }
            for f in part.findings
        ],
        "tables": part.tables,
        "plots": [
            {"title": plot.title, "note": plot.note, "chart": chart, "legend": key}
            for plot in part.plots
            for chart, key in [_drawn(plot)]
            if chart
        ],
    }


def _drawn(plot: Plot) -> tuple[Markup | None, Markup | None]:
    """Return a plot's chart and its legend."""
    if plot.kind == "axis":
        values = {name: values[0] for name, values in plot.series.items() if len(values)}
        limit = next((name for name in ("guaranteed", "stated") if name in values), "")
        return dot_chart(values, label=plot.title, limit=limit, format=format_epsilon), None
    lines = [
        Series(name, [x for x, _ in points], [y for _, y in points], f"s{place}")
        for place, (name, points) in enumerate(plot.series.items())
    ]
    return line_chart(lines, x_label=plot.x_label, y_label=plot.title, zero=True), legend(lines)
