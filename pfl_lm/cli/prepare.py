"""`pfl-lm prepare`: text of one's own in one command."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

from pfl_lm.cli.bounds import number


def prepare(
    inputs: Annotated[
        list[Path],
        typer.Argument(
            metavar="INPUT...",
            help="Text by user: JSONL, CSV, Parquet or LEAF JSON, plain or compressed, or a folder "
            "with one .txt per user.",
        ),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder to write, new.")],
    public: Annotated[
        list[Path] | None,
        typer.Option(help="Public text for a first model: .txt or .jsonl; may be repeated."),
    ] = None,
    locale: Annotated[str, typer.Option(help="Language of the text, such as en_US.")] = "en_US",
    size: Annotated[
        int | None,
        number(10_000, 200_000, "Words of the vocabulary [30,000]."),
    ] = None,
    user_field: Annotated[str, typer.Option(help="JSON key or column of the user id.")] = "user",
    text_field: Annotated[str, typer.Option(help="JSON key or column of the text.")] = "text",
    max_malformed: Annotated[
        float, number(0, 1, "Share of records that may be malformed.")
    ] = 0.001,
) -> None:
    """Turn messages into a vocabulary, a population, public text and the recipes of a run.

    The verb reads the text first and says what is odd: its language, wrong encodings, users with
    one message, repeated messages, users who wrote most of it. Then it says what it chose. The
    recipes that it writes explain every key.

    The figures are printed for the person who holds the text; no guarantee covers them.
    """
    from rich.console import Console
    from rich.markup import escape

    from pfl_lm.project.prepare import Preparation
    from pfl_lm.project.prepare import prepare as prepare_text

    console = Console(highlight=False)

    def say(line: str) -> None:
        name, _, rest = line.partition(": ")
        style = "bold yellow" if name == "odd" else "bold"
        console.print(f"[{style}]{escape(name)}[/{style}]: {escape(rest)}")

    choice = Preparation(
        inputs, tuple(public or ()), locale, size, user_field, text_field, max_malformed
    )
    prepare_text(choice, output, say)
    console.print("Next:", style="bold")
    run = Path("runs") / output.resolve().name
    commands = [["simulate", output / "scenario.toml", "-o", run]]
    if public:
        commands.insert(0, ["pretrain", output / "pretraining.toml", "-o", output / "start.pt"])
    for words in commands:
        console.print(f"  {escape(shlex.join(['pfl-lm', *map(str, words)]))}", soft_wrap=True)
