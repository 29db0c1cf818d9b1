"""`pfl-lm serve --hostile CASE`: attack a device that calls, and say whether it was cheated."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pfl_lm.cli.serving import Calls, quieten
from pfl_lm.cli.tables import print_table

if TYPE_CHECKING:
    from pfl_lm.network.hostile.watch import Outcome
    from pfl_lm.network.web import Browsers
    from pfl_lm.run.scenario import Scenario

OUTCOMES = "hostile.json"


def _list(value: str | None) -> str | None:
    """Print the cases and end, where they are asked for."""
    if value != "list":
        return value
    from rich.table import Table

    from pfl_lm.network.hostile.cases import CASES

    table = Table("case", "what the server does", box=None)
    for case in CASES.values():
        only = {"active": " (signed rounds)", "semi-honest": " (unsigned rounds)"}
        table.add_row(case.name, case.sentence + only.get(case.rounds or "", ""))
    print_table(table)
    raise typer.Exit


Hostile = Annotated[
    str | None,
    typer.Option(
        metavar="CASE",
        is_eager=True,
        callback=_list,
        help="Attack the device that calls, and say whether it was cheated: one case, several "
        "with commas, all; `--hostile list` names them. For tests of clients.",
    ),
]

Device = Annotated[
    str | None,
    typer.Option(
        metavar="COMMAND",
        help="With --hostile: starts the device, for each case anew; {case} stands for its name, "
        "with --web-listen {page} for the address below which devices call.",
    ),
]


def attack(
    cases: str,
    command: str | None,
    scenario: Scenario,
    keys: Path,
    calls: Calls,
    browsers: Browsers | None,
    trial: bool,
    output: Path,
) -> None:
    """Play cases, print how each ended, and end with status 1 if the device was cheated.

    Args:
        calls: the address for gRPC, and how long a device that says nothing is waited for.
        browsers: where devices call over HTTPS, if they do.
    """
    quieten()
    from rich.console import Console

    from pfl_lm.network.hostile.cases import chosen
    from pfl_lm.network.hostile.run import Command, play_all, prepare, write_outcomes
    from pfl_lm.network.hostile.watch import Patience
    from pfl_lm.network.identity import ServerKeys

    wanted = chosen(cases)
    if (output / OUTCOMES).exists():
        raise ValueError(f"{output / OUTCOMES} exists already; choose another folder")
    if command and browsers is not None:
        command = command.replace("{page}", browsers.at.page)
    start = Command(command, output) if command else None
    patience = Patience(calls.training_seconds, calls.phase_seconds)
    prepared = prepare(scenario, ServerKeys(keys), calls.listen, patience, trial, start, browsers)
    output.mkdir(parents=True, exist_ok=True)
    screen = Console(stderr=True)
    outcomes: list[Outcome] = []
    where = calls.listen if browsers is None else browsers.at.page
    told = "" if command else f" on {where}: start the device now, and again for each case"
    screen.print(f"{len(wanted)} cases{told}", highlight=False)
    for outcome in play_all(prepared, wanted):
        outcomes.append(outcome)
        screen.print(f"{outcome.case.name}: {outcome.verdict}", highlight=False)
    write_outcomes(outcomes, output / OUTCOMES)
    _print(outcomes)
    if any(outcome.verdict.fails for outcome in outcomes):
        raise typer.Exit(1)


def _print(outcomes: list[Outcome]) -> None:
    from rich.markup import escape
    from rich.table import Table

    table: Any = Table("case", "the device", "what it did", box=None)
    for outcome in outcomes:
        table.add_row(outcome.case.name, outcome.verdict, escape(outcome.reason))
    print_table(table)
    played = [outcome for outcome in outcomes if outcome.verdict != "not played"]
    withstood = sum(not outcome.verdict.fails for outcome in played)
    typer.echo(f"the device withstood {withstood} of {len(played)} cases that were played")
