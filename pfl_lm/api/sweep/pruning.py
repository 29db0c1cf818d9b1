"""Stopping a trial early: where it is worse, on validation users, than the median of earlier ones.

A stopped trial has spent its rounds on the users' text, so it counts among the trainings like any
other.

Source: Golovin et al. 2017, "Google Vizier: a service for black-box optimization", section 3.1
(the median stopping rule).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from pfl_lm.numbers import significant
from pfl_lm.run.control import STOP, ask
from pfl_lm.run.folder import RunFolder
from pfl_lm.run.progress import ProgressListener

LEAST_TRIALS = 4  # that were measured at the same round


@dataclass(frozen=True)
class Medians:
    """The median perplexity of earlier trials, by the number of rounds; not of the last one."""

    perplexity: dict[int, float]

    @classmethod
    def of(cls, trials: Sequence[Path], rounds: int) -> Medians:
        """Read them from the folders of earlier trials.

        Args:
            rounds: of each trial. Nobody is stopped after the last one.
        """
        measured: dict[int, list[float]] = {}
        for path in trials:
            for round, perplexity in _evaluations(path).items():
                measured.setdefault(round, []).append(perplexity)
        return cls(
            {
                round: median(values)
                for round, values in measured.items()
                if len(values) >= LEAST_TRIALS and round < rounds
            }
        )

    def reason(self, trial: Path) -> str:
        """Say why a trial was stopped; "" where the rule does not stop it."""
        for round, perplexity in _evaluations(trial).items():
            if (known := self.perplexity.get(round)) is not None and perplexity > known:
                return (
                    f"stopped after {round} rounds: perplexity {significant(perplexity)} where "
                    f"half of the earlier trials had {significant(known)} or less"
                )
        return ""


NO_TRIALS = Medians({})


@dataclass(frozen=True)
class Pruner(ProgressListener):
    """Asks a trial to stop as soon as the rule says so."""

    folder: Path
    medians: Medians

    def evaluated(self, entry: dict[str, Any]) -> None:
        if self.medians.reason(self.folder):
            ask(self.folder, STOP)


def _evaluations(path: Path) -> dict[int, float]:
    lines = RunFolder(path).metrics()
    return {line["round"]: line["perplexity"] for line in lines if line["kind"] == "evaluation"}
