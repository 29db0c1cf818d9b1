"""How runs and comparisons show themselves in a notebook: a frame that its style cannot leave."""

from __future__ import annotations

from pathlib import Path

from pfl_lm.numbers import percent, significant
from pfl_lm.pages import html
from pfl_lm.pages.charts import line_chart
from pfl_lm.report import headline
from pfl_lm.report.source import FEDERATED, read_run
from pfl_lm.run.folder import RunFolder

_TEMPLATE = Path(__file__).parent / "run.html"


def show_run(folder: Path) -> str:
    """Return a run's headline, its figures, and how its quality grew."""
    run = read_run(RunFolder.open(folder))
    line = run.over_evaluations(FEDERATED, "perplexity")
    content = {
        "title": run.manifest.scenario.description or run.manifest.run,
        "status": headline.status(run),
        "guarantee": headline.guarantee(run),
        "rows": [
            (
                str(row.get("name")),
                significant(row.get("perplexity")),
                percent(row.get("top3")),
                percent(row.get("keystrokes_saved")),
            )
            for row in run.rows
        ],
        "chart": line_chart([line], x_label="round", y_label="perplexity", log=True),
    }
    return html.framed(html.render(_TEMPLATE, content), 430 if line.x else 260)
