"""`pfl-lm check`: every policy, recomputed, and its reviewed figures held against the result."""

from __future__ import annotations

import math
import re
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pfl_lm.cli.tables import print_table

if TYPE_CHECKING:
    from pfl_lm.dp.guarantee import Guarantee
    from pfl_lm.dp.policy import Policy

# Keys that a policy states, and no other recipe does.
OF_A_POLICY = {"unit", "neighboring", "epsilon", "delta", "report_goal", "participation"}


def check(
    policies: Annotated[
        Path | None,
        typer.Argument(
            help="A policy, by file or by shipped name, or a folder of them "
            "[privacy, or the shipped ones]."
        ),
    ] = None,
    write: Annotated[
        bool, typer.Option(help="Write the recomputed figures into each policy's reviewed table.")
    ] = False,
    ledgers: Annotated[
        Path | None,
        typer.Option(
            help="A population's ledger, or a folder of them: say whether these people can still "
            "pay a whole run or question under each policy."
        ),
    ] = None,
) -> None:
    """Recompute what every policy guarantees, and compare it with its reviewed figures.

    The first figure of each line holds against the server too; where the server adds the noise it
    is trusted, and no ε holds against it. A policy that relies on secret coins must accept the
    server's ε by name (accepted_server_epsilon), or it is refused.

    A policy's ε counts for it alone. Runs and questions on the same people share one total; what is
    left of it decides whether the next one begins (--ledgers; `pfl-lm privacy population`).

    The exit status is 1 if a reviewed figure no longer follows from its policy, or if a policy
    exceeds its own ε.
    """
    from rich.console import Console

    from pfl_lm.dp.guarantee import stale
    from pfl_lm.dp.policy import Policy
    from pfl_lm.numbers import format_epsilon
    from pfl_lm.recipes import load

    console = Console()
    paths = _paths(policies, write)
    checked: list[tuple[Path, Policy, Guarantee, list[str]]] = []
    with console.status("recomputing") as status:
        for path in paths:
            status.update(f"recomputing {path.name}")
            policy = load(Policy, path)
            follows = _recomputed(path, policy)
            if write:
                lock(path, follows, policy.epsilon)
            problems = [] if write else stale(policy.reviewed, follows)
            if follows.epsilon > policy.epsilon:
                problems.append(
                    f"epsilon is {format_epsilon(follows.epsilon)}, above the policy's "
                    f"{format_epsilon(policy.epsilon)}"
                )
            checked.append((path, policy, follows, problems))
    _print_guarantees(console, checked, write)
    if ledgers is not None:
        _print_budgets(console, checked, ledgers)
    if any(problems for *_, problems in checked):
        raise typer.Exit(1)


def _paths(policies: Path | None, write: bool) -> list[Path]:
    """Return the policy files that are meant; those to be written are the reader's own."""
    from pfl_lm.dp.policy import Policy
    from pfl_lm.recipes import find, shipped_folder

    folder = Path("privacy") if policies is None else policies
    if policies is None and not folder.is_dir():
        if write:
            raise ValueError("--write needs the folder of your own policies: name it")
        folder = shipped_folder() / "privacy"
    if folder.is_dir():
        paths = [path for path in sorted(folder.rglob("*.toml")) if _is_policy(path)]
        if not paths:
            raise ValueError(f"{folder}: no policies (*.toml) here")
        return paths
    if write and not folder.is_file():
        raise ValueError(f"--write needs a policy file of your own; {folder} is none")
    return [find(folder, Policy)]


def _is_policy(path: Path) -> bool:
    """Say whether a file is a policy, or cannot be read; a project has a scenario beside it."""
    try:
        keys = tomllib.loads(path.read_text(encoding="utf-8")).keys()
    except (ValueError, RecursionError):
        return True  # so that loading it says what is wrong
    return not keys or bool(keys & OF_A_POLICY)


def _recomputed(path: Path, policy: Policy) -> Guarantee:
    from pfl_lm.dp.guarantee import guarantee

    try:
        return guarantee(policy)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def lock(path: Path, follows: Guarantee, allowed: float) -> None:
    """Replace the [reviewed] table of a policy file, atomically, and touch nothing else in it.

    Args:
        allowed: the policy's own ε; rounding up never exceeds it.
    """
    from pfl_lm.files import write_atomically

    text = path.read_text(encoding="utf-8")
    text = re.sub(r"^\[reviewed\][^\[]*", "", text, flags=re.MULTILINE).rstrip()
    text += (
        "\n\n[reviewed]\n"
        f"noise_multiplier = {follows.noise_multiplier!r}\n"
        f"epsilon = {_rounded_up(follows.epsilon, allowed)}\n"
        f"epsilon_unamplified = {_rounded_up(follows.epsilon_unamplified, allowed)}\n"
        + (f"rho = {_rounded_up(follows.rho)}\n" if follows.stream and follows.rho else "")
    )
    with write_atomically(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def _rounded_up(value: float, allowed: float = math.inf) -> str:
    """Write a figure with six digits, never below what follows from the policy.

    Where rounding would pass what the policy allows, that is written, and is no less.
    """
    from pfl_lm.numbers import rounded_up

    rounded = rounded_up(value)
    return repr(allowed) if value <= allowed < rounded else f"{rounded:.6g}"


def _print_guarantees(
    console: Any, checked: list[tuple[Path, Policy, Guarantee, list[str]]], written: bool
) -> None:
    from rich.table import Table

    from pfl_lm.numbers import format_epsilon

    title = "What each policy guarantees: ε against the server, and against people who see\n"
    table = Table(title=f"{title}who took part (cohorts) or the released models alone")
    table.add_column("policy", style="bold", overflow="fold")
    for head in ("server", "cohorts", "models", "δ", "noise", "joins"):
        table.add_column(head, justify="right", no_wrap=True)
    table.add_column("review", no_wrap=True)
    for path, policy, follows, problems in checked:
        table.add_row(
            path.stem,
            format_epsilon(follows.epsilon_server),
            format_epsilon(follows.epsilon_unamplified),
            format_epsilon(follows.epsilon),
            f"{follows.delta:g}",
            f"{follows.noise_multiplier:g}",
            f"{follows.participations:,}",
            _verdict(policy, problems, written),
        )
    print_table(table, console)
    for path, policy, follows, problems in checked:
        console.print(f"\n[bold]{path.stem}[/bold]  {follows.statement}", highlight=False)
        console.print(f"[dim]by {follows.accountant}[/dim]", highlight=False)
        if policy.participation.kind == "rotation":
            console.print(f"[dim]{_different_users(policy)}[/dim]", highlight=False)
        if policy.groups > 1:
            console.print(
                f"[dim]price of {policy.groups} public groups: the noise on a round's mean is "
                f"{math.sqrt(policy.groups):.3g} times that of one sum[/dim]",
                highlight=False,
            )
        if policy.public_labels:
            console.print(
                f"figures by public label, in comparisons: {', '.join(policy.public_labels)}",
                style="dim",
                markup=False,
                highlight=False,
            )
        for problem in problems:
            console.print(f"[red]{path}: {problem}[/red]", highlight=False)


def _different_users(policy: Policy) -> str:
    """Say how many people full cohorts need: a rotation that needs all of them seldom fills up."""
    needed = policy.different_users
    people = "all of the" if needed == policy.population else f"{needed:,} of"
    rounds, goal = needed // policy.report_goal, f"{policy.report_goal:,}"
    if rounds == 1:
        return f"a full cohort of {goal} needs {people} {policy.population:,} users"
    return (
        f"{rounds:,} full cohorts of {goal}, nobody twice in them, need "
        f"{people} {policy.population:,} users"
    )


def _print_budgets(
    console: Any, checked: list[tuple[Path, Policy, Guarantee, list[str]]], ledgers: Path
) -> None:
    """Say for each population what is left, and which policies it can still pay in full."""
    from pfl_lm.dp.ledger import verify
    from pfl_lm.dp.population_spent import other_unit, population_spent, with_planned
    from pfl_lm.numbers import format_epsilon

    paths = sorted(ledgers.glob("*.jsonl")) if ledgers.is_dir() else [ledgers]
    if not paths:
        raise ValueError(f"{ledgers}: no ledger of a population (*.jsonl) here")
    for ledger in paths:
        spent, entries = population_spent(ledger), verify(ledger)
        console.print(
            f"\n[bold]population {spent.digest[:12]}[/bold]  {spent.sentence()}", highlight=False
        )
        for path, policy, follows, _ in checked:
            if policy.noise.at == "none":
                console.print(
                    f"  [red]too much[/red]: {path.stem} adds no noise, so ε = ∞", highlight=False
                )
                continue
            if reason := other_unit(entries, policy.unit):
                console.print(f"  [red]too much[/red]: {path.stem}: {reason}", highlight=False)
                continue
            noise = follows.noise_multiplier
            planned = [policy.event(noise, round=number) for number in range(policy.rounds)]
            after = with_planned(ledger, policy, planned)
            assert after.total is not None
            assert after.cost is not None
            fits = after.total.covers(after.cost)
            console.print(
                f"  {'[green]fits[/green]' if fits else '[red]too much[/red]'}: all of {path.stem} "
                f"would bring ε to {format_epsilon(after.cost.epsilon)}, of {after.total}",
                highlight=False,
            )


def _verdict(policy: Policy, problems: list[str], written: bool) -> str:
    if written:
        return "written"
    if problems:
        return "[red]stale[/red]"
    return "[green]agrees[/green]" if policy.reviewed.noise_multiplier is not None else "no lock"
