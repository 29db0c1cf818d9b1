"""``pfl-lm population``: turn text by user into a store, look at one."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from pfl_lm.cli.bounds import number
from pfl_lm.cli.outputs import destination

app = typer.Typer(no_args_is_help=True, help="Build and inspect populations of users.")

# Choices that every way of building a population offers.
Vocabulary = Annotated[
    Path, typer.Option("--tokenizer", help="Folder that `tokenizer build` wrote.")
]
Output = Annotated[Path, destination("Folder to write.")]
Split = Annotated[str, typer.Option(help="Shares of users in train, validation, test.")]
SplitKey = Annotated[
    str,
    typer.Option(help="Key of the digest that splits users; the same key gives the same split."),
]
Name = Annotated[str | None, typer.Option(help="Name of the population.")]
MaxMalformed = Annotated[float, number(0, 1, "Share of records that may be malformed.")]
KeepUserIds = Annotated[
    bool, typer.Option("--keep-user-ids", help="Also store the user ids as they are.")
]
KeepUnknownWords = Annotated[
    bool,
    typer.Option(
        "--keep-unknown-words",
        help="Also store, by user, the words that the vocabulary lacks: `words discover` asks "
        "for them.",
    ),
]

_Files = Annotated[
    list[Path] | None,
    typer.Option(help="Input whose users all belong to this split; may be repeated."),
]


@app.command()
def build(
    tokenizer: Vocabulary,
    output: Output,
    inputs: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="[INPUT]...",
            help="JSONL, CSV, Parquet or LEAF JSON, plain or compressed (.gz .bz2 .xz .zst), or a "
            "folder with one .txt per user; users are split by a digest of their id.",
        ),
    ] = None,
    train: _Files = None,
    validation: _Files = None,
    test: _Files = None,
    split: Split = "0.8,0.1,0.1",
    split_key: SplitKey = "pfl_lm",
    name: Name = None,
    user_field: Annotated[str, typer.Option(help="JSON key or column of the user id.")] = "user",
    text_field: Annotated[
        str, typer.Option(help="JSON key or column of the text; in LEAF, x or x.N.")
    ] = "text",
    keep_user_ids: KeepUserIds = False,
    keep_unknown_words: KeepUnknownWords = False,
    max_malformed: MaxMalformed = 0.001,
    workers: Annotated[
        int | None, number(1, 1024, "Number of processes [one for each processor].")
    ] = None,
) -> None:
    """Build a population from text by user: a folder that training reads through memory maps."""
    from pfl_lm.text.population_build import BuildOptions, Input, build_population
    from pfl_lm.text.tokenizer import Tokenizer

    options = BuildOptions(
        name=name or output.name,
        fractions=fractions(split),
        split_key=split_key,
        keep_user_ids=keep_user_ids,
        keep_unknown_words=keep_unknown_words,
        user_field=user_field,
        text_field=text_field,
        max_malformed=max_malformed,
        workers=os.cpu_count() or 1 if workers is None else workers,
    )
    chosen = [Input(path) for path in inputs or []]
    for of_split, paths in (("train", train), ("validation", validation), ("test", test)):
        chosen += [Input(path, of_split) for path in paths or []]
    opened = Tokenizer.open(tokenizer)
    with progress_bar() as progress:
        profile = build_population(chosen, opened, output, options, progress)
    for example in profile["provenance"]["malformed_examples"]:
        typer.echo(f"skipped {example}", err=True)
    print_profile(profile, output)


@app.command("public-text")
def public_text(
    inputs: Annotated[
        list[Path], typer.Argument(help="Public text: .txt or .jsonl, one message in a line.")
    ],
    tokenizer: Vocabulary,
    output: Output,
    text_field: Annotated[str, typer.Option(help="JSON key of the text.")] = "text",
    turns: Annotated[
        int | None,
        number(1, 1_000_000, "Lines of each file in turn, such as 20 for files of two languages."),
    ] = None,
) -> None:
    """Encode public text, which has no users, for pretraining and for public baselines."""
    from pfl_lm.text.public_text import naming_users, public_tokens
    from pfl_lm.text.tokenizer import Tokenizer

    words = Tokenizer.open(tokenizer)
    profile = public_tokens(inputs, words, output, text_field, turns)
    for line in naming_users(inputs):
        typer.echo(f"warning: {line}", err=True)
    print_profile(profile, output)


@app.command()
def describe(
    folder: Annotated[Path, typer.Argument(help="A folder that `population build` wrote.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show users, messages, words, OOV rate, the distribution per user, and provenance."""
    from pfl_lm.text.population import PopulationStore

    profile = PopulationStore.open(folder).describe()
    if as_json:
        typer.echo(json.dumps(profile, indent=1, ensure_ascii=False))
    else:
        print_profile(profile, folder)


def fractions(text: str) -> tuple[float, float, float]:
    """Read the shares of train, validation and test."""
    try:
        train, validation, test = (float(part) for part in text.split(","))
    except ValueError:
        raise ValueError(f"--split {text}: expected three numbers such as 0.8,0.1,0.1") from None
    return train, validation, test


@contextmanager
def progress_bar() -> Iterator[Callable[[int, int], None]]:
    """Show a bar over bytes read, on standard error, and nothing where that is no terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn

    console = Console(stderr=True)
    columns = ("reading", BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("reading", total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total or None)


def print_profile(profile: dict[str, Any], folder: Path) -> None:
    """Show what a population holds, and where it came from."""
    provenance = profile["provenance"]
    typer.echo(f"population  {profile['name']} ({folder})")
    typer.echo(f"tokenizer   {profile['vocabulary_size']:,} ids, {profile['tokenizer_digest']}")
    typer.echo("")
    typer.echo(f"{'split':<12}{'users':>12}{'messages':>14}{'words':>15}{'OOV rate':>10}")
    for split, row in profile["splits"].items():
        typer.echo(
            f"{split:<12}{row['users']:>12,}{row['messages']:>14,}{row['words']:>15,}"
            f"{row['oov_rate']:>10.2%}"
        )
    typer.echo("")
    columns = list(profile["per_user"]["words"])
    typer.echo(f"{'per user':<12}" + "".join(f"{column:>12}" for column in columns))
    for what, row in profile["per_user"].items():
        typer.echo(f"{what:<12}" + "".join(f"{row[column]:>12,}" for column in columns))
    typer.echo("")
    for item in provenance["inputs"]:
        typer.echo(f"input       {item['file']} ({item.get('split', 'public text')})")
    for note in [*provenance.get("notes", ()), *_missing(profile)]:
        typer.echo(f"note        {note}")
    if "malformed" in provenance:
        typer.echo(
            f"skipped     {provenance['malformed']:,} malformed records, "
            f"{provenance['messages_without_words']:,} messages without a word"
        )


def _missing(profile: dict[str, Any]) -> list[str]:
    """Say what cannot be done with a population that lacks users in a split."""
    if profile["holds"] != "users":
        return []
    needs = {"train": "training", "validation": "evaluation between rounds", "test": "evaluation"}
    return [
        f"no users in {split}: {need} is not possible; build from more users, or name a file with "
        f"--{split}"
        for split, need in needs.items()
        if not profile["splits"][split]["users"]
    ]
