"""Is the model as good as its run says? It is measured once more on the same test users.

Readers choose a model by ``evaluation.json``, and nothing else in a run vouches for its figures.
"""

from __future__ import annotations

from typing import Any

from pfl_lm.audit.artifacts import RunArtifacts
from pfl_lm.audit.findings import Finding
from pfl_lm.models.file import load_model
from pfl_lm.run.context import RunContext
from pfl_lm.run.evaluation import measure_on_test_users, models_of
from pfl_lm.run.evaluation_file import read_evaluation
from pfl_lm.version import code_digest

_NAME = "quality measured again"
_CLOSE = 0.005  # relative; of a share absolute. Another processor's sums may turn a guess
_FIGURES = ("perplexity", "perplexity_known", "top1", "top3", "keystrokes_saved", "oov_rate")
_COUNTS = ("users", "predictions", "words")


def measured_again(context: RunContext, artifacts: RunArtifacts) -> Finding:
    """Measure a run's model, and its start, as ``evaluation.json`` says that they were measured."""
    folder = artifacts.folder
    written = {row["name"]: row for row in read_evaluation(folder.evaluation_path).get("rows", [])}
    if not written or not folder.model_path.is_file():
        return Finding(_NAME, None, "Evaluation or model is not here; nothing could be measured.")
    parameters = load_model(folder.model_path).parameters
    rows = measure_on_test_users(context, models_of(context, parameters))
    wrong = next(filter(None, (_difference(written.get(row["name"]), row) for row in rows)), "")
    if not wrong:
        names = " and ".join(row["name"] for row in rows)
        text = f"The {names}: to {_CLOSE:.1%} what evaluation.json says, "
        return Finding(_NAME, True, f"{text}on {rows[0]['users']:,} test users.")
    if artifacts.manifest.get("versions", {}).get("code") != code_digest():
        text = f"{wrong}. Other code made this run: audit it with the version that made it."
        return Finding(_NAME, None, text)
    return Finding(_NAME, False, f"{wrong}.")


def _difference(told: dict[str, Any] | None, row: dict[str, Any]) -> str:
    """Return the first figure of a model that was written otherwise than it is measured, or ""."""
    name = row["name"]
    if told is None:
        return f"evaluation.json does not say how good the {name} is"
    for key in (*_COUNTS, *_FIGURES):
        one, other = told.get(key), row[key]
        if not (one == other if key in _COUNTS else _close(one, other)):
            return f"evaluation.json has {key} = {one} for the {name}; {other} was measured"
    return ""


def _close(told: float | None, measured: float | None) -> bool:
    """Whether two figures agree; None stands for what is not finite."""
    if told is None or measured is None:
        return told is measured
    return abs(told - measured) <= _CLOSE * max(1.0, abs(measured))
