"""`pfl-lm suggest`: the words that a model would offer next, in a terminal."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pfl_lm.cli.arguments import listed, typed
from pfl_lm.cli.bounds import number
from pfl_lm.cli.outputs import languages_option
from pfl_lm.cli.tables import print_table, visible

Tokenizer = Annotated[
    Path | None,
    typer.Option(
        "--tokenizer",
        help="Folder of the run's vocabulary [found by its digest near the run].",
    ),
]


def suggest(
    source: Annotated[
        Path, typer.Argument(metavar="RUN|BUNDLE", help="Folder of a run, or an exported bundle.")
    ],
    texts: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[TEXT]...", help="What was typed, a message each [a dozen].", callback=typed
        ),
    ] = None,
    count: Annotated[int, number(1, 100, "How many words.")] = 3,
    letters: Annotated[
        str,
        typer.Option(
            help="Letters typed of the next word: only words that begin so.", callback=typed
        ),
    ] = "",
    tokenizer: Tokenizer = None,
    languages: Annotated[str, languages_option()] = "",
) -> None:
    """Print the words that a keyboard would suggest after a text, and an emoji if it has any.

    A run that has not ended suggests by its newest checkpoint. A bundle suggests by its ONNX graph,
    as a phone does; that needs the extra `onnx`, and gives no more words than the graph was
    exported with.
    """
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from pfl_lm.api.suggesting import opened

    table = Table(box=None, show_header=False, pad_edge=False)
    with opened(source, tokenizer, listed(languages)) as suggester:
        for text in texts or suggester.prompts:
            words, emoji = suggester.offer(text, count, letters)
            cells = [f"[bold]{escape(visible(word))}[/bold]" for word, _ in words]
            shown = cells or ["no word begins so"]
            table.add_row(
                escape(f"{visible(text)} …"), *shown, *([emoji] if emoji and not letters else [])
            )
    print_table(table, Console(highlight=False))
