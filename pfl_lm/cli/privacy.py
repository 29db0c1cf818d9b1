"""`pfl-lm privacy`: ε, noise and cohorts from options alone; a population's budget."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pfl_lm.cli.bounds import number
from pfl_lm.cli.cohort_plan import plan
from pfl_lm.cli.population_budget import population
from pfl_lm.cli.round_options import Rounds, rounds_of
from pfl_lm.cli.shared_options import with_options
from pfl_lm.cli.tables import print_table

if TYPE_CHECKING:
    from pfl_lm.dp.accounting.accountant import PrivacyCost
    from pfl_lm.dp.events import RoundEvent

app = typer.Typer(
    no_args_is_help=True,
    help="Compute ε for a noise, or the noise for an ε; plan cohorts; show what people have spent.",
)


@app.command()
@with_options(rounds=rounds_of)
def epsilon(
    noise_multiplier: Annotated[
        float,
        number(0, 1e100, "Standard deviation of the noise on the sum ÷ clip norm."),
    ],
    rounds: Rounds,
) -> None:
    """Compute ε for a noise multiplier."""
    _show(rounds, noise_multiplier)


@app.command()
@with_options(rounds=rounds_of)
def noise(
    epsilon: Annotated[float, number(1e-09, 1000000000.0, "Target ε.")],
    rounds: Rounds,
) -> None:
    """Compute the noise multiplier that an ε needs, rounded up."""
    from pfl_lm.dp.accounting.calibration import noise_multiplier

    if not 0 < epsilon < math.inf:
        raise ValueError(f"--epsilon must be positive and finite, got {epsilon}")
    _show(rounds, noise_multiplier(rounds.event, rounds.count, epsilon, rounds.delta))


def _show(rounds: Rounds, noise_multiplier: float) -> None:
    from pfl_lm.dp.accounting.accountant import compose

    event = replace(rounds.event, noise_multiplier=noise_multiplier)
    cost = compose({event: rounds.count}, rounds.delta)
    if rounds.as_json:
        shown = _as_json(event, rounds.rounds, cost)
        typer.echo(json.dumps(shown, ensure_ascii=False, allow_nan=False))
    else:
        _print_cost(event, rounds.rounds, cost)


def _as_json(event: RoundEvent, rounds: int, cost: PrivacyCost) -> dict[str, Any]:
    return {
        "epsilon": _finite(cost.epsilon),
        "epsilon_unamplified": _finite(cost.epsilon_unamplified),
        "delta": cost.delta,
        "rho": None if cost.rho is None else _finite(cost.rho),
        "noise_multiplier": event.noise_multiplier,
        "mechanism": event.mechanism,
        "sampling": event.sampling,
        "rate": event.rate,
        "rounds": rounds,
        "participations": cost.participations,
        **({} if event.stream is None else {"stream": asdict(event.stream)}),
        "adjacency": event.neighboring,
        "accountant": cost.accountant,
        "assumptions": list(cost.assumptions),
    }


def _finite(value: float) -> float | str:
    """JSON has no infinity; the string "inf" is what float() reads back."""
    return "inf" if math.isinf(value) else value


def _print_cost(event: RoundEvent, rounds: int, cost: PrivacyCost) -> None:
    from rich.console import Console
    from rich.table import Table

    from pfl_lm.numbers import format_epsilon

    table = Table(show_header=False, title=f"rounds = {rounds:,}, δ = {cost.delta:g}")
    table.add_column(style="bold")
    table.add_column(justify="right")
    table.add_column(style="dim")
    table.add_row(
        "noise multiplier", f"{event.noise_multiplier:g}", f"{event.mechanism}, on the sum ÷ clip"
    )
    if event.stream is not None:
        from pfl_lm.dp.accounting.streams import stream_sensitivity

        moved = f"{stream_sensitivity(event):.4f}"
        table.add_row("sensitivity", moved, "clip norms by which a user moves the whole stream")
    how = event.sampling if event.rate == 1 else f"{event.sampling}, rate {event.rate:g}"
    if event.sampling == "rotation":
        how = f"rotation, {cost.participations:,} a user"
    table.add_row("sampling", how, event.neighboring)
    table.add_row(
        "ε unamplified",
        format_epsilon(cost.epsilon_unamplified),
        "against a person who knows who took part or how many reported",
    )
    table.add_row(
        "ε", format_epsilon(cost.epsilon), f"from the released models ({cost.accountant})"
    )
    if cost.rho is not None:
        table.add_row("ρ", format_epsilon(cost.rho), "zero-concentrated DP")
    console = Console()
    print_table(table, console)
    for assumption in cost.assumptions:
        console.print(f"  • {assumption}", style="dim", highlight=False)


app.command()(plan)
app.command()(population)
