"""`pfl-lm watch`: a run's page while it goes on."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pfl_lm.cli.bounds import number


def watch(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a run that goes on.")],
    port: Annotated[int, number(0, 65_535, "Port of the local server; 0 takes a free one.")] = 8011,
    browser: Annotated[bool, typer.Option(help="Open the page in a browser.")] = True,
) -> None:
    """Show a run's page while it goes on, with buttons that pause and stop it.

    The page is served to this machine alone. Stop does what Ctrl-C does: the run ends after the
    round that it has paid for, and `--resume` continues it. TensorBoard shows the same figures:
    `tensorboard --logdir runs`.
    """
    from pfl_lm.report.watch import serve

    serve(run, port, browser, typer.echo)
