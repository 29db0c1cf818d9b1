"""The option that names trackers, of every verb that runs a scenario."""

from __future__ import annotations

from typing import Annotated

import typer


def _names(incomplete: str) -> list[str]:
    from pfl_lm.interop.tracking import TRACKERS

    return [name for name in TRACKERS if name.startswith(incomplete)]


Track = Annotated[
    list[str] | None,
    typer.Option(
        "--track",
        metavar="mlflow|wandb",
        help="Also log the figures of metrics.jsonl, which no ε covers, to MLflow or Weights & "
        "Biases (the extra of that name). May be repeated. TensorBoard's files are always written.",
        autocompletion=_names,
    ),
]
