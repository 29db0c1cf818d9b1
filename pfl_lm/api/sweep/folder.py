"""The folder of a sweep or a search: its trials, one after the other, and what came out of each.

sweep.json    the recipe, the choices and the seeds that the folder belongs to
000/, 001/, … a run folder for each trial
scores.json   of each finished trial, figures on VALIDATION users; test users choose nothing
failed.json   why a trial was refused, or stopped
study.sqlite  of a search: Optuna's own storage (``search``)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pfl_lm.api.runs import simulate
from pfl_lm.api.sweep.plan import Trial
from pfl_lm.api.sweep.pruning import NO_TRIALS, Medians, Pruner
from pfl_lm.recipes import load
from pfl_lm.run.control import RunStopped
from pfl_lm.run.folder import RunFolder, read_json, write_json
from pfl_lm.run.scenario import Scenario

FIGURES = ("perplexity", "top3", "keystrokes_saved")


@dataclass(frozen=True)
class Runs:
    """How a sweep runs its trials.

    Attributes:
        recipe: the scenario.
        workers: processes of a run.
        track: names of the trackers that log each trial.
        say: hears one line for each trial.
    """

    recipe: Path
    workers: int = 1
    track: tuple[str, ...] = ()
    say: Callable[[str], None] = lambda line: None


@dataclass(frozen=True)
class SweepFolder:
    """A sweep's folder.

    Attributes:
        scores: figures on validation users by the name of a trial.
        failed: why a trial has none, by its name.
    """

    path: Path
    scores: dict[str, dict[str, float]]
    failed: dict[str, str]

    @classmethod
    def open(cls, path: Path, stated: dict[str, Any]) -> SweepFolder:
        """Make the folder this sweep's, or take it up again.

        Raises:
            ValueError: it holds something else, or another sweep.
        """
        known = path / "sweep.json"
        if not known.is_file():
            if path.exists() and any(path.iterdir()):
                raise ValueError(f"{path} is not empty and holds no sweep; choose a new folder")
            path.mkdir(parents=True, exist_ok=True)
            write_json(known, stated)
        elif read_json(known) != stated:
            raise ValueError(f"{path} belongs to another sweep; choose a new folder")
        return cls(path, _known(path / "scores.json"), _known(path / "failed.json"))

    def has_ended(self, trial: Trial) -> bool:
        """Whether a trial has figures, or a reason for having none."""
        return trial.name in self.scores or trial.name in self.failed

    def run(self, trial: Trial, runs: Runs, medians: Medians = NO_TRIALS) -> None:
        """Run a trial, or go on with it; the figures, or the problem, are then in the folder.

        A trial that was refused, has diverged or is pruned ends here: the others go on.

        Args:
            medians: of earlier trials; a trial that is worse than they are is stopped.

        Raises:
            RunStopped: a person asked the trial to stop; a later call goes on with it.
        """
        path = self.path / trial.name
        begun = RunFolder(path).manifest_path.is_file()
        try:
            scenario = load(Scenario, runs.recipe, trial.settings)
            run = simulate(
                scenario,
                path,
                workers=runs.workers,
                resume=begun,
                track=runs.track,
                listener=Pruner(path, medians),
            )
            figures = run.evaluate(split="validation", users=scenario.evaluation.users)
            self.scores[trial.name] = {name: getattr(figures, name) for name in FIGURES}
            write_json(self.path / "scores.json", self.scores)
        except ValueError as error:
            pruned = medians.reason(path)
            if isinstance(error, RunStopped) and not pruned:
                raise
            self.failed[trial.name] = pruned or str(error)
            runs.say(f"trial {trial.name} has no figures: {self.failed[trial.name]}")
            write_json(self.path / "failed.json", self.failed)


def _known(path: Path) -> dict[str, Any]:
    return read_json(path) if path.is_file() else {}
