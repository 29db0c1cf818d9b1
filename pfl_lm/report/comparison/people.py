"""The models of several runs, measured on the same held-out users."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pfl_lm.evaluation.evaluate import ModelScorer, measure_users
from pfl_lm.evaluation.held_out import choose_users
from pfl_lm.evaluation.measures import SUMS
from pfl_lm.report.comparison.bootstrap import FIGURES, Figure, Sums
from pfl_lm.run.held_out import open_people
from pfl_lm.run.trained import load_trained

USERS = 300
TOKENS_PER_USER = 400
_WINDOW = 20


@dataclass(frozen=True)
class Measured:
    """What the models of some runs do for the same users.

    Attributes:
        users: how many there are.
        whose: which run's test users they are.
        sums: of each run; None where its vocabulary is another one than the first run's.
    """

    users: int
    whose: str
    sums: list[Sums | None]

    @property
    def figures(self) -> tuple[Figure, ...]:
        """The figures that the users' text has something to count for."""
        known = [sums for sums in self.sums if sums is not None]
        return tuple(f for f in FIGURES if any(sums[f.under].any() for sums in known))


def measure(
    runs: Sequence[Path],
    users: int | None = USERS,
    population: Path | None = None,
    tokenizer: Path | None = None,
    progress: Callable[[str], None] = lambda line: None,
) -> Measured:
    """Measure the models of runs on the first run's test users.

    A run keeps no figure of a single user, so the users' text is read again: invented users are
    invented again, and a store is found by its digest.

    Args:
        users: how many to draw, at most.
        population, tokenizer: folders, where they are not found.

    Raises:
        ValueError: a run has no model yet, or the first run's users are not found.
    """
    trained = [load_trained(run) for run in runs]
    model, manifest = trained[0]
    people = open_people(model, manifest, runs[0], population, tokenizer)
    chosen = choose_users(people.population.users("test"), "test", users, manifest.scenario.seed)
    sums: list[Sums | None] = []
    for run, (other, stated) in zip(runs, trained, strict=True):
        if stated.tokenizer.digest != manifest.tokenizer.digest:
            sums.append(None)
            continue
        progress(f"measuring {run} on {len(chosen):,} users")
        tally = measure_users(
            ModelScorer(other.spec, other.parameters),
            people.population,
            "test",
            chosen,
            people.tokenizer,
            stated.scenario.window or _WINDOW,
            TOKENS_PER_USER,
        )
        sums.append({name: tally.per_user(name) for name in SUMS})
    return Measured(len(chosen), manifest.run, sums)


def largest_gap(gaps: Sequence[float]) -> float:
    """Return the largest absolute value; 0 where there is none."""
    return float(np.abs(gaps).max()) if len(gaps) else 0.0
