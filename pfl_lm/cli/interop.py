"""``pfl-lm population import`` and ``export``: other libraries' text in, ours out."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, cast

import typer

from pfl_lm.cli.outputs import destination
from pfl_lm.cli.population import (
    KeepUserIds,
    MaxMalformed,
    Name,
    Output,
    Split,
    SplitKey,
    Vocabulary,
    fractions,
    print_profile,
    progress_bar,
)


def import_population(
    tokenizer: Vocabulary,
    output: Output,
    source: Annotated[
        str,
        typer.Option(
            "--from",
            help="tff-stackoverflow, tff-shakespeare (downloaded), tff-sqlite, tff-hdf5, leaf "
            "(a file or folder), hf (a folder of save_to_disk, or a name).",
        ),
    ],
    path: Annotated[str | None, typer.Argument(help="File, folder or data set.")] = None,
    part: Annotated[
        str | None, typer.Option(help="One split of an SQLite file or Hugging Face data set.")
    ] = None,
    cache: Annotated[Path | None, typer.Option(help="Folder where downloads are kept.")] = None,
    mirror: Annotated[
        str | None, typer.Option(help="Host to download from [that of tensorflow-federated].")
    ] = None,
    split: Split = "0.8,0.1,0.1",
    split_key: SplitKey = "pfl_lm",
    name: Name = None,
    user_field: Annotated[str, typer.Option(help="Column of the user id (hf).")] = "user",
    text_field: Annotated[
        str | None,
        typer.Option(help="Feature or column of the text [TFF: tokens; LEAF: x; hf: text]."),
    ] = None,
    keep_user_ids: KeepUserIds = False,
    max_malformed: MaxMalformed = 0.001,
) -> None:
    """Build a population from another library's data.

    tensorflow-federated itself reads its data sets, in the environment that `make tff` builds in a
    clone.
    """
    from pfl_lm.interop.imports import Source, import_population
    from pfl_lm.text.population_build import BuildOptions
    from pfl_lm.text.tokenizer import Tokenizer

    default = {"leaf": "x", "hf": "text"}.get(source, "tokens")
    options = BuildOptions(
        name=name or output.name,
        fractions=fractions(split),
        split_key=split_key,
        keep_user_ids=keep_user_ids,
        user_field=user_field,
        text_field=text_field or default,
        max_malformed=max_malformed,
    )
    opened = Tokenizer.open(tokenizer)
    with progress_bar() as progress:
        profile = import_population(
            cast(Source, source), path, opened, output, options, part, cache, mirror, progress
        )
    for example in profile["provenance"]["malformed_examples"]:
        typer.echo(f"skipped {example}", err=True)
    print_profile(profile, output)


def export_population(
    store: Annotated[Path, typer.Argument(help="A folder that `population build` wrote.")],
    tokenizer: Annotated[Path, typer.Option(help="The tokenizer it was built with.")],
    output: Annotated[Path, destination("File or folder to write.")],
    target: Annotated[str, typer.Option("--to", help="tff-sqlite (a file), leaf (a folder).")],
) -> None:
    """Write a population as another library's data: the users' text, in readable form."""
    from pfl_lm.interop.exports import export_leaf, export_sqlite
    from pfl_lm.text.population import PopulationStore
    from pfl_lm.text.tokenizer import Tokenizer

    writers: dict[str, Any] = {"tff-sqlite": export_sqlite, "leaf": export_leaf}
    if target not in writers:
        raise ValueError(f"--to {target}: expected one of {', '.join(writers)}")
    written = writers[target](PopulationStore.open(store), Tokenizer.open(tokenizer), output)
    typer.echo(f"{output}: {written:,} messages")
