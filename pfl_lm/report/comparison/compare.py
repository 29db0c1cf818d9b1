"""Runs compared with the first of them: settings, differences and what they are worth, cost, ε."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

from pfl_lm.numbers import MISSING, format_epsilon, percent, significant
from pfl_lm.report.comparison.bootstrap import Difference, Figure, Sums, difference
from pfl_lm.report.comparison.people import USERS, Measured, largest_gap, measure
from pfl_lm.report.comparison.settings import Setting, alike_but_for_seed, differing
from pfl_lm.report.source import Run, read_run
from pfl_lm.run.folder import RunFolder

MOST_RUNS = 20


@dataclass(frozen=True)
class Judged:
    """A run beside the first one.

    Attributes:
        name: of the run.
        differences: of every figure; empty where the vocabularies differ.
        verdicts: a sentence for each of them, or one that says why there is none.
    """

    name: str
    differences: tuple[Difference, ...]
    verdicts: tuple[str, ...]


@dataclass(frozen=True)
class Comparison:
    """What ``pfl-lm compare`` shows.

    Attributes:
        names: of the runs, all different.
        settings: those that are not alike.
        judged: every run but the first.
        notes: what a reader must know of the figures.
    """

    names: tuple[str, ...]
    runs: tuple[Run, ...]
    settings: tuple[Setting, ...]
    measured: Measured
    judged: tuple[Judged, ...]
    notes: tuple[str, ...]


def compare(
    folders: Sequence[Path],
    users: int | None = USERS,
    population: Path | None = None,
    tokenizer: Path | None = None,
    progress: Callable[[str], None] = lambda line: None,
) -> Comparison:
    """Compare runs with the first one.

    Args:
        folders: of at least two runs.
        users: held-out users to measure all models on, at most.
        population, tokenizer: folders of the first run's, where they are not found.

    Raises:
        ValueError: fewer than two runs, a folder that holds none, or users that are not found.
    """
    if not 2 <= len(folders) <= MOST_RUNS:
        raise ValueError(f"{len(folders)} runs: name 2 to {MOST_RUNS} to compare")
    runs = tuple(read_run(RunFolder.open(folder)) for folder in folders)
    names = _names(folders)
    measured = measure(folders, users, population, tokenizer, progress)
    luck = {figure.name: _luck(runs, measured, figure) for figure in measured.figures}
    judged = tuple(
        _judge(runs, measured, place, name, luck) for place, name in enumerate(names) if place
    )
    settings = tuple(differing([run.manifest for run in runs]))
    return Comparison(names, runs, settings, measured, judged, _notes(runs, luck))


def _judge(
    runs: Sequence[Run], measured: Measured, place: int, name: str, luck: dict[str, float | None]
) -> Judged:
    first, second = measured.sums[0], measured.sums[place]
    if first is None or second is None:
        return Judged(name, (), ("another vocabulary: its figures count other words",))
    alike = _luck_apart(runs[0], runs[place])
    differences = tuple(difference(figure, first, second) for figure in measured.figures)
    return Judged(
        name, differences, tuple(verdict(d, alike, luck[d.figure.name]) for d in differences)
    )


def verdict(difference: Difference, alike: bool, luck: float | None) -> str:
    """Say in a sentence what a difference is worth.

    Args:
        alike: only the seed differs.
        luck: the largest difference between runs that differ in the seed alone; None: unknown.
    """
    name, size = difference.figure.name, shown(difference.figure, abs(difference.value))
    if math.isnan(difference.value):
        return f"{name}: not compared, as one of the two is not finite: its training diverged"
    if alike:
        return f"{name}: no difference (only the seed differs, and it moved the figure by {size})"
    if not difference.is_clear:
        return f"{name}: no difference"
    if luck is not None and abs(difference.value) <= luck:
        moved = shown(difference.figure, luck)
        return f"{name}: no difference (another seed alone moved the figure by {moved})"
    direction = "higher" if difference.value > 0 else "lower"
    worth = "better" if difference.is_better else "worse"
    return f"{name}: {size} {direction}, {worth}"


def shown(figure: Figure, value: float) -> str:
    """Write a difference: of perplexity in percent, of a share in points."""
    if not math.isfinite(value):
        return MISSING
    if figure.relative:
        return f"{100 * value:,.1f}%" if abs(value) < 100 else f"{significant(100 * value)}%"
    return f"{100 * value:.2f} points"


def figure_text(figure: Figure, value: float) -> str:
    """Write a figure itself."""
    return significant(value) if figure.relative else percent(value)


def epsilon_of(run: Run) -> str:
    """Return the ε of a run's policy against everyone, the server included."""
    guarantee = run.manifest.guarantee
    return format_epsilon(None if guarantee is None else guarantee.epsilon_server)


def _luck_apart(one: Run, other: Run) -> bool:
    """Say whether two runs ended after as many rounds and differ in the seed alone."""
    ended = one.finished and other.finished and len(one.rounds) == len(other.rounds)
    return ended and alike_but_for_seed(one.manifest, other.manifest)


def _luck(runs: Sequence[Run], measured: Measured, figure: Figure) -> float | None:
    """Return the largest difference between two runs of one scenario; None where there are none."""
    gaps = []
    for one, other in combinations(range(len(runs)), 2):
        sums: tuple[Sums | None, Sums | None] = (measured.sums[one], measured.sums[other])
        if sums[0] is None or sums[1] is None:
            continue
        if _luck_apart(runs[one], runs[other]):
            gaps.append(difference(figure, sums[0], sums[1]).value)
    gaps = [gap for gap in gaps if math.isfinite(gap)]
    return largest_gap(gaps) if gaps else None


def _notes(runs: Sequence[Run], luck: dict[str, float | None]) -> tuple[str, ...]:
    users = [run.manifest.population for run in runs]
    kinds = [run.manifest.scenario.population.kind for run in runs]
    populations = {(u.name, u.digest, kind) for u, kind in zip(users, kinds, strict=True)}
    notes = [
        "Intervals hold 95% of samples of users like these. They say nothing of the luck of a run."
    ]
    if all(gap is None for gap in luck.values()):
        notes.append("To see what luck does, run one of these again with --set seed=… and add it.")
    if len(populations) > 1:
        notes.append("The runs used other populations: one may have been trained on these users.")
    if kinds[0] != "synthetic":
        notes.append(
            "Each figure comes from people's text without noise: no ε covers it, or a choice by it."
        )
    if not all(run.finished for run in runs):
        notes.append("A run that has not ended is measured by its newest checkpoint.")
    return tuple(notes)


def _names(folders: Sequence[Path]) -> tuple[str, ...]:
    short = [Path(folder).resolve().name for folder in folders]
    long = [str(folder) for folder in folders]
    return tuple(short if len(set(short)) == len(short) else long)
