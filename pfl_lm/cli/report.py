"""`pfl-lm report`: the page of a run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pfl_lm.cli.outputs import destination


def report(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a run, finished or not.")],
    output: Annotated[
        Path | None,
        destination("File to write [RUN/report.html]."),
    ] = None,
) -> None:
    """Write one HTML page about a run, which needs no other file and no network."""
    from pfl_lm.report.page import write_report

    if output is not None and output.is_dir():
        raise ValueError(f"--output {output} is a folder; name the file to write")
    typer.echo(write_report(run, output))
