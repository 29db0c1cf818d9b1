"""`pfl-lm report`: the page of a run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def report(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a run, finished or going.")],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="File to write [RUN/report.html].")
    ] = None,
) -> None:
    """Write one self-contained HTML page about a run."""
    from pfl_lm.report.page import write_report

    if output is not None and output.is_dir():
        raise ValueError(f"--output {output} is a folder; name the file to write")
    typer.echo(write_report(run, output))
