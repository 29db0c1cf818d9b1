"""The page a person looks at after a run: one HTML file that needs nothing else.

Charts are inline SVG, style and script are inlined, and nothing is fetched when it is opened.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from markupsafe import Markup

from pfl_lm import __version__
from pfl_lm.files import write_atomically
from pfl_lm.report import headline, sections
from pfl_lm.report.numbers import duration, is_number, significant
from pfl_lm.report.source import Run, read_run
from pfl_lm.runs import RunFolder

_FOLDER = Path(__file__).parent
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
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(_FOLDER),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    return environment.get_template("page.html").render(_content(run))


def _content(run: Run) -> dict[str, Any]:
    """Gather what the template shows."""
    return {
        "style": Markup((_FOLDER / "page.css").read_text(encoding="utf-8")),
        "script": Markup((_FOLDER / "page.js").read_text(encoding="utf-8")),
        "title": run.at("scenario.description") or run.at("run") or "A run",
        "name": run.at("run", ""),
        "created": str(run.at("created", ""))[:16].replace("T", " "),
        "status": headline.status(run),
        "finished": run.finished,
        "lead": headline.lead(run),
        "promise": headline.promise(run),
        "tiles": headline.tiles(run),
        "users": run.trained.get("users"),
        "split": run.final.get("split") or run.trained.get("split") or "held-out",
        "floor": _floor(run),
        "sections": sections.sections(run),
        "words": sections.words(run),
        "comparison": headline.comparison(run),
        "assumptions": run.at("guarantee.assumptions", ()),
        "ledger": run.ledger,
        "details": [(name, _flat(run.at(name))) for name in _DETAILS if run.at(name)],
        "versions": _flat(run.at("versions", {})),
        "took": duration(sum(e["seconds"] for e in run.rounds if is_number(e.get("seconds")))),
        "version": __version__,
    }


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
