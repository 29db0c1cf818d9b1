"""The options of verbs that ask simulated phones a question, and the lines that they print."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pfl_lm.cli.bounds import number
from pfl_lm.cli.outputs import Ledgers
from pfl_lm.run.progress import ProgressListener

if TYPE_CHECKING:
    from rich.console import Console

    from pfl_lm.secagg.rounds import Kind


class Lines(ProgressListener):
    """Prints how far a question is, on standard error."""

    def say(self, line: str) -> None:
        print(line, file=sys.stderr, flush=True)


def print_statements(console: Console, output: Path) -> None:
    """Print what a question guarantees and what it only simulates, as its manifest says."""
    from rich.markup import escape

    from pfl_lm.run.folder import read_json

    statements = read_json(output / "manifest.json")["statements"]
    for title, name in (("Guaranteed", "guaranteed"), ("Simulated ", "simulated")):
        console.print(f"[bold]{title}[/bold]  {escape(statements[name])}", soft_wrap=True)


class Summing(StrEnum):
    """How the phones' answers are summed."""

    ideal = "ideal"
    protocol = "protocol"

    @property
    def kind(self) -> Kind:
        """The aggregation of this name."""
        return "protocol" if self is Summing.protocol else "ideal"


Cohort = Annotated[
    int | None, number(3, 1 << 40, "Users asked in a round [all that the policy allows].")
]
SecureAggregation = Annotated[
    Summing,
    typer.Option(
        help="Sum by the ideal functionality, or by every message of the protocol "
        "(slow: cohorts of some hundred)."
    ),
]
Dropout = Annotated[float, number(0, 0.99, "Share of the users asked who fall silent.")]
FleetPath = Annotated[
    Path | None,
    typer.Option(
        help="The users' phones, which decide who answers: a fleet file, or the name of a shipped "
        "one such as fleets/mixed [all answer]."
    ),
]
Seed = Annotated[
    int | None, typer.Option(help="Make the outcome repeatable, for tests [secret noise].")
]
Resume = Annotated[bool, typer.Option(help="Go on with a question that was interrupted.")]


@dataclass(frozen=True)
class Asking:
    """The options of a question to a population's phones, with the fleet or without one."""

    cohort: Cohort = None
    secure_aggregation: SecureAggregation = Summing.ideal
    dropout: Dropout = 0.0
    seed: Seed = None
    resume: Resume = False
    ledgers: Ledgers = None

    @property
    def stated(self) -> dict[str, Any]:
        """What the question itself states of this."""
        return {
            "cohort": self.cohort,
            "aggregation": self.secure_aggregation.kind,
            "dropout": self.dropout,
            "seed": self.seed,
        }
