"""`pfl-lm protocol`: conformance vectors of the secure aggregation protocol."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pfl_lm.cli.bounds import number
from pfl_lm.cli.tables import print_table

if TYPE_CHECKING:
    from rich.table import Table

    from pfl_lm.conformance.vectors import Vector
    from pfl_lm.conformance.verify import Result

_MISMATCHES_SHOWN = 10

app = typer.Typer(
    no_args_is_help=True,
    help="Hold a device of your own, in any language, against the secure aggregation protocol.",
)


@app.command()
def vectors(
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder to write; must be new.")],
) -> None:
    """Write the conformance vectors, one JSON file each: the same bytes at every call.

    A positive vector has the fields kind, inputs and output. A negative one has, in the place of
    output, the code of the refusal, the rule of PROTOCOL.md that it breaks, and the name of the
    positive vector from which it differs in one input. `index.json` names all of them.
    """
    from pfl_lm.conformance.suite import suite
    from pfl_lm.conformance.vectors import write_vectors

    made = suite()
    count = write_vectors(made, output)
    accepted = sum(vector.positive for vector in made)
    typer.echo(f"{output}: {count} vectors, {accepted} positive, {count - accepted} negative")


@app.command()
def verify(
    command: Annotated[
        str, typer.Argument(help="Starts the implementation; quoted, with its arguments.")
    ],
    source: Annotated[
        Path | None,
        typer.Option("--vectors", help="A folder of `protocol vectors` [made on the spot]."),
    ] = None,
    kind: Annotated[
        list[str] | None, typer.Option(help="Ask for vectors of this kind only; may be repeated.")
    ] = None,
    timeout: Annotated[float, number(0.01, 3600, "Seconds to wait for an answer.")] = 10.0,
) -> None:
    """Ask an implementation for every vector, and print a table by kind.

    The implementation reads one JSON request a line from standard input, {"kind": …, "inputs": …},
    and writes one answer a line to standard output: {"output": …}, {"refused": code}, or
    {"unsupported": kind} for a kind that it does not have yet. The codes are malformed, refused,
    wrong_state and invalid. The exit status is 1 if an answer differs or is missing.
    """
    from rich.console import Console
    from rich.progress import track

    from pfl_lm.conformance.verify import verify as ask

    results = []
    chosen = _chosen(source, kind)
    answers = ask(command, chosen, timeout)
    screen, hidden = Console(stderr=True), not sys.stderr.isatty()
    bar: dict[str, Any] = {
        "total": len(chosen),
        "console": screen,
        "transient": True,
        "disable": hidden,
    }
    for result in track(answers, "vectors", **bar):
        results.append(result)
        if result.problem and sum(r.problem is not None for r in results) <= _MISMATCHES_SHOWN:
            typer.echo(f"{result.vector.name} ({result.vector.kind}): {result.problem}", err=True)
    print_table(_table(results))
    conforming = sum(result.conforms for result in results)
    typer.echo(f"{conforming} of {len(results)} vectors conform")
    if conforming < len(results):
        raise typer.Exit(1)


@app.command()
def answer() -> None:
    """Answer requests of `protocol verify` with this library: the reference implementation."""
    from pfl_lm.conformance.verify import serve

    serve(sys.stdin, sys.stdout)


@app.command()
def device() -> None:
    """Print the folder of the device in JavaScript, whose answer.mjs answers vectors in Node."""
    from pfl_lm.web_device import FOLDER

    typer.echo(FOLDER)


def _chosen(source: Path | None, kinds: list[str] | None) -> list[Vector]:
    from pfl_lm.conformance.suite import suite
    from pfl_lm.conformance.vectors import read_vectors

    found = suite() if source is None else read_vectors(source)
    known = sorted({vector.kind for vector in found})
    for kind in kinds or ():
        if kind not in known:
            raise ValueError(f"--kind {kind}: expected one of {', '.join(known)}")
    return [vector for vector in found if not kinds or vector.kind in kinds]


def _table(results: Iterable[Result]) -> Table:
    from rich.table import Table

    by_kind: dict[str, list[Result]] = {}
    for result in results:
        by_kind.setdefault(result.vector.kind, []).append(result)
    table = Table("kind", box=None)
    for heading in ("positive", "negative", "conform", "differ", "unsupported"):
        table.add_column(heading, justify="right")
    for kind, found in by_kind.items():
        positive = sum(result.vector.positive for result in found)
        counts = (
            positive,
            len(found) - positive,
            sum(result.conforms for result in found),
            sum(result.problem is not None for result in found),
            sum(result.unsupported for result in found),
        )
        table.add_row(kind, *map(str, counts))
    return table
