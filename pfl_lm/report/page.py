"""The page a person looks at after a run: one HTML file that needs nothing else.

Charts are inline SVG, style and script are inlined, and nothing is fetched when it is opened.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from pfl_lm.files import write_atomically
from pfl_lm.numbers import duration, is_number, significant
from pfl_lm.pages import html
from pfl_lm.report import headline, sections
from pfl_lm.report.advice import advice
from pfl_lm.report.source import Run, read_run
from pfl_lm.run.folder import RunFolder
from pfl_lm.version import __version__

_TEMPLATE = Path(__file__).parent / "page.html"
# What the manifest says once the first screen has been told, by chapter.
_DETAILS = ("scenario", "policy", "model", "payload", "population", "tokenizer", "noise")


def write_report(run: Path, output: Path | None = None) -> Path:
    """Write the page of a run, finished or going.

    Args:
        run: the run's folder.
        output: the file to write; ``report.html`` in the run's folder if absent.

    Raises:
        ValueError: not a run folder, or its manifest or evaluation is damaged.
    """
    folder = RunFolder.open(run)
    page = render(read_run(folder))
    destination = Path(output) if output else folder.report_path
    with write_atomically(destination) as temporary:
        temporary.write_text(page, encoding="utf-8")
    return destination


def render(run: Run) -> str:
    """Return the page as one HTML text."""
    return html.render(_TEMPLATE, _content(run), "bars.css")


def _content(run: Run) -> dict[str, Any]:
    """Gather what the template shows."""
    manifest, written = run.manifest, run.manifest.content
    return {
        "title": manifest.scenario.description or manifest.run,
        "name": manifest.run,
        "status": headline.status(run),
        "finished": run.finished,
        "lead": headline.lead(run),
        "guarantee": headline.guarantee(run),
        "tiles": headline.tiles(run),
        "users": run.trained.get("users"),
        "split": run.final.get("split") or run.trained.get("split") or "held-out",
        "floor": _floor(run),
        "advice": advice(run),
        "suggestions": headline.suggestions(run),
        "sections": sections.sections(run),
        "words": sections.words(run),
        "comparison": headline.comparison(run),
        "as_typed": headline.as_typed_figures(run),
        "assumptions": manifest.guarantee.assumptions if manifest.guarantee else (),
        "ledger": run.ledger,
        "details": [(name, _flat(written[name])) for name in _DETAILS if written.get(name)],
        "versions": _flat(manifest.versions),
        "took": _took(run),
        "version": __version__,
    }


def _took(run: Run) -> str:
    """Say how long the rounds took; nothing where that would tell how many reported."""
    seconds = [e["seconds"] for e in run.rounds if is_number(e.get("seconds"))]
    return f"Rounds took {duration(sum(seconds))} in all. " if seconds else ""


def _floor(run: Run) -> str:
    """Perplexity of the true generating process, where users are invented."""
    nats = run.final.get("entropy_floor")
    return significant(math.exp(nats)) if nats is not None and is_number(nats) else ""


def _flat(value: Any, prefix: str = "") -> list[tuple[str, str]]:
    """Lay a nested table out as dotted keys and short values."""
    if not isinstance(value, dict):
        return [(prefix, value if isinstance(value, str) else json.dumps(value))]
    return [
        item
        for key, inner in value.items()
        if inner is not None
        for item in _flat(inner, f"{prefix}.{key}" if prefix else str(key))
    ]
