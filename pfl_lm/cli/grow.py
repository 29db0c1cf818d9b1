"""`pfl-lm grow`: give a trained model rows for new words."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from pfl_lm.cli.outputs import destination


def grow(
    model: Annotated[Path, typer.Argument(help="A model file.")],
    tokenizer: Annotated[
        Path, typer.Option(help="The vocabulary that the model was trained with.")
    ],
    to: Annotated[
        Path,
        typer.Option(help='The vocabulary with new words, built with `kind = "discovered"`.'),
    ],
    output: Annotated[Path, destination("Model file to write.")],
) -> None:
    """Give a trained model rows for the words that a new vocabulary adds.

    Each new word starts with the rows that the model learnt for unknown words, and with its share
    of their probability. The model says of every old word what it said before. Training goes on
    from the file that this verb writes.
    """
    from pfl_lm.models.file import load_model, save_model
    from pfl_lm.models.grow import grow as grown_by
    from pfl_lm.text.tokenizer import Tokenizer
    from pfl_lm.text.tokenizer_grow import new_shares, old_ids

    if os.path.lexists(output):
        raise ValueError(f"{output} exists already; choose another file")
    loaded, base, grown = load_model(model), Tokenizer.open(tokenizer), Tokenizer.open(to)
    if loaded.origin.get("tokenizer_digest") != base.digest:
        raise ValueError(f"{model} was trained with another vocabulary than {tokenizer}")
    ids = old_ids(base, grown)
    origin = {"tokenizer_digest": grown.digest, "grown_from": base.digest}
    larger = grown_by(loaded, ids, new_shares(base, grown, ids), base.unk_id, origin)
    save_model(output, larger, new=True)
    added = grown.vocabulary_size - base.vocabulary_size
    typer.echo(
        f"{added:,} words have rows of their own: {base.vocabulary_size:,} → "
        f"{grown.vocabulary_size:,} ids; the model is in {output}"
    )
