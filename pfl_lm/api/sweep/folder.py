"""The folder of a sweep or a search: its trials, one after the other, and what came out of each.

sweep.json    the recipe, the choices and the seeds that the folder belongs to
begun.json    every beginning of a trial with its policy: it counts, also where its folder is gone
000/, 001/, … a run folder for each trial
scores.json   of each finished trial, figures on VALIDATION users; test users choose nothing
failed.json   why a trial ended without them: it diverged, was stopped, or could have learnt nothing
study.sqlite  of a search: Optuna's own storage (``search``)
"""

from __future__ import annotations

import fcntl
import math
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pfl_lm.api.runs import simulate
from pfl_lm.api.sweep.plan import Trial
from pfl_lm.api.sweep.pruning import NO_TRIALS, Medians, Pruner
from pfl_lm.dp.policy import Policy
from pfl_lm.evaluation.measures import Evaluation
from pfl_lm.recipes import load
from pfl_lm.run.control import RunStopped
from pfl_lm.run.deployment import Deployment
from pfl_lm.run.divergence import Diverged
from pfl_lm.run.folder import RunFolder, read_json, write_json
from pfl_lm.run.look import Refused
from pfl_lm.run.manifest import promised
from pfl_lm.run.resume import remove_half_begun
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
        failed: why a trial ended without figures, by its name.
        begun: of every beginning, the trial's name, its policy and the guarantee that follows.
        unfinished: why a trial did not end in this call, by its name; the next call tries it again.
    """

    path: Path
    scores: dict[str, dict[str, float]]
    failed: dict[str, str]
    begun: list[dict[str, Any]]
    unfinished: dict[str, str] = field(default_factory=dict)

    @classmethod
    @contextmanager
    def open(cls, path: Path, stated: dict[str, Any]) -> Iterator[SweepFolder]:
        """Make the folder this sweep's, or take it up again; no other process may meanwhile.

        Raises:
            ValueError: it holds something else or another sweep, or another process runs it.
        """
        known = path / "sweep.json"
        if not known.is_file() and path.exists() and any(path.iterdir()):
            raise ValueError(f"{path} is not empty and holds no sweep; choose a new folder")
        path.mkdir(parents=True, exist_ok=True)
        with _alone(path):
            if not known.is_file():
                write_json(known, stated)
            elif read_json(known) != stated:
                raise ValueError(f"{path} belongs to another sweep; choose a new folder")
            yield cls(path, _scores(path), _failed(path), _begun(path))

    def has_ended(self, trial: Trial) -> bool:
        """Whether a trial has figures, or a reason for having none."""
        return trial.name in self.scores or trial.name in self.failed

    def run(self, trial: Trial, runs: Runs, medians: Medians = NO_TRIALS) -> None:
        """Run a trial, or go on with it; the figures, or the problem, are then known.

        Whatever a trial's problem is, the others go on. A trial that diverged, that is pruned or
        that could have learnt nothing has ended; any other is tried again by a later call.

        Args:
            medians: of earlier trials; a trial that is worse than they are is stopped.

        Raises:
            RunStopped: a person asked the trial to stop; a later call goes on with it.
        """
        path = self.path / trial.name
        try:
            scenario = load(Scenario, runs.recipe, trial.settings)
            with self._counted(trial, scenario) as resume:
                run = simulate(
                    scenario,
                    path,
                    workers=runs.workers,
                    resume=resume,
                    track=runs.track,
                    listener=Pruner(path, medians),
                )
            figures = run.evaluate(split="validation", users=scenario.evaluation.users)
            self.scores[trial.name] = _finite(figures)
            write_json(self.path / "scores.json", self.scores)
        except ValueError as error:
            pruned = medians.reason(path)
            if isinstance(error, RunStopped) and not pruned:
                raise
            has_ended = bool(pruned) or isinstance(error, Diverged | Refused)
            problems = self.failed if has_ended else self.unfinished
            problems[trial.name] = pruned or str(error)
            runs.say(f"trial {trial.name} has no figures: {problems[trial.name]}")
            write_json(self.path / "failed.json", self.failed)

    @contextmanager
    def _counted(self, trial: Trial, scenario: Scenario) -> Iterator[bool]:
        """Yield whether a trial goes on; note one that begins, unless it is refused before that."""
        run = RunFolder(self.path / trial.name)
        if run.manifest_path.is_file():
            yield True
            return
        remove_half_begun(run)
        policy = None if scenario.policy is None else load(Policy, scenario.policy)
        self.begun.append({"trial": trial.name, **promised(Deployment(policy))})
        self._write_begun()
        try:
            yield False
        except BaseException:
            if not run.manifest_path.is_file():  # nobody was trained on
                self.begun.pop()
                self._write_begun()
            raise

    def _write_begun(self) -> None:
        write_json(self.path / "begun.json", {"trials": self.begun})


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Hold the lock of a sweep's folder for the length of a block.

    Raises:
        ValueError: another process holds it.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(
                f"another process runs the sweep in {path}: wait for its end or stop it, or choose "
                "another folder"
            ) from None
        yield
    finally:
        os.close(descriptor)


def _finite(figures: Evaluation) -> dict[str, float]:
    """Return the figures that trials are ranked by.

    Raises:
        Diverged: one of them is no number.
    """
    known = {name: getattr(figures, name) for name in FIGURES}
    for name, value in known.items():
        if not math.isfinite(value):
            raise Diverged(f"training diverged in its last round: {name} is {value} afterwards")
    return known


def _scores(path: Path) -> dict[str, dict[str, float]]:
    """Read the figures; a trial without finite ones is measured again.

    Raises:
        ValueError: the file holds something else.
    """
    known = _known(path / "scores.json")
    for name, figures in known.items():
        if not isinstance(figures, dict) or not all(
            isinstance(figures.get(figure), int | float) for figure in FIGURES
        ):
            raise _damaged(path / "scores.json", f"{name} lacks one of {', '.join(FIGURES)}")
    return {
        name: figures
        for name, figures in known.items()
        if all(math.isfinite(figures[figure]) for figure in FIGURES)
    }


def _failed(path: Path) -> dict[str, str]:
    known = _known(path / "failed.json")
    for name, reason in known.items():
        if not isinstance(reason, str):
            raise _damaged(path / "failed.json", f"{name} has no reason")
    return known


def _begun(path: Path) -> list[dict[str, Any]]:
    file = path / "begun.json"
    known = _known(file).get("trials", [])
    for each in known if isinstance(known, list) else [None]:
        if not isinstance(each, dict) or {"trial", "policy", "guarantee"} - each.keys():
            raise ValueError(
                f"{file} is damaged: it counts what trials spent; put an undamaged copy back, or "
                "choose a new folder"
            )
    return list(known)


def _known(path: Path) -> dict[str, Any]:
    return read_json(path) if path.is_file() else {}


def _damaged(path: Path, what: str) -> ValueError:
    return ValueError(
        f"{path} is damaged: {what}; remove the file, and its trials are looked at again"
    )
