"""The command line: one module for each verb.

The modules import torch and the like only when a verb runs, so `--help` answers at once.
"""

from __future__ import annotations

import signal
import sys

import typer

from pfl_lm.cli import (
    arguments,
    audit,
    check,
    compare,
    device,
    errors,
    evaluate,
    explain,
    export,
    grow,
    interop,
    launch,
    mixture,
    network,
    new,
    population,
    prepare,
    privacy,
    protocol,
    recipes,
    report,
    simulate,
    suggest,
    sweep,
    tokenizer,
    training,
    watch,
    words,
)
from pfl_lm.interrupts import end_by_exceptions
from pfl_lm.version import __version__

INTERRUPTED = 130  # the status that typer, as a shell, makes of Ctrl-C

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command()(prepare.prepare)
app.add_typer(tokenizer.app, name="tokenizer")
app.add_typer(population.app, name="population")
population.app.command("import")(interop.import_population)
population.app.command("export")(interop.export_population)
app.command()(new.new)
app.command()(recipes.recipes)
app.command()(explain.explain)
app.command()(explain.schema)
app.command()(training.pretrain)
app.command()(simulate.simulate)
app.command()(sweep.sweep)
app.command()(simulate.demo)
app.command()(network.enrol)
app.command()(network.serve)
app.add_typer(device.app, name="device")
app.command()(suggest.suggest)
app.command()(evaluate.evaluate)
app.command()(report.report)
app.command()(compare.compare)
app.command()(watch.watch)
app.add_typer(words.app, name="words")
app.command()(grow.grow)
app.command()(launch.launch)
app.add_typer(mixture.app, name="mixture")
app.add_typer(privacy.app, name="privacy")
app.add_typer(protocol.app, name="protocol")
app.command()(check.check)
app.command()(audit.audit)
app.add_typer(export.app, name="export")
app.command()(export.keyboard)


@app.callback(invoke_without_command=True)
def pfl_lm(
    version: bool = typer.Option(False, "--version", help="Print the version and exit."),
) -> None:
    """Train a keyboard's next-word model on text that never leaves the phone.

    `pfl-lm demo` shows all of it in a few minutes. `pfl-lm new` writes a project of your own, and
    `pfl-lm recipes` lists what else there is to start from.
    """
    if version:
        typer.echo(f"pfl-lm {__version__}")
        raise typer.Exit


def main() -> None:
    """Run a verb; whatever ends it is one line on standard error (see :mod:`pfl_lm.cli.errors`)."""
    errors.hold_streams()
    errors.write_anything()
    errors.tell_of_threads()
    end_by_exceptions()
    try:
        arguments.refuse_empty(sys.argv[1:])
        arguments.refuse_other_encodings(sys.argv[1:])
        app()
    except Exception as error:
        if errors.lets_through(error):
            raise
        if simulate.speaks():
            red, plain = ("\033[31m", "\033[0m") if errors.is_coloured(sys.stderr) else ("", "")
            for line in errors.lines_of(error):
                print(f"{red}pfl-lm: {line}{plain}", file=sys.stderr)
        raise SystemExit(errors.status_of(error)) from None
    except SystemExit as ended:
        if ended.code == INTERRUPTED:
            signal.signal(signal.SIGINT, signal.SIG_IGN)  # a second Ctrl-C ends nothing half
            if simulate.speaks():
                print("pfl-lm: interrupted", file=sys.stderr)
        raise
