"""`pfl-lm report`: the page of a run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pfl_lm.cli.outputs import page_option


def report(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a run, finished or not.")],
    output: Annotated[
        Path | None,
        page_option("File to write [RUN/report.html]."),
    ] = None,
) -> None:
    """Write one HTML page about a run, which needs no other file and no network."""
    from pfl_lm.report.page import write_report

    typer.echo(write_report(run, output))
