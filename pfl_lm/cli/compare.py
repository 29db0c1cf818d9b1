"""`pfl-lm compare`: which run is better, and whether it is luck."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pfl_lm.cli.bounds import number
from pfl_lm.cli.outputs import page_option
from pfl_lm.cli.tables import print_table

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from pfl_lm.report.comparison.compare import Comparison, Judged

_SETTINGS_SHOWN = 12


def compare(
    runs: Annotated[
        list[Path], typer.Argument(metavar="RUN RUN...", help="Folders of two or more runs.")
    ],
    users: Annotated[
        int, number(2, 10**6, "Held-out users to measure all models on, at most.")
    ] = 300,
    population: Annotated[
        Path | None,
        typer.Option(help="Folder of the first run's population [found near the run]."),
    ] = None,
    tokenizer: Annotated[
        Path | None,
        typer.Option(help="Folder of the first run's vocabulary [found near the run]."),
    ] = None,
    output: Annotated[Path, page_option("HTML page to write.")] = Path("comparison.html"),
) -> None:
    """Compare runs with the first one: settings, quality, ε, cost.

    All models are measured on the same held-out users. Differences come with intervals over users
    (a paired bootstrap). Runs that differ in the seed alone tell how far luck moves a figure; no
    difference is called one that is not larger than that.
    """
    from rich.console import Console
    from rich.markup import escape

    from pfl_lm.native.tuning import tune
    from pfl_lm.report.comparison.compare import compare as compare_runs
    from pfl_lm.report.comparison.page import cost_rows, write_comparison

    tune(1)
    comparison = compare_runs(runs, users, population, tokenizer, _say)
    console = Console(highlight=False)
    _show_settings(console, comparison)
    for judged in comparison.judged:
        console.print(f"\n[bold]{escape(f'{judged.name} beside {comparison.names[0]}')}[/bold]")
        for sentence in judged.verdicts:
            console.print(f"  {escape(sentence)}")
        if judged.differences:
            print_table(_differences(comparison, judged), console)
    console.print("\n[bold]ε and cost[/bold]")
    print_table(_rows(comparison.names, cost_rows(comparison)), console)
    for note in comparison.notes:
        console.print(escape(note), style="dim")
    page = write_comparison(comparison, output)
    console.print(f"[bold]Page[/bold]  {escape(str(page))}", soft_wrap=True)


def _show_settings(console: Console, comparison: Comparison) -> None:
    rows = [(setting.key, list(setting.values)) for setting in comparison.settings]
    if not rows:
        console.print("[bold]All settings are alike[/bold]")
        return
    left = len(rows) - _SETTINGS_SHOWN
    more = f" (and {left} more on the page)" if left > 0 else ""
    console.print(f"[bold]Settings that differ[/bold]{more}")
    print_table(_rows(comparison.names, rows[:_SETTINGS_SHOWN]), console)


def _differences(comparison: Comparison, judged: Judged) -> Table:
    from pfl_lm.report.comparison.compare import figure_text, shown

    columns = ("", comparison.names[0], judged.name, "difference", "95% from", "to")
    table = _table(columns)
    for d in judged.differences:
        sizes = (shown(d.figure, value) for value in (d.value, d.low, d.high))
        figures = (figure_text(d.figure, value) for value in (d.first, d.second))
        table.add_row(d.figure.name, *figures, *sizes)
    return table


def _rows(names: tuple[str, ...], rows: list[tuple[str, list[str]]]) -> Table:
    from rich.markup import escape

    table = _table(("", *names))
    for name, values in rows:
        table.add_row(escape(name), *(escape(value) for value in values))
    return table


def _table(columns: tuple[str, ...]) -> Table:
    from rich.markup import escape
    from rich.table import Table

    table = Table()
    for place, column in enumerate(columns):
        table.add_column(escape(column), justify="right" if place else "left", overflow="fold")
    return table


def _say(line: str) -> None:
    print(line, file=sys.stderr)
