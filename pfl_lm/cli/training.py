"""`pfl-lm pretrain`: train a first model on public text."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pfl_lm.cli.bounds import number
from pfl_lm.cli.outputs import destination
from pfl_lm.cli.recipes import Settings, read

if TYPE_CHECKING:
    from pfl_lm.models.file import Model
    from pfl_lm.run.pretrain_checkpoint import PretrainCheckpoint
    from pfl_lm.run.pretrain_recipe import Pretraining
    from pfl_lm.text.mixture import Mixture


def pretrain(
    recipe: Annotated[
        Path,
        typer.Argument(
            metavar="RECIPE",
            help="A pretraining file, or the name of a shipped one, such as pretrain_30k.",
        ),
    ],
    output: Annotated[Path, destination("Model file to write.")],
    resume: Annotated[
        bool, typer.Option(help="Continue an interrupted training from OUTPUT.checkpoint.")
    ] = False,
    mixture: Annotated[
        Path | None,
        typer.Option(
            help="A folder that `mixture ask` wrote: read the public text most like theirs "
            "[all of the text]."
        ),
    ] = None,
    keep: Annotated[
        float, number(1e-6, 1, "With --mixture: share of the public text that is read.")
    ] = 0.25,
    held_out: Annotated[
        list[Path] | None,
        typer.Option(
            help="A store of public text that the recipe does not read: say how well the trained "
            "model predicts it. May be given several times.",
        ),
    ] = None,
    settings: Settings = None,
) -> None:
    """Train a first model centrally, on public text.

    A scenario starts from the model file with `start = "…"`. A recipe may also train on private
    text (`text_is = "private"`): such a model is a ceiling to compare with, has no privacy
    guarantee, and says so.

    With `--mixture` it reads the part of the public text that is most like what people type, in as
    many steps as the whole text would take. Their votes have cost them ε, and the model says so.

    `--held-out` tells which of several trainings to keep (`--set seed=1`, `--set epochs=2`).

    A checkpoint is written every minute and when training is interrupted. The model that
    `--resume` ends with has the same bytes as one that was trained without a break.
    """
    from pfl_lm.files import sole_writer
    from pfl_lm.native.tuning import tune
    from pfl_lm.queries.mixture import open_mixture
    from pfl_lm.run.pretrain_checkpoint import PretrainCheckpoint
    from pfl_lm.run.pretrain_held_out import measure, open_held_out
    from pfl_lm.run.pretrain_recipe import Pretraining
    from pfl_lm.text.mixture import cost_of_votes

    tune()
    chosen = read(Pretraining, recipe, settings)
    unread = open_held_out(chosen, held_out or [])
    chosen_by = None if mixture is None else open_mixture(mixture, keep)
    with sole_writer(output):
        checkpoint = PretrainCheckpoint.beside(output, resume)
        model = _trained(recipe.stem, chosen, checkpoint, chosen_by)
        checkpoint.finish(output, model)
    typer.echo(
        f"wrote {output} ({output.stat().st_size / 1e6:.1f} MB).{cost_of_votes(model.origin)}"
    )
    for store in unread:
        found = measure(chosen, model, store)
        typer.echo(
            f"{store.folder}: perplexity {found.perplexity:.1f} ({found.perplexity_known:.1f} of "
            f"known words), top-3 {found.top3:.1%} of {found.words:,} words"
        )


def _trained(
    name: str, recipe: Pretraining, checkpoint: PretrainCheckpoint, mixture: Mixture | None
) -> Model:
    """Train; a training that is interrupted says what is kept of it."""
    from pfl_lm.cli.progress import StepBar
    from pfl_lm.run.pretrain import pretrain as train

    try:
        with StepBar(f"pretraining {name}") as bar:
            return train(recipe, bar, checkpoint, mixture)
    except (KeyboardInterrupt, SystemExit, OSError):
        if checkpoint.path.exists():
            kept = f"{checkpoint.path} keeps the training so far"
            typer.echo(f"{kept}; repeat the command with --resume to continue", err=True)
        raise
