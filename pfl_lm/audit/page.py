"""An audit for people: one screen of text per part, one HTML page, one JSON file."""

from __future__ import annotations

import json
import math
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pfl_lm import __version__
from pfl_lm.audit.dangers import dangers
from pfl_lm.audit.drawing import draw
from pfl_lm.audit.evidence import Claim
from pfl_lm.audit.findings import Finding, Part
from pfl_lm.audit.promise import Promise
from pfl_lm.files import write_atomically

_MARKS = {True: ("✓", "good"), False: ("✗", "bad"), None: ("!", "care")}
_STATES = {
    "averted": ("no", "good"),
    "present": ("YES", "bad"),
    "to judge": ("you judge", "care"),
    "not looked for": ("not looked for", "quiet"),
}
_WIDTH = 96


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


def write_audit(claim: Claim, parts: Sequence[Part], page: Path) -> tuple[Path, Path]:
    """Write the HTML page and, beside it, the JSON file; return both paths."""
    data = page.with_suffix(".json")
    content = {
        "audited": claim.title,
        "holds": all(part.holds for part in parts),
        "verdict": verdict(parts),
        "version": __version__,
        "dangers": {danger.text: danger.state for danger in dangers(parts)},
        "parts": {part.name: part.as_json() for part in parts},
    }
    for path, text in (
        (page, render(claim, parts)),
        (data, json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n"),
    ):
        with write_atomically(path) as temporary:
            temporary.write_text(text, encoding="utf-8")
    return page, data


def render(claim: Claim, parts: Sequence[Part]) -> str:
    """Return the audit as one self-contained HTML text."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    return environment.get_template("page.html").render(
        title=claim.title,
        version=__version__,
        verdict=verdict(parts),
        meaning=meaning(Promise.of(claim)),
        statements=claim.statements,
        alarms=_alarms(parts),
        dangers=[(*_STATES[danger.state], danger) for danger in dangers(parts)],
        parts=[_shown(part) for part in parts],
    )


def meaning(promise: Promise | None) -> str:
    """Say in a sentence for everybody what ε promises: how well a guess can get."""
    if promise is None:
        return "Nothing was promised: whoever sees the model may find out who took part."
    odds = 1 / (1 + math.exp(-min(promise.epsilon, 700.0)))
    # A chance is printed rounded up, and never as certain unless it is.
    shown = f"{min(math.ceil(odds * 1000) / 10, 99.9):g}%"
    return (
        f"ε = {promise.epsilon:g} means: somebody who sees every released model, knows everything "
        f"else there is to know, and must tell whether one person's text was used, can be right in "
        f"at most {shown} of cases, where a coin is right in 50%. The smaller ε, the closer to the "
        f"coin. δ is the chance that this fails: one in {round(1 / promise.delta):,}."
    )


def _shown(part: Part) -> dict[str, Any]:
    from markupsafe import Markup

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
        "seconds": part.seconds,
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
            {"title": plot.title, "note": plot.note, "svg": Markup(svg)}
            for plot in part.plots
            if (svg := draw(plot))
        ],
    }
