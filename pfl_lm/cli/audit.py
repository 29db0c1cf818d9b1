"""`pfl-lm audit`: check a run's guarantee without trusting the code that spent the budget."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pfl_lm.cli.bounds import number
from pfl_lm.cli.outputs import page_option
from pfl_lm.cli.recipes import Settings

if TYPE_CHECKING:
    from pfl_lm.audit.artifacts import AuditTarget, RunArtifacts
    from pfl_lm.audit.findings import Part
    from pfl_lm.audit.question.artifacts import QuestionArtifacts
    from pfl_lm.run.context import RunContext


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
    settings: tuple[str, ...]
    ledgers: Path | None


def audit(
    target: Annotated[
        Path,
        typer.Argument(
            metavar="RUN|QUESTION|POLICY",
            help="Folder of a run, or of a question (`words discover`, `words serve`, `launch`, "
            "`mixture ask`); or a policy: a file, or the name of a shipped one.",
        ),
    ],
    part: Annotated[
        list[PartName] | None, typer.Option(help="Audit only this part; may be repeated [all].")
    ] = None,
    scenario: Annotated[
        Path | None,
        typer.Option(help="The run's scenario; needed where the population is a store on disk."),
    ] = None,
    start: Annotated[
        Path | None, typer.Option(help="The model that a run on invented users started from.")
    ] = None,
    rounds: Annotated[
        int | None, number(1, 200, "Rounds to attack [those of the run, at most 200].")
    ] = None,
    phrase_rounds: Annotated[
        int,
        number(0, 10_000, "Rounds to train with planted phrases; 0 leaves this attack out."),
    ] = 20,
    trials: Annotated[
        int | None,
        number(
            1,
            10**6,
            "How many runs on these users this one was chosen from [those that --ledgers counts].",
        ),
    ] = None,
    ledgers: Annotated[
        Path | None,
        typer.Option(
            help="Folder of the populations' ledgers: were all rounds debited to these people, is "
            "their total kept, and what did choosing this run cost them?"
        ),
    ] = None,
    output: Annotated[
        Path | None,
        page_option("HTML page to write [RUN/audit.html; none for a policy]."),
    ] = None,
    settings: Settings = None,
) -> None:
    """Audit a run: its stated ε, its ledger, its code, and what it leaks. Or audit a policy.

    The verb writes an HTML page and a JSON file beside it. Its exit status is 0 if everything that
    it checked holds, and 1 if something does not.

    Of a policy only the accounting can be checked, of a question all but the attack. Accounting
    and ledger need no torch.
    """
    from pfl_lm.audit.page import require_replaceable, screen, verdict, write_audit
    from pfl_lm.audit.question.artifacts import QuestionArtifacts, is_question
    from pfl_lm.recipes import find, names_recipe

    if output is not None:
        require_replaceable(output)
    parts_asked, set_keys = tuple(part or PartName), tuple(settings or ())
    if settings and scenario is None:
        raise ValueError("--set changes the recipe that --scenario names: name it")
    choice = _Choice(parts_asked, scenario, start, rounds, phrase_rounds, trials, set_keys, ledgers)
    if target.suffix == ".toml" or (not target.exists() and names_recipe(target)):
        from pfl_lm.audit.accounting.policy_file import PolicyFile

        audited: AuditTarget = PolicyFile.open(find(target))
        audit_parts = _audit_policy(audited, part, trials)
    elif is_question(target):
        audited = question = QuestionArtifacts.open(target)
        output = output or target / "audit.html"
        audit_parts = _audit_question(question, choice)
    else:
        from pfl_lm.audit.artifacts import RunArtifacts

        audited = artifacts = RunArtifacts.open(target)
        output = output or target / "audit.html"
        audit_parts = _audit_run(artifacts, choice)
    parts = []
    for done in audit_parts:
        typer.echo(screen(done) + "\n")
        parts.append(done)
    typer.echo(verdict(parts))
    if output is not None:
        for written in write_audit(audited, parts, output):
            typer.echo(written)
    if not all(done.holds for done in parts):
        raise typer.Exit(1)


def _audit_policy(
    policy: AuditTarget, part: list[PartName] | None, trials: int | None
) -> Iterator[Part]:
    from pfl_lm.audit.accounting.check import audit_accounting

    if part and set(part) != {PartName.accounting}:
        raise ValueError(
            f"{policy.where} is a policy: --part accounting alone applies; the others need a run"
        )
    yield audit_accounting(policy, trials)


def _audit_question(question: QuestionArtifacts, choice: _Choice) -> Iterator[Part]:
    """Audit the parts that were asked for and that a question has."""
    if PartName.accounting in choice.parts:
        from pfl_lm.audit.question.accounting import audit_question_accounting

        yield audit_question_accounting(question, choice.trials)
    if PartName.ledger in choice.parts:
        from pfl_lm.audit.question.ledger import audit_question_ledger

        yield audit_question_ledger(question, choice.ledgers)
    if PartName.mechanism in choice.parts:
        from pfl_lm.audit.question.mechanism import audit_question_mechanism

        yield audit_question_mechanism(question)


def _audit_run(artifacts: RunArtifacts, choice: _Choice) -> Iterator[Part]:
    """Audit the parts that were asked for; only the last two import torch."""
    context = _rebuilt(artifacts, choice)
    if PartName.accounting in choice.parts:
        from pfl_lm.audit.accounting.check import audit_accounting

        yield audit_accounting(artifacts, choice.trials, choice.ledgers)
    if PartName.ledger in choice.parts:
        from pfl_lm.audit.ledger.check import audit_ledger

        yield audit_ledger(artifacts, choice.ledgers)
    if context is None:
        return
    if PartName.mechanism in choice.parts:
        from pfl_lm.audit.mechanism.check import audit_mechanism

        yield audit_mechanism(context, artifacts)
    if PartName.attack in choice.parts:
        from pfl_lm.audit.attack.check import audit_attack

        yield audit_attack(context, artifacts, choice.rounds, choice.phrase_rounds)


def _rebuilt(artifacts: RunArtifacts, choice: _Choice) -> RunContext | None:
    """Open the run's context first: what cannot be had is said before anything is waited for.

    None where only accounting and ledger were asked for.
    """
    if not {PartName.mechanism, PartName.attack} & set(choice.parts):
        return None
    from pfl_lm.audit.mechanism.rebuild import rebuild_context
    from pfl_lm.interop.tff_sum import external_aggregator
    from pfl_lm.native.tuning import tune
    from pfl_lm.recipes import parse_settings

    tune()
    external = external_aggregator(artifacts.manifest["scenario"].get("aggregator", "exact"))
    settings = parse_settings(choice.settings)
    return rebuild_context(artifacts, choice.scenario, choice.start, external, settings)
