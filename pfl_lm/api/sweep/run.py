"""Running a sweep: every combination, trial after trial; taken up again where it stopped."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pfl_lm.api.sweep.cost import all_begun, cost
from pfl_lm.api.sweep.folder import Runs, SweepFolder
from pfl_lm.api.sweep.plan import Trial, plan
from pfl_lm.dp.policy import Policy
from pfl_lm.files import sha256_of
from pfl_lm.recipes import find, load
from pfl_lm.run.scenario import Scenario


@dataclass(frozen=True)
class Sweep:
    """A sweep's folder and what came out of it so far.

    Attributes:
        trials: in the order in which they were run.
        scores: figures on validation users by the name of a trial.
        failed: why a trial has none, by its name.
        cost: what choosing among all that ever began in the folder costs, in a sentence.
        importance: of a search, the share of the differences between its trials that each setting
            explains, the largest first; None of a sweep over all combinations.
    """

    folder: Path
    trials: tuple[Trial, ...]
    scores: dict[str, dict[str, float]]
    failed: dict[str, str]
    cost: str
    importance: dict[str, float] | None = None


def sweep(choices: Sequence[str], folder: Path, runs: Runs, *, seeds: int = 1) -> Sweep:
    """Run every combination of some settings; finished trials of an earlier call are kept.

    Args:
        choices: ``KEY=VALUE,VALUE,…`` of each setting.
        folder: of the sweep; new, or that of the same sweep.
        runs: the scenario, and how it is run.
        seeds: runs of each combination, which differ in the seed alone.

    Raises:
        ValueError: a setting is refused, or the folder belongs to another sweep.
    """
    base = load(Scenario, runs.recipe)
    trials = plan(choices, seeds, base.seed)
    for trial in trials:
        check(runs.recipe, trial.settings)
    folder = Path(folder)
    stated = {**identity(runs.recipe, seeds), "choices": list(choices)}
    with SweepFolder.open(folder, stated) as kept:
        for trial in trials:
            if not kept.has_ended(trial):
                runs.say(f"trial {int(trial.name) + 1} of {len(trials)}: {trial.label}")
                kept.run(trial, runs)
        spent = cost(all_begun(kept))
    return Sweep(folder, tuple(trials), kept.scores, kept.failed | kept.unfinished, spent)


def check(recipe: Path, settings: dict[str, Any]) -> Scenario:
    """Return the scenario of some settings.

    Raises:
        ValueError: a setting is refused, or the policy is not found.
    """
    scenario = load(Scenario, recipe, settings)
    if scenario.policy is not None:
        load(Policy, scenario.policy)
    return scenario


def identity(recipe: Path, seeds: int) -> dict[str, str | int]:
    """Return what a sweep's folder keeps of its scenario: another text is another sweep."""
    return {"recipe": Path(recipe).name, "digest": sha256_of(find(recipe)), "seeds": seeds}
