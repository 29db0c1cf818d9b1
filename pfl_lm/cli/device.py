"""`pfl-lm device`: a phone's side of training, and what training asks of phones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pfl_lm.cli.network import device

if TYPE_CHECKING:
    from rich.table import Table

    from pfl_lm.devices.fleet import Fleet

_WIDE = 110  # columns of a terminal that hold what memory is made of, too

app = typer.Typer(help="A phone's side of training.", no_args_is_help=True)
app.command("run")(device)


@app.command()
def fit(
    recipe: Annotated[Path, typer.Argument(metavar="SCENARIO", help="simulations/*.toml")],
    fleet: Annotated[
        Path | None, typer.Option(help="simulations/fleets/*.toml [the scenario's, or mixed.toml].")
    ] = None,
    budget: Annotated[
        list[float] | None,
        typer.Option(help="List the ways that take no more training memory, in MB; repeat it."),
    ] = None,
    measure: Annotated[
        bool, typer.Option(help="Train one device by each way and measure; takes minutes.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print every figure as JSON.")] = False,
) -> None:
    """Say by which ways of training a scenario fits into which phones.

    For each way: memory at the peak of training, operations, bytes down and up, and how long a
    phone of each profile takes, or that it has no room. Memory is predicted within a tenth of what
    --measure finds; a wide terminal, or --json, shows what it is made of.
    """
    from rich.console import Console

    from pfl_lm.devices.fleet import Fleet
    from pfl_lm.recipes import load
    from pfl_lm.scenario import Scenario

    scenario = load(Scenario, recipe)
    path = fleet or scenario.fleet or recipe.parent / "fleets" / "mixed.toml"
    phones = load(Fleet, path)
    rows = _rows(scenario, phones, measure)
    if as_json:
        typer.echo(json.dumps(rows, indent=2))
        return
    console = Console()
    console.print(_table(rows, phones, path.stem, parts=console.width >= _WIDE))
    for limit in budget or []:
        within = [row for row in rows if row["peak_bytes"] <= limit * 1e6]
        names = "; ".join(row["way"] for row in within) or "nothing"
        console.print(f"[bold]{limit:g} MB[/] hold: {names}")


def _rows(scenario: Any, fleet: Fleet, measure: bool) -> list[dict[str, Any]]:
    """Count what the scenario asks of a phone as it stands, and by each known way."""
    from pfl_lm.fit import cost
    from pfl_lm.ways import WAYS

    rows = [{"way": "as it stands", **cost(scenario, fleet, measure)}]
    for way in WAYS:
        try:
            changed = way.apply(scenario)
            rows.append({"way": way.name, **cost(changed, fleet, measure)})
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
    table.add_column("way", no_wrap=True)
    for column in memory:
        table.add_column(f"{column}\nMB", justify="right")
    for column in ("work\nGFLOP", "down\nKB", "up\nKB"):
        table.add_column(column, justify="right")
    for profile, phone in fleet.profiles.items():
        room = f"{phone.training_memory_mb:g} MB"
        table.add_column(f"{profile}\n{room}\ns", justify="right", no_wrap=True)
    for row in rows:
        sizes = (row[f"{part}_bytes"] / 1e6 for part in memory)
        traffic = (row[f"{way}load_bytes"] / 1e3 for way in ("down", "up"))
        seconds = (
            f"{row['seconds'][profile]:.1f}" if row["fits"][profile] else "[red]no room[/]"
            for profile in fleet.names
        )
        table.add_row(
            row["way"],
            *(f"{size:.1f}" for size in sizes),
            f"{row['flops'] / 1e9:.1f}",
            *(f"{size:,.0f}" for size in traffic),
            *seconds,
        )
    return table
