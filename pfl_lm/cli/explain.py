"""`pfl-lm explain` and `pfl-lm schema`: what may stand in a recipe."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated

import typer

from pfl_lm.reference.kinds import KINDS

if TYPE_CHECKING:
    from rich.console import Console

    from pfl_lm.reference.keys import Key


def _kinds(incomplete: str) -> list[str]:
    return [kind for kind in KINDS if kind.startswith(incomplete)]


def _keys(context: typer.Context, incomplete: str) -> list[str]:
    from pfl_lm.reference.keys import keys_of
    from pfl_lm.reference.kinds import kind_of

    kind = context.params.get("kind")
    if kind not in KINDS:
        return []
    return [key.name for key in keys_of(kind_of(kind)) if key.name.startswith(incomplete)]


Kind = Annotated[
    str, typer.Argument(metavar="|".join(KINDS), autocompletion=_kinds, show_default=False)
]


def explain(
    kind: Kind,
    key: Annotated[
        str | None,
        typer.Argument(metavar="[KEY]", autocompletion=_keys, help="Its dotted name, or a table."),
    ] = None,
) -> None:
    """Explain the keys of a recipe: meaning, unit, choices, default.

    Without a key all are listed. `pfl-lm explain scenario training.epochs` explains one,
    `pfl-lm explain scenario training` a table.
    """
    from rich.console import Console

    from pfl_lm.reference.keys import find_key, keys_of, within
    from pfl_lm.reference.kinds import kind_of

    dataclass, console = kind_of(kind), Console(highlight=False)
    if key is None:
        keys = list(keys_of(dataclass))
    else:
        entry = find_key(dataclass, key)
        keys = [entry, *(within(dataclass, entry) if entry.table else [])]
    for entry in keys:
        _show(console, entry)


def _show(console: Console, key: Key) -> None:
    from rich.markup import escape
    from rich.padding import Padding

    from pfl_lm.project.commented import facts

    name = f"\\[{key.name}]" if key.table else key.name
    stated = "" if key.table else f"  [dim]{escape(facts(key))}[/dim]"
    console.print(f"[bold]{name}[/bold]{stated}")
    console.print(Padding(escape(key.meaning), (0, 0, 0, 4)))


def schema(kind: Kind) -> None:
    """Print the JSON Schema of a kind of recipe, by which editors complete and check TOML.

    `pfl-lm new` writes the schemas into the project and names them in each recipe, in the way that
    Taplo and the editors that build on it read.
    """
    from pfl_lm.reference.json_schema import json_schema

    typer.echo(json.dumps(json_schema(kind), indent=2, ensure_ascii=False))
