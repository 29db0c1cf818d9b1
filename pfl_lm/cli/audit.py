"""`pfl-lm audit`: check a run's promise without trusting the code that spent the budget."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from pfl_lm.audit.evidence import Evidence
    from pfl_lm.audit.findings import Part


class PartName(StrEnum):
    """The parts of an audit, in the order in which they are read."""

    accounting = "accounting"
    ledger = "ledger"
    mechanism = "mechanism"
    attack = "attack"


def audit(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a run.")],
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
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="HTML page to write [RUN/audit.html].")
    ] = None,
) -> None:
    """Check a run: its stated ε, its ledger, its code, and what it leaks.

    Writes an HTML page and a JSON file beside it. Exit status 0 only where everything that was
    checked holds, 1 where something does not. Accounting and ledger need no torch.
    """
    from pfl_lm.audit.evidence import Evidence
    from pfl_lm.audit.page import screen, verdict, write_audit

    evidence = Evidence.open(run)
    parts = []
    for name in [name for name in PartName if part is None or name in part]:
        parts.append(_audit(name, evidence, (scenario, start), (rounds, phrase_rounds)))
        typer.echo(screen(parts[-1]) + "\n")
    page, data = write_audit(evidence, parts, output or run / "audit.html")
    typer.echo(f"{verdict(parts)}\n{page}\n{data}")
    if not all(found.holds for found in parts):
        raise typer.Exit(1)


def _audit(
    name: PartName,
    evidence: Evidence,
    files: tuple[Path | None, Path | None],
    rounds: tuple[int | None, int],
) -> Part:
    """Run one part; torch is imported by the last two only.

    Args:
        files: the run's recipe and its first model, where they are needed.
        rounds: to attack with canaries, and to train on phrases.
    """
    if name is PartName.accounting:
        from pfl_lm.audit.accounting import audit_accounting

        return audit_accounting(evidence)
    if name is PartName.ledger:
        from pfl_lm.audit.ledger import audit_ledger

        return audit_ledger(evidence)
    from pfl_lm.audit.reopen import reopen
    from pfl_lm.machine import tune

    tune()
    world = reopen(evidence, *files)
    if name is PartName.mechanism:
        from pfl_lm.audit.mechanism import audit_mechanism

        return audit_mechanism(world)
    from pfl_lm.audit.attack import audit_attack

    return audit_attack(world, evidence, *rounds)
