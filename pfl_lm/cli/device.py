"""`pfl-lm device`: a phone's side of training, and what training costs phones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pfl_lm.cli.bounds import number
from pfl_lm.cli.browsers import link
from pfl_lm.cli.device_record import record
from pfl_lm.cli.network import device
from pfl_lm.cli.recipes import ScenarioPath, Settings, read
from pfl_lm.cli.tables import print_table

if TYPE_CHECKING:
    from rich.table import Table

    from pfl_lm.phones.fleet import Fleet

_WIDE = 110  # columns of a terminal that hold what memory is made of, too

app = typer.Typer(help="Train as a phone does, and see which phones can.", no_args_is_help=True)
app.command("run")(device)
app.command("record")(record)
app.command("link")(link)


@app.command()
def cost(
    recipe: ScenarioPath,
    fleet: Annotated[
        Path | None,
        typer.Option(
            help="A fleet file, or the name of a shipped one [the scenario's, or fleets/mixed]."
        ),
    ] = None,
    budget: Annotated[
        list[float] | None,
        number(0, 10**9, "List the methods that fit into this memory, in MB; may be repeated."),
    ] = None,
    measure: Annotated[
        bool,
        typer.Option(help="Train one device by each method and measure its memory; takes minutes."),
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print every figure as JSON.")] = False,
    settings: Settings = None,
) -> None:
    """Show what training costs a phone, by each known method, and which phones can hold it.

    Each row is one method to train the scenario's model: the memory at the peak of training, the
    operations, the bytes down and up, and the seconds that a phone of each profile takes, or "no
    room". Predicted memory lies within a tenth of what `--measure` finds. A terminal of 110 columns
    or more, and `--json`, also show what the memory is made of.
    """
    from rich.console import Console

    from pfl_lm.phones.fleet import Fleet
    from pfl_lm.recipes import load, names_recipe
    from pfl_lm.run.scenario import Scenario

    scenario = read(Scenario, recipe, settings)
    path = fleet or scenario.fleet or Path("fleets/mixed")
    if fleet is not None and not names_recipe(fleet):
        raise ValueError(f"--fleet {fleet}: no such fleet file, and no shipped fleet of that name")
    phones = load(Fleet, path)
    rows = _rows(scenario, phones, measure)
    if as_json:
        typer.echo(json.dumps(rows, indent=2))
        return
    console = Console()
    print_table(_table(rows, phones, path.stem, parts=console.width >= _WIDE), console)
    for limit in budget or []:
        within = [row for row in rows if row["peak_bytes"] <= limit * 1e6]
        names = "; ".join(row["method"] for row in within) or "nothing"
        console.print(f"[bold]{limit:g} MB[/] hold: {names}")


def _rows(scenario: Any, fleet: Fleet, measure: bool) -> list[dict[str, Any]]:
    """Count what the scenario asks of a phone as it stands, and by each known method."""
    from pfl_lm.run.device_cost import device_cost
    from pfl_lm.run.training_methods import TRAINING_METHODS

    rows = [{"method": "as it stands", **device_cost(scenario, fleet, measure)}]
    for method in TRAINING_METHODS:
        try:
            changed = method.apply(scenario)
            rows.append({"method": method.name, **device_cost(changed, fleet, measure)})
        except ValueError:  # the model has no such parts
            continue
    return rows


def _table(rows: list[dict[str, Any]], fleet: Fleet, name: str, parts: bool) -> Table:
    from rich import box
    from rich.table import Table

    title = f"Fleet {name}: {fleet.description}"
    table = Table(title=title, title_style="bold", title_justify="left", box=box.SIMPLE_HEAD)
    table.padding = (0, 1, 0, 0)  # so that 80 columns hold three profiles
    memory = ("peak", "model", "payload", "work") if parts else ("peak",)
    table.add_column("method", no_wrap=True)
    for column in memory:
        table.add_column(f"{column}\nMB", justify="right")
    for column in ("work\nGFLOP", "down\nKB", "up\nKB"):
        table.add_column(column, justify="right")
    for profile, phone in fleet.profiles.items():
        room = f"{phone.training_memory_mb:g} MB"
        table.add_column(f"{profile}\n{room}\ns", justify="right", no_wrap=True)
    for row in rows:
        sizes = (row[f"{part}_bytes"] / 1e6 for part in memory)
        traffic = (row[f"{name}_bytes"] / 1e3 for name in ("download", "upload"))
        seconds = (
            f"{row['seconds'][profile]:.1f}" if row["fits"][profile] else "[red]no room[/]"
            for profile in fleet.names
        )
        table.add_row(
            row["method"],
            *(f"{size:.1f}" for size in sizes),
            f"{row['flops'] / 1e9:.1f}",
            *(f"{size:,.0f}" for size in traffic),
            *seconds,
        )
    return table
