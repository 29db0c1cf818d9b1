"""`pfl-lm check`: every policy, recomputed, and its reviewed figures held against the result."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pfl_lm.cli.privacy import printed

if TYPE_CHECKING:
    from pfl_lm.dp.guarantee import Guarantee
    from pfl_lm.dp.policy import Policy


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
            printed(follows.epsilon),
            printed(follows.epsilon_unamplified),
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
