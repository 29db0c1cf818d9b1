"""The verbs. Their modules import nothing heavy until a verb runs, so that --help is instant."""

from __future__ import annotations

import sys

import typer

from pfl_lm import __version__
from pfl_lm.cli import (
    audit,
    check,
    device,
    evaluate,
    export,
    interop,
    network,
    population,
    privacy,
    report,
    simulate,
    tokenizer,
    training,
)

INTERRUPTED = 130  # the status that typer, as a shell, makes of Ctrl-C

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(tokenizer.app, name="tokenizer")
app.add_typer(population.app, name="population")
population.app.command("import")(interop.import_population)
population.app.command("export")(interop.export_population)
app.command()(training.pretrain)
app.command()(simulate.simulate)
app.command()(simulate.demo)
app.command()(network.enrol)
app.command()(network.serve)
app.add_typer(device.app, name="device")
app.command()(evaluate.evaluate)
app.command()(report.report)
app.add_typer(privacy.app, name="privacy")
app.command()(check.check)
app.command()(audit.audit)
app.add_typer(export.app, name="export")
app.command()(export.keyboard)


@app.callback(invoke_without_command=True)
def pfl_lm(
    version: bool = typer.Option(False, "--version", help="Print the version and leave."),
) -> None:
    """Train a keyboard's language model on text that never leaves the phone."""
    if version:
        typer.echo(f"pfl-lm {__version__}")
        raise typer.Exit


def main() -> None:
    """Run a verb; a user's mistake ends as one line on standard error and exit status 2."""
    try:
        app()
    except (ValueError, OSError) as error:
        if simulate.speaks():
            red, plain = ("\033[31m", "\033[0m") if sys.stderr.isatty() else ("", "")
            print(f"{red}pfl-lm: {' '.join(str(error).split())}{plain}", file=sys.stderr)
        raise SystemExit(2) from None
    except SystemExit as ended:
        if ended.code == INTERRUPTED and simulate.speaks():
            print("pfl-lm: interrupted", file=sys.stderr)
        raise
