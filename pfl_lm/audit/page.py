"""An audit for people: one screen of text per part, one HTML page, one JSON file."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pfl_lm import __version__
from pfl_lm.audit.drawing import draw
from pfl_lm.audit.evidence import Evidence
from pfl_lm.audit.findings import Finding, Part
from pfl_lm.files import write_atomically

_MARKS = {True: ("✓", "good"), False: ("✗", "bad"), None: ("!", "care")}
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
        return "Everything that was checked holds."
    names = ", ".join(finding.name for finding in wrong)
    return f"{len(wrong)} of the checks FAILED: {names}."


def _alarms(parts: Sequence[Part]) -> list[Finding]:
    return [finding for part in parts for finding in part.findings if finding.holds is False]


def write_audit(evidence: Evidence, parts: Sequence[Part], page: Path) -> tuple[Path, Path]:
    """Write the HTML page and, beside it, the JSON file; return both paths."""
    data = page.with_suffix(".json")
    content = {
        "run": evidence.manifest["run"],
        "holds": all(part.holds for part in parts),
        "verdict": verdict(parts),
        "version": __version__,
        "parts": {part.name: part.as_json() for part in parts},
    }
    for path, text in (
        (page, render(evidence, parts)),
        (data, json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n"),
    ):
        with write_atomically(path) as temporary:
            temporary.write_text(text, encoding="utf-8")
    return page, data


def render(evidence: Evidence, parts: Sequence[Part]) -> str:
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
        run=evidence.manifest["run"],
        version=__version__,
        verdict=verdict(parts),
        guaranteed=evidence.manifest["statements"]["guaranteed"],
        simulated=evidence.manifest["statements"]["simulated"],
        alarms=_alarms(parts),
        parts=[_shown(part) for part in parts],
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
