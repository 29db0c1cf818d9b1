"""`pfl-lm device record`: what this phone took part in, by its own record."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from pfl_lm.cli.outputs import destination


def record(
    path: Annotated[Path, typer.Argument(metavar="RECORD", help="File that `device run` keeps.")],
    output: Annotated[
        Path | None,
        destination("Also write a page (HTML) to this file."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print every field as JSON.")] = False,
) -> None:
    """Say what this phone took part in.

    One line a round: when, in which run and round, under which policy, and ε of all rounds so far
    together, against everyone, the server included. Nothing is sent and nothing is changed.
    """
    from pfl_lm.network.participation_record import ParticipationRecord
    from pfl_lm.network.record_page import summary, table, write_page

    if not path.is_file():
        raise ValueError(f"{path}: no such record; `pfl-lm device run` keeps one beside the key")
    kept = ParticipationRecord(path)
    if as_json:
        content = {
            "installation": asdict(kept.installation),
            "participations": [asdict(entry) for entry in kept.participations()],
        }
        typer.echo(json.dumps(content, indent=2))
    else:
        typer.echo("\n".join(summary(kept)))
        for row in table(kept):
            typer.echo("  ".join(row))
    if output is not None:
        write_page(kept, output)
        typer.echo(f"wrote {output}", err=as_json)
