"""`pfl-lm recipes`: the recipes that ship with the package; and how verbs take a recipe."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, TypeVar

import typer

from pfl_lm.cli.tables import print_table

T = TypeVar("T")


def _names(incomplete: str) -> list[str]:
    from pfl_lm.recipes import shipped

    return [name for name in shipped() if name.startswith(incomplete)]


# The verbs whose recipe is no scenario.
_KINDS = {"build": "tokenizer", "pretrain": "pretraining"}


def keys(context: typer.Context, incomplete: str) -> list[str]:
    """Return what the shell offers where a key of a recipe is set: ``training.epochs=``."""
    from pfl_lm.reference.keys import keys_of
    from pfl_lm.reference.kinds import kind_of

    kind = kind_of(_KINDS.get(context.info_name or "", "scenario"))
    names = (key.name for key in keys_of(kind) if not key.table)
    return [f"{name}=" for name in names if name.startswith(incomplete)]


# The argument of every verb that reads a scenario.
ScenarioPath = Annotated[
    Path,
    typer.Argument(
        metavar="SCENARIO",
        help="A scenario file, or the name of one that ships with pfl-lm (`pfl-lm recipes`).",
        autocompletion=_names,
    ),
]

# The option of every verb that reads a recipe.
Settings = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Set a key of the recipe, by its dotted name: --set training.epochs=3. An empty value "
        "takes the key out. May be repeated; `pfl-lm explain` lists the keys.",
        autocompletion=keys,
    ),
]


def read(kind: type[T], recipe: Path, settings: list[str] | None) -> T:
    """Read a recipe with the keys that were set on the command line."""
    from pfl_lm.recipes import load, parse_settings

    return load(kind, recipe, parse_settings(settings or ()))


def recipes(
    name: Annotated[
        Path | None, typer.Argument(help="Print this recipe instead of the list.")
    ] = None,
) -> None:
    """List the recipes that ship with pfl-lm, or print one.

    A verb that takes a recipe takes these names as well as files. To change one, print it into a
    file and edit that: `pfl-lm recipes chat_partial > simulations/mine.toml`.
    """
    from rich.console import Console
    from rich.table import Table

    from pfl_lm.recipes import find, shipped

    if name is not None:
        typer.echo(find(name).read_text(encoding="utf-8"), nl=False)
        return
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column()
    for known, file in shipped().items():
        table.add_row(known, _summary(file))
    print_table(table, Console(highlight=False))


def _summary(file: Path) -> str:
    """Return a recipe's description, or the first sentence of the comment that it opens with."""
    import tomllib

    text = file.read_text(encoding="utf-8")
    described = tomllib.loads(text).get("description")
    if described is not None:
        return str(described)
    lines = []
    for line in text.splitlines():
        if not line.startswith("#"):
            break
        lines.append(line.removeprefix("#").strip())
    return " ".join(lines).split(". ")[0].split(": ")[0].rstrip(".")
