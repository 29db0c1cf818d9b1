"""`pfl-lm pretrain`: a first model from public text."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def pretrain(
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE", help="simulations/pretrain_*.toml")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Model file to write.")],
) -> None:
    """Train a first model centrally, on public text.

    A scenario starts from the file with `start = "…"`. Trained on private text (text_is =
    "private"), the model is a ceiling to compare with: it has no guarantee and says so.
    """
    from pfl_lm.central import Pretraining
    from pfl_lm.central import pretrain as train
    from pfl_lm.cli.progress import StepBar
    from pfl_lm.machine import tune
    from pfl_lm.model_file import save_model
    from pfl_lm.recipes import load

    tune()
    if output.exists():
        raise ValueError(f"--output {output} exists already; remove it or choose another name")
    with StepBar(f"pretraining {recipe.stem}") as bar:
        model = train(load(Pretraining, recipe), bar.update)
    save_model(output, model)
    typer.echo(f"wrote {output} ({output.stat().st_size / 1e6:.1f} MB)")
