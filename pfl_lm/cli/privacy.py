"""`pfl-lm privacy`: a calculator that needs no recipe."""

from __future__ import annotations

import functools
import inspect
import json
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from pfl_lm.dp.accounting import Spent
    from pfl_lm.dp.events import RoundEvent

app = typer.Typer(no_args_is_help=True, help="What does this noise guarantee, or this ε cost?")


class Sampling(StrEnum):
    none, poisson, fixed = "none", "poisson", "fixed"


class Adjacency(StrEnum):
    add_remove, zero_out, replace_one = "add_remove", "zero_out", "replace_one"


class Mechanism(StrEnum):
    gaussian, skellam, discrete_gaussian = "gaussian", "skellam", "discrete_gaussian"


@dataclass(frozen=True)
class Rounds:
    """Rounds of a mechanism whose noise may still be open, and the δ to state ε at."""

    event: RoundEvent
    count: int
    delta: float
    as_json: bool


def rounds_of(
    sampling: Annotated[
        Sampling,
        typer.Option(
            help="none: a user may be in every round. poisson: an independent coin each round. "
            "fixed: a uniform subset of fixed size.",
        ),
    ],
    rounds: Annotated[int, typer.Option(help="Rounds that are opened.")],
    delta: Annotated[float, typer.Option(help="Target δ; at most 1/population.")],
    adjacency: Annotated[
        Adjacency,
        typer.Option(
            help="What one user may change. Sensitivity is one clip norm, for replace_one two."
        ),
    ],
    rate: Annotated[float | None, typer.Option(help="Chance of a user to be in a round.")] = None,
    population: Annotated[int | None, typer.Option(help="Users, instead of --rate.")] = None,
    cohort: Annotated[int | None, typer.Option(help="Users in a round, with --population.")] = None,
    mechanism: Annotated[Mechanism, typer.Option(help="Noise on the sum.")] = Mechanism.gaussian,
    dim: Annotated[int, typer.Option(help="Discrete noise: coordinates on the grid.")] = 1024,
    grid_steps: Annotated[
        float, typer.Option(help="Discrete noise: the clip is this times √dim grid units long.")
    ] = 8.0,
    shares: Annotated[
        int, typer.Option(help="discrete_gaussian: shares that make up the noise.")
    ] = 1,
    as_json: Annotated[
        bool, typer.Option("--json", help='One JSON object; an infinite ε is "inf".')
    ] = False,
) -> Rounds:
    """Read the options that both verbs share.

    Raises:
        ValueError: options that contradict each other, or that no accountant has a proof for.
    """
    from pfl_lm.dp.accounting import unproven
    from pfl_lm.dp.events import RoundEvent

    event = RoundEvent(
        mechanism=mechanism.value,
        neighboring=adjacency.value,
        sampling=sampling.value,
        noise_multiplier=0.0,
        rate=_rate(sampling, rate, population, cohort),
        dim=dim,
        grid_steps=grid_steps,
        reports=shares,
    )
    if (reason := unproven([event])) is not None:
        raise ValueError(f"refused: {reason}")
    if rounds < 0:
        raise ValueError(f"--rounds must be at least 0, got {rounds}")
    if not 0 < delta < 1:
        raise ValueError(f"--delta must lie strictly between 0 and 1, got {delta}")
    return Rounds(event, rounds, delta, as_json)


def _about_rounds(verb: Callable[..., None]) -> Callable[..., None]:
    """Give a verb ``(number, rounds)`` the options of ``rounds_of`` in place of its last one."""
    (own, _), shared = (
        list(inspect.signature(function, eval_str=True).parameters.values())
        for function in (verb, rounds_of)
    )

    @functools.wraps(verb)
    def run(**options: Any) -> None:
        verb(options.pop(own.name), rounds_of(**options))

    parameters = [
        parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in (own, *shared)
    ]
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return run


@app.command()
@_about_rounds
def epsilon(
    noise_multiplier: Annotated[
        float, typer.Option(help="Standard deviation of the noise on the sum ÷ clip norm.")
    ],
    rounds: Rounds,
) -> None:
    """Compute ε for a noise multiplier."""
    _show(rounds, noise_multiplier)


@app.command()
@_about_rounds
def noise(
    epsilon: Annotated[float, typer.Option(help="Target ε.")],
    rounds: Rounds,
) -> None:
    """Find the noise multiplier for an ε, rounded up."""
    from pfl_lm.dp.calibration import noise_multiplier

    if not 0 < epsilon < math.inf:
        raise ValueError(f"--epsilon must be positive and finite, got {epsilon}")
    _show(rounds, noise_multiplier(rounds.event, rounds.count, epsilon, rounds.delta))


def _rate(sampling: str, rate: float | None, population: int | None, cohort: int | None) -> float:
    """Return the chance of a user to be in a round from whichever way it was stated."""
    stated = [value is not None for value in (rate, population, cohort)]
    if sampling is Sampling.none:
        if any(stated):
            raise ValueError("--rate, --population and --cohort need --sampling poisson or fixed")
        return 1.0
    if stated not in ([True, False, False], [False, True, True]):
        raise ValueError(f"--sampling {sampling} needs --rate, or --population and --cohort")
    if population is not None and cohort is not None:
        if not 0 <= cohort <= population or population < 1:
            raise ValueError(
                f"--cohort must lie between 0 and the population, got {cohort} of {population}"
            )
        return cohort / population
    if rate is None or not 0 <= rate <= 1:
        raise ValueError(f"--rate must lie between 0 and 1, got {rate}")
    return rate


def _show(rounds: Rounds, noise_multiplier: float) -> None:
    from pfl_lm.dp.accounting import spent

    event = replace(rounds.event, noise_multiplier=noise_multiplier)
    cost = spent({event: rounds.count}, rounds.delta)
    if rounds.as_json:
        shown = _as_json(event, rounds.count, cost)
        typer.echo(json.dumps(shown, ensure_ascii=False, allow_nan=False))
    else:
        _print_cost(event, rounds.count, cost)


def _as_json(event: RoundEvent, rounds: int, cost: Spent) -> dict[str, Any]:
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
        "adjacency": event.neighboring,
        "accountant": cost.accountant,
        "assumptions": list(cost.assumptions),
    }


def _finite(value: float) -> float | str:
    """JSON has no infinity; the string "inf" is what float() reads back."""
    return "inf" if math.isinf(value) else value


def _print_cost(event: RoundEvent, rounds: int, cost: Spent) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(show_header=False, title=f"rounds = {rounds:,}, δ = {cost.delta:g}")
    table.add_column(style="bold")
    table.add_column(justify="right")
    table.add_column(style="dim")
    table.add_row(
        "noise multiplier", f"{event.noise_multiplier:g}", f"{event.mechanism}, on the sum ÷ clip"
    )
    how = event.sampling if event.sampling == "none" else f"{event.sampling}, rate {event.rate:g}"
    table.add_row("sampling", how, event.neighboring)
    table.add_row("ε", printed(cost.epsilon), f"from the released models ({cost.accountant})")
    table.add_row(
        "ε unamplified", printed(cost.epsilon_unamplified), "for whoever knows who took part"
    )
    if cost.rho is not None:
        table.add_row("ρ", printed(cost.rho), "zero-concentrated DP")
    console = Console()
    console.print(table)
    for assumption in cost.assumptions:
        console.print(f"  • {assumption}", style="dim", highlight=False)


def printed(value: float) -> str:
    """Print up to four decimals, rounded up: a printed ε is never below the real one."""
    if math.isinf(value):
        return "∞"
    if value >= 1e5:
        return f"{value:.4e}"
    return f"{math.ceil(value * 1e4 - 1e-9) / 1e4:,g}" if value < 100 else f"{value + 0.005:,.2f}"
