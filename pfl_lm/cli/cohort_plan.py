"""`pfl-lm privacy plan`: cohorts and lengths that an ε against everyone allows, side by side."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from pfl_lm.cli.bounds import number
from pfl_lm.cli.tables import print_table

if TYPE_CHECKING:
    from pfl_lm.dp.cohort_plan import CohortPlan, People

REPORTS, ROUNDS = (1_000, 5_000, 20_000, 40_000), (150, 500, 1_000)


def _listed(numbers: tuple[int, ...]) -> str:
    return ", ".join(f"{number:,}" for number in numbers)


def plan(
    population: Annotated[int, number(1, 10**12, "People whose phones may be asked.")],
    epsilon: Annotated[float, number(1e-9, 1e9, "ε of a whole training, for each of them.")],
    delta: Annotated[
        float | None, number(1e-300, 1 - 1e-9, "Its δ [a tenth of 1/population].")
    ] = None,
    reachable: Annotated[
        int | None,
        number(1, 10**12, "People that a rotation may count on; some phones never report [all]."),
    ] = None,
    reports: Annotated[
        list[int] | None,
        number(1, 10**12, f"Reports of a round; repeatable [{_listed(REPORTS)}]."),
    ] = None,
    rounds: Annotated[
        list[int] | None, number(1, 10**6, f"Rounds; repeatable [{_listed(ROUNDS)}].")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show how noisy a round's mean is, by reports of a round and by rounds.

    Phones add Skellam noise themselves and join in rotation, so that ε holds against the server
    too. The noise in a mean is what training has to see through; upload and battery of a phone
    grow with its joins.

    With every phone in k rounds the sum's noise grows by √k and the cohort by k: at the same ε and
    as many rounds, the mean has √k less noise.
    """
    from pfl_lm.dp.cohort_plan import People, plan

    people = People(population, reachable or population, epsilon, delta or 0.1 / population)
    fitting = [count for count in REPORTS if count <= people.reachable] or [people.reachable]
    plans = [
        plan(people, count, length) for length in rounds or ROUNDS for count in reports or fitting
    ]
    if as_json:
        typer.echo(json.dumps([asdict(p) | {"noise_of_mean": p.noise_of_mean} for p in plans]))
    else:
        _print(people, plans)


def _print(people: People, plans: list[CohortPlan]) -> None:
    from rich.console import Console
    from rich.table import Table

    from pfl_lm.numbers import format_epsilon

    promise = f"ε = {format_epsilon(people.epsilon)}, δ = {people.delta:g}"
    table = Table(
        title=f"{people.population:,} people, {people.reachable:,} of them reachable\n"
        f"{promise} against everyone, the server included"
    )
    for column in ("rounds", "reports", "joins", "rounds between", "noise on sum", "in mean"):
        table.add_column(column, justify="right")
    for place, row in enumerate(plans):
        table.add_row(
            f"{row.rounds:,}",
            f"{row.reports:,}",
            f"{row.joins:,}",
            f"{row.separation:,}" if row.joins > 1 else "–",
            f"{row.noise_multiplier:.3f}",
            f"{row.noise_of_mean:.2e}",
            end_section=place + 1 < len(plans) and plans[place + 1].rounds != row.rounds,
        )
    console = Console()
    print_table(table, console)
    console.print(
        "joins: rounds that a phone is in, at most. Noise: standard deviation of a coordinate, in "
        "clip norms.",
        style="dim",
    )
