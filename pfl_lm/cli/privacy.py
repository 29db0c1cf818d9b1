"""`pfl-lm privacy`: a calculator that needs no recipe. `pfl-lm check`: every policy, recomputed."""

from __future__ import annotations

import json
import math
import re
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from pfl_lm.dp.accounting import Spent
    from pfl_lm.dp.events import RoundEvent
    from pfl_lm.dp.guarantee import Guarantee
    from pfl_lm.dp.policy import Policy

app = typer.Typer(no_args_is_help=True, help="What does this noise guarantee, or this ε cost?")


class Sampling(StrEnum):
    none, poisson, fixed = "none", "poisson", "fixed"


class Adjacency(StrEnum):
    add_remove, zero_out, replace_one = "add_remove", "zero_out", "replace_one"


class Mechanism(StrEnum):
    gaussian, skellam, discrete_gaussian = "gaussian", "skellam", "discrete_gaussian"


SamplingOption = Annotated[
    Sampling,
    typer.Option(
        help="none: a user may be in every round. poisson: an independent coin each round. "
        "fixed: a uniform subset of fixed size.",
    ),
]
Rounds = Annotated[int, typer.Option(help="Rounds that are opened.")]
Delta = Annotated[float, typer.Option(help="Target δ; at most 1/population.")]
AdjacencyOption = Annotated[
    Adjacency,
    typer.Option(
        help="What one user may change. Sensitivity is one clip norm, for replace_one two."
    ),
]
Rate = Annotated[float | None, typer.Option(help="Chance of a user to be in a round.")]
Population = Annotated[int | None, typer.Option(help="Users, instead of --rate.")]
Cohort = Annotated[int | None, typer.Option(help="Users in a round, with --population.")]
MechanismOption = Annotated[Mechanism, typer.Option(help="Noise on the sum.")]
Dim = Annotated[int, typer.Option(help="Discrete noise: coordinates on the grid.")]
GridSteps = Annotated[
    float, typer.Option(help="Discrete noise: the clip is this times √dim grid units long.")
]
Shares = Annotated[int, typer.Option(help="discrete_gaussian: shares that make up the noise.")]
AsJson = Annotated[bool, typer.Option("--json", help='One JSON object; an infinite ε is "inf".')]


@app.command()
def epsilon(
    noise_multiplier: Annotated[
        float, typer.Option(help="Standard deviation of the noise on the sum ÷ clip norm.")
    ],
    sampling: SamplingOption,
    rounds: Rounds,
    delta: Delta,
    adjacency: AdjacencyOption,
    rate: Rate = None,
    population: Population = None,
    cohort: Cohort = None,
    mechanism: MechanismOption = Mechanism.gaussian,
    dim: Dim = 1024,
    grid_steps: GridSteps = 8.0,
    shares: Shares = 1,
    as_json: AsJson = False,
) -> None:
    """Compute ε for a noise multiplier."""
    event = _event(
        noise_multiplier, mechanism, sampling, adjacency, rate, population, cohort,
        dim=dim, grid_steps=grid_steps, reports=shares,
    )  # fmt: skip
    _show(event, rounds, delta, as_json)


@app.command()
def noise(
    epsilon: Annotated[float, typer.Option(help="Target ε.")],
    sampling: SamplingOption,
    rounds: Rounds,
    delta: Delta,
    adjacency: AdjacencyOption,
    rate: Rate = None,
    population: Population = None,
    cohort: Cohort = None,
    mechanism: MechanismOption = Mechanism.gaussian,
    dim: Dim = 1024,
    grid_steps: GridSteps = 8.0,
    shares: Shares = 1,
    as_json: AsJson = False,
) -> None:
    """Find the noise multiplier for an ε, rounded up."""
    from dataclasses import replace

    from pfl_lm.dp.calibration import noise_multiplier

    if not 0 < epsilon < math.inf:
        raise ValueError(f"--epsilon must be positive and finite, got {epsilon}")
    event = _event(
        0.0, mechanism, sampling, adjacency, rate, population, cohort,
        dim=dim, grid_steps=grid_steps, reports=shares,
    )  # fmt: skip
    _check_numbers(rounds, delta)
    z = noise_multiplier(event, rounds, epsilon, delta)
    _show(replace(event, noise_multiplier=z), rounds, delta, as_json)


def _event(
    noise_multiplier: float,
    mechanism: Mechanism,
    sampling: Sampling,
    adjacency: Adjacency,
    rate: float | None,
    population: int | None,
    cohort: int | None,
    **grid: Any,
) -> RoundEvent:
    from pfl_lm.dp.accounting import unproven
    from pfl_lm.dp.events import RoundEvent

    event = RoundEvent(
        mechanism=mechanism.value,
        neighboring=adjacency.value,
        sampling=sampling.value,
        noise_multiplier=noise_multiplier,
        rate=_rate(sampling, rate, population, cohort),
        **grid,
    )
    reason = unproven([event])
    if reason is not None:
        raise ValueError(f"refused: {reason}")
    return event


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


def _check_numbers(rounds: int, delta: float) -> None:
    if rounds < 0:
        raise ValueError(f"--rounds must be at least 0, got {rounds}")
    if not 0 < delta < 1:
        raise ValueError(f"--delta must lie strictly between 0 and 1, got {delta}")


def _show(event: RoundEvent, rounds: int, delta: float, as_json: bool) -> None:
    from pfl_lm.dp.accounting import spent

    _check_numbers(rounds, delta)
    cost = spent({event: rounds}, delta)
    if as_json:
        typer.echo(json.dumps(_as_json(event, rounds, cost), ensure_ascii=False, allow_nan=False))
    else:
        _print_cost(event, rounds, cost)


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
    table.add_row("ε", _print(cost.epsilon), f"from the released models ({cost.accountant})")
    table.add_row(
        "ε unamplified", _print(cost.epsilon_unamplified), "for whoever knows who took part"
    )
    if cost.rho is not None:
        table.add_row("ρ", _print(cost.rho), "zero-concentrated DP")
    console = Console()
    console.print(table)
    for assumption in cost.assumptions:
        console.print(f"  • {assumption}", style="dim", highlight=False)


def _print(value: float) -> str:
    """Print up to four decimals, rounded up: a printed ε is never below the real one."""
    if math.isinf(value):
        return "∞"
    if value >= 1e5:
        return f"{value:.4e}"
    return f"{math.ceil(value * 1e4 - 1e-9) / 1e4:,g}" if value < 100 else f"{value + 0.005:,.2f}"


def check(
    folder: Annotated[Path, typer.Argument(help="Folder of policies (*.toml).")] = Path("privacy"),
    write: Annotated[
        bool, typer.Option(help="Write what follows from each policy into its reviewed table.")
    ] = False,
) -> None:
    """Recompute every policy's guarantee; fail where a reviewed figure is stale."""
    from rich.console import Console

    from pfl_lm.dp.guarantee import guarantee, stale
    from pfl_lm.recipes import load_policy

    console = Console()
    paths = sorted(folder.glob("*.toml"))
    if not paths:
        raise ValueError(f"{folder}: no policies (*.toml) here")
    found: list[tuple[Path, Policy, Guarantee, list[str]]] = []
    with console.status("recomputing") as status:
        for path in paths:
            status.update(f"recomputing {path.name}")
            policy = load_policy(path)
            follows = guarantee(policy)
            if write:
                lock(path, follows)
            problems = [] if write else stale(policy.reviewed, follows)
            if follows.epsilon > policy.epsilon:
                problems.append(f"epsilon is {follows.epsilon:g}, above the {policy.epsilon:g}")
            found.append((path, policy, follows, problems))
    _print_guarantees(console, found, write)
    if any(problems for *_, problems in found):
        raise typer.Exit(1)


def lock(path: Path, follows: Guarantee) -> None:
    """Replace the [reviewed] table of a policy file, atomically, and touch nothing else in it."""
    from pfl_lm.files import write_atomically

    text = path.read_text(encoding="utf-8")
    text = re.sub(r"^\[reviewed\][^\[]*", "", text, flags=re.MULTILINE).rstrip()
    text += (
        "\n\n[reviewed]\n"
        f"noise_multiplier = {follows.noise_multiplier!r}\n"
        f"epsilon = {follows.epsilon:.6g}\n"
        f"epsilon_unamplified = {follows.epsilon_unamplified:.6g}\n"
    )
    with write_atomically(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def _print_guarantees(
    console: Any, found: list[tuple[Path, Policy, Guarantee, list[str]]], written: bool
) -> None:
    from rich.table import Table

    table = Table(title="What each policy guarantees")
    table.add_column("policy", style="bold")
    for name in ("ε", "unamplified", "δ", "noise ÷ clip", "joins ≤"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("reviewed", no_wrap=True)
    for path, policy, follows, problems in found:
        table.add_row(
            path.stem,
            _print(follows.epsilon),
            _print(follows.epsilon_unamplified),
            f"{follows.delta:g}",
            f"{follows.noise_multiplier:g}",
            f"{follows.participations:,}",
            _verdict(policy, problems, written),
        )
    console.print(table)
    for path, _, follows, problems in found:
        console.print(f"\n[bold]{path.stem}[/bold]  {follows.statement}", highlight=False)
        console.print(f"[dim]by {follows.accountant}[/dim]", highlight=False)
        for problem in problems:
            console.print(f"[red]{path}: {problem}[/red]", highlight=False)


def _verdict(policy: Policy, problems: list[str], written: bool) -> str:
    if written:
        return "written"
    if problems:
        return "[red]stale[/red]"
    return "[green]agrees[/green]" if policy.reviewed.noise_multiplier is not None else "no lock"
