"""`pfl-lm sweep`: all combinations of some settings, or a search among them; one page."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pfl_lm.cli.bounds import number
from pfl_lm.cli.recipes import ScenarioPath, keys
from pfl_lm.cli.tables import print_table
from pfl_lm.cli.tracking import Track

if TYPE_CHECKING:
    from pfl_lm.api.sweep.run import Sweep


def sweep(
    recipe: ScenarioPath,
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Folder of the sweep, new or to continue.")
    ],
    choices: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE,VALUE",
            help="Values to try, by the key's dotted name: --set training.learning_rate=0.3,1,3. "
            "May be repeated: all combinations are run.",
            autocompletion=keys,
        ),
    ] = None,
    search: Annotated[
        bool,
        typer.Option("--search", help="Search by Optuna; needs the extra `search`."),
    ] = False,
    ranges: Annotated[
        list[str] | None,
        typer.Option(
            "--range",
            metavar="KEY=LOW:HIGH[:log]",
            help="Numbers to search among: --range training.learning_rate=0.1:10:log. May be "
            "repeated, beside choices by --set.",
            autocompletion=keys,
        ),
    ] = None,
    trials: Annotated[
        int | None,
        number(1, 1000, "Settings that a search tries, those of earlier calls among them [20]."),
    ] = None,
    prune: Annotated[
        bool,
        typer.Option(
            "--prune",
            help="Stop a trial that is worse on validation users than the median of earlier ones.",
        ),
    ] = False,
    seeds: Annotated[int, number(1, 100, "Runs of each combination, by seed.")] = 1,
    workers: Annotated[int, number(1, 1024, "Processes of a run.")] = 1,
    track: Track = None,
) -> None:
    """Run a scenario with many settings, and rank them on validation users.

    Every combination of the values is run. With `--search`, what to try next follows from what
    earlier trials brought.

    Each trial is a run folder. The same command continues a sweep that was stopped: finished trials
    stay, a begun one is resumed, and a search goes on with the same suggestions. Trials without
    figures are listed with the reason. One that diverged or could have learnt nothing has ended;
    any other is tried again.

    With `--seeds` the ranking has intervals over seeds. The page says what choosing among all
    trials would cost on private users; a trial that was stopped counts as a whole one, and so does
    one whose folder was removed.
    """
    from pfl_lm.api.sweep.folder import Runs
    from pfl_lm.api.sweep.run import sweep as run_sweep

    if not search and (ranges or trials is not None or prune):
        raise ValueError("--range, --trials and --prune belong to a search: add --search")
    runs = Runs(recipe, workers, tuple(track or ()), _say)
    if search:
        from pfl_lm.api.sweep.search import TRIALS, Budget
        from pfl_lm.api.sweep.search import search as run_search
        from pfl_lm.api.sweep.space import Space

        space = Space.parse(ranges or (), choices or ())
        _show(run_search(space, output, runs, Budget(trials or TRIALS, seeds, prune)))
    else:
        _show(run_sweep(choices or [], output, runs, seeds=seeds))


def _show(done: Sweep) -> None:
    """Print the ranking, what choosing costs, and where the page is."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from pfl_lm.api.sweep.page import table as rows_of
    from pfl_lm.api.sweep.page import write_page
    from pfl_lm.api.sweep.results import combinations, verdict
    from pfl_lm.numbers import percent

    ranked, console = combinations(done), Console(highlight=False)
    table = Table()
    for place, column in enumerate(("settings", "perplexity", "top-3", "keystrokes", "trials")):
        table.add_column(column, justify="right" if 0 < place < 4 else "left", overflow="fold")
    for row in rows_of(ranked):
        table.add_row(*(escape(value) for value in row))
    print_table(table, console)
    console.print(escape(verdict(ranked)))
    if done.importance:
        shares = ", ".join(f"{key} {percent(share)}" for key, share in done.importance.items())
        console.print(f"[bold]Which settings matter[/bold]  {escape(shares)}")
    console.print(f"[bold]What choosing costs[/bold]  {escape(done.cost)}")
    console.print(f"[bold]Page[/bold]  {escape(str(write_page(done)))}", soft_wrap=True)


def _say(line: str) -> None:
    print(line, file=sys.stderr)
