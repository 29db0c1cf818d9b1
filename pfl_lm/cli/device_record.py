"""`pfl-lm device record`: what this phone took part in, by its own record."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from pfl_lm.cli.outputs import language_option, page_option


def record(
    path: Annotated[Path, typer.Argument(metavar="RECORD", help="File that `device run` keeps.")],
    output: Annotated[
        Path | None,
        page_option("Also write a page (HTML) to this file."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print every field as JSON.")] = False,
    language: Annotated[str, language_option("Language of the sentences and of the page")] = "en",
) -> None:
    """Say what this phone took part in.

    One line a round: when, in which run and round, under which policy, and ε of all rounds so far
    together, against everyone, the server included. Nothing is sent and nothing is changed.
    """
    from pfl_lm.network.participation_record import ParticipationRecord
    from pfl_lm.network.record_page import summary, table, write_page
    from pfl_lm.translations import Language

    if not path.is_file():
        raise ValueError(f"{path}: no such record; `pfl-lm device run` keeps one beside the key")
    reader, kept = Language.of(language), ParticipationRecord(path, read_only=True)
    if as_json:
        total = kept.total
        content = {
            "installation": asdict(kept.installation),
            "total": total and {"epsilon": total.epsilon, "delta": total.delta},
            "participations": [asdict(entry) for entry in kept.participations()],
        }
        typer.echo(json.dumps(content, indent=2))
    else:
        typer.echo("\n".join(summary(kept, reader)))
        _print(table(kept, reader))
    if output is not None:
        write_page(kept, output, reader)
        typer.echo(f"wrote {output}", err=as_json)


def _print(rows: list[tuple[str, ...]]) -> None:
    """Print columns; a cell is as wide as a terminal shows it."""
    from rich.cells import cell_len, set_cell_size

    widths = [max(map(cell_len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = map(set_cell_size, row, widths)
        typer.echo("  ".join(cells).rstrip())
