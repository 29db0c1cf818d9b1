"""`pfl-lm audit`: check a run's promise without trusting the code that spent the budget."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from pfl_lm.audit.evidence import Claim, Evidence
    from pfl_lm.audit.findings import Part
    from pfl_lm.world import World


class PartName(StrEnum):
    """The parts of an audit, in the order in which they are read."""

    accounting = "accounting"
    ledger = "ledger"
    mechanism = "mechanism"
    attack = "attack"


@dataclass(frozen=True)
class _Choice:
    """What the officer asked for beside the run itself."""

    parts: tuple[PartName, ...]
    scenario: Path | None
    start: Path | None
    rounds: int | None
    phrase_rounds: int
    trials: int | None


def audit(
    target: Annotated[
        Path, typer.Argument(metavar="RUN|POLICY", help="Folder of a run, or a policy (*.toml).")
    ],
    part: Annotated[
        list[PartName] | None, typer.Option(help="Only this part; may be given again [all].")
    ] = None,
    scenario: Annotated[
        Path | None,
        typer.Option(help="The run's recipe; needed to test code on a stored population."),
    ] = None,
    start: Annotated[
        Path | None, typer.Option(help="The model that a run on invented users started from.")
    ] = None,
    rounds: Annotated[
        int | None, typer.Option(min=1, help="Rounds to attack [as many as the run, at most 200].")
    ] = None,
    phrase_rounds: Annotated[
        int, typer.Option(min=0, help="Rounds to train on invented phrases; 0 leaves them out.")
    ] = 20,
    trials: Annotated[
        int | None,
        typer.Option(min=1, help="Trainings on these users among which this one was chosen."),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="HTML page to write [RUN/audit.html; POLICY: none]."),
    ] = None,
) -> None:
    """Check a run: its stated ε, its ledger, its code, and what it leaks. Or a policy alone.

    Writes an HTML page and a JSON file beside it. Exit status 0 only where everything that was
    checked holds, 1 where something does not. Accounting and ledger need no torch; of a policy
    only the accounting can be checked.
    """
    from pfl_lm.audit.page import screen, verdict, write_audit

    choice = _Choice(tuple(part or PartName), scenario, start, rounds, phrase_rounds, trials)
    if target.suffix == ".toml":
        from pfl_lm.audit.policy_file import PolicyFile

        claim: Claim = PolicyFile.open(target)
        found = _audit_policy(claim, part, trials)
    else:
        from pfl_lm.audit.evidence import Evidence

        claim, output = (evidence := Evidence.open(target)), output or target / "audit.html"
        found = _audit_run(evidence, choice)
    parts = []
    for one in found:
        typer.echo(screen(one) + "\n")
        parts.append(one)
    typer.echo(verdict(parts))
    if output is not None:
        for written in write_audit(claim, parts, output):
            typer.echo(written)
    if not all(one.holds for one in parts):
        raise typer.Exit(1)


def _audit_policy(policy: Claim, part: list[PartName] | None, trials: int | None) -> Iterator[Part]:
    from pfl_lm.audit.accounting import audit_accounting

    if part and set(part) != {PartName.accounting}:
        raise ValueError(
            f"{policy.where} is a policy: --part accounting alone applies; the others need a run"
        )
    yield audit_accounting(policy, trials)


def _audit_run(evidence: Evidence, choice: _Choice) -> Iterator[Part]:
    """Audit the parts that were asked for; only the last two import torch."""
    world = _reopened(evidence, choice)
    if PartName.accounting in choice.parts:
        from pfl_lm.audit.accounting import audit_accounting

        yield audit_accounting(evidence, choice.trials)
    if PartName.ledger in choice.parts:
        from pfl_lm.audit.ledger import audit_ledger

        yield audit_ledger(evidence)
    if world is None:
        return
    if PartName.mechanism in choice.parts:
        from pfl_lm.audit.mechanism import audit_mechanism

        yield audit_mechanism(world)
    if PartName.attack in choice.parts:
        from pfl_lm.audit.attack import audit_attack

        yield audit_attack(world, evidence, choice.rounds, choice.phrase_rounds)


def _reopened(evidence: Evidence, choice: _Choice) -> World | None:
    """Open the run's world, first of all: what cannot be had is said before anything is waited for.

    None where only accounting and ledger were asked for.
    """
    if not {PartName.mechanism, PartName.attack} & set(choice.parts):
        return None
    from pfl_lm.audit.reopen import reopen
    from pfl_lm.machine import tune

    tune()
    return reopen(evidence, choice.scenario, choice.start)
