"""A run's figures, logged to MLflow or to Weights & Biases while it goes on.

Each keeps its own settings, its offline mode among them:

    mlflow   MLFLOW_TRACKING_URI (a file mlflow.db in the current folder by default),
             MLFLOW_EXPERIMENT_NAME
    wandb    WANDB_MODE=offline writes to wandb/ in the current folder and calls nobody;
             WANDB_PROJECT, WANDB_DIR, WANDB_API_KEY

What is logged stands on the run's page: scenario, policy, guarantee, both statements, the lines of
``metrics.jsonl``, the final figures. Those of people's text carry no noise, and no ε covers them:
a tracker of others' reads them. Where ε needs that nobody learns how many reported, the time
at which a line arrives would tell it; such a run is logged when it has ended, all at once.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from pfl_lm.run.evaluation_file import read_evaluation
from pfl_lm.run.folder import RunFolder, figures_of, read_json, write_json
from pfl_lm.run.progress import Listeners, ProgressListener

EXPERIMENT = "pfl-lm"
_KEY = "pfl_lm.run"
_TABLES = ("scenario", "policy", "guarantee", "model", "payload")
_FINAL = ("perplexity", "top1", "top3", "keystrokes_saved")
_LONGEST = 500  # characters of a value, which every version of both takes


@dataclass(frozen=True)
class Described:
    """What a tracker is told as it begins.

    Attributes:
        key: of this run and no other; a resumed run finds its figures by it.
        parameters: settings by dotted key.
        statements: what is guaranteed, and what is only simulated.
    """

    name: str
    key: str
    parameters: dict[str, str]
    statements: dict[str, str]

    @classmethod
    def of(cls, folder: RunFolder) -> Described:
        manifest = folder.manifest()
        tables = {name: manifest[name] for name in _TABLES if manifest.get(name)}
        return cls(manifest["run"], _key(folder), dict(_flat(tables)), dict(manifest["statements"]))


class Tracker(Protocol):
    """Where figures go."""

    def log(self, figures: Mapping[str, float], round: int) -> None:
        """Log figures of a round, or after a number of rounds."""

    def close(self, ended: bool) -> None:
        """Close the tracker's run; ``ended``: it is whole."""


class MLflowTracker:
    """Logs to the MLflow store that MLFLOW_TRACKING_URI names."""

    def __init__(self, run: Described) -> None:
        from mlflow import MlflowClient
        from mlflow.entities import Param, RunTag

        self._client = client = MlflowClient()
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", EXPERIMENT)
        known = client.get_experiment_by_name(name)
        place = client.create_experiment(name) if known is None else known.experiment_id
        begun = client.search_runs([place], f"tags.`{_KEY}` = '{run.key}'")
        if begun:
            self._id = begun[0].info.run_id
            client.update_run(self._id, "RUNNING")
            return
        self._id = client.create_run(place, run_name=run.name).info.run_id
        tags = {_KEY: run.key, **run.statements}
        client.log_batch(
            self._id,
            params=[Param(key, value) for key, value in run.parameters.items()],
            tags=[RunTag(key, value) for key, value in tags.items()],
        )

    @staticmethod
    def check() -> None:
        """Raise an exception where the store cannot be reached."""
        from mlflow import MlflowClient

        MlflowClient().search_experiments(max_results=1)

    def log(self, figures: Mapping[str, float], round: int) -> None:
        for name, value in figures.items():
            self._client.log_metric(self._id, name, value, step=round)

    def close(self, ended: bool) -> None:
        self._client.set_terminated(self._id, "FINISHED" if ended else "KILLED")


class WandbTracker:
    """Logs to Weights & Biases; without its own look at the machine, the screen and the code."""

    def __init__(self, run: Described) -> None:
        import wandb

        quiet = wandb.Settings(
            console="off",
            silent=True,
            disable_git=True,
            save_code=False,
            x_disable_stats=True,
            x_disable_meta=True,
            x_disable_machine_info=True,
        )
        project = os.environ.get("WANDB_PROJECT", EXPERIMENT)
        config = {**run.parameters, **run.statements}
        self._run = wandb.init(
            project=project, name=run.name, id=run.key, resume="allow", config=config,
            settings=quiet,
        )  # fmt: skip
        self._run.define_metric("*", step_metric="round")

    @staticmethod
    def check() -> None:
        """Raise an exception where nobody is logged in, and the mode is not offline."""
        import wandb

        if os.environ.get("WANDB_MODE", "online") == "online" and not wandb.login(timeout=0):
            raise ValueError("nobody is logged in: `wandb login`, or WANDB_MODE=offline")

    def log(self, figures: Mapping[str, float], round: int) -> None:
        self._run.log({**figures, "round": round})

    def close(self, ended: bool) -> None:
        self._run.finish(exit_code=0 if ended else 1)


TRACKERS: dict[str, Any] = {"mlflow": MLflowTracker, "wandb": WandbTracker}


@contextmanager
def tracked(
    names: Sequence[str], folder: Path, listener: ProgressListener
) -> Iterator[ProgressListener]:
    """Yield a listener that tells ``listener``, and the trackers of these names.

    Args:
        folder: of the run; it need not exist yet.

    Raises:
        ValueError: there is no such tracker, its package is not installed, or nobody answers.
    """
    followers = [Follower(name, RunFolder(Path(folder)), listener) for name in dict.fromkeys(names)]
    ended = False
    try:
        yield Listeners(listener, *followers) if followers else listener
        ended = True
    finally:
        for follower in followers:
            follower.close(ended)


class Follower(ProgressListener):
    """Passes a run's figures on to one tracker.

    A tracker that fails once is told nothing more, and the run goes on: what was spent on a round
    is worth more than its picture.
    """

    def __init__(self, name: str, folder: RunFolder, listener: ProgressListener) -> None:
        _require(name)
        self._name, self._folder, self._listener = name, folder, listener
        self._tracker: Tracker | None = None
        self._lost = False

    def round_done(self, entry: dict[str, Any], rounds: int) -> None:
        self._follow(entry)

    def evaluated(self, entry: dict[str, Any]) -> None:
        self._follow(entry)

    def close(self, ended: bool) -> None:
        """Log what is left, and close the tracker's run.

        Args:
            ended: the run is over; else it stopped, and may go on later.
        """
        if not self._folder.manifest_path.is_file():
            return
        if ended:
            late = self._folder.metrics() if self._counts_are_secret else []
            for entry in late:
                self._log(figures_of(entry), entry["round"])
            rounds = self._folder.manifest()["scenario"]["rounds"]
            self._log(_final(self._folder), rounds)
        if self._tracker is not None and not self._lost:
            self._try(self._tracker.close, ended)

    def _follow(self, entry: dict[str, Any]) -> None:
        if not self._counts_are_secret:
            self._log(figures_of(entry), entry["round"])

    def _log(self, figures: Mapping[str, float], round: int) -> None:
        self._try(self._begin)
        if self._tracker is not None:
            self._try(self._tracker.log, figures, round)

    def _begin(self) -> None:
        if self._tracker is None:
            self._tracker = TRACKERS[self._name](Described.of(self._folder))

    def _try(self, call: Any, *arguments: Any) -> None:
        """Call a tracker; whatever it raises ends the tracking and not the run."""
        if self._lost:
            return
        try:
            call(*arguments)
        except Exception as error:
            self._lost = True
            first = (str(error).splitlines() or [""])[0]
            self._listener.say(f"{self._name} is told no more: {type(error).__name__}: {first}")

    @property
    def _counts_are_secret(self) -> bool:
        return self._folder.private_metrics_path.exists()


def _require(name: str) -> None:
    """Refuse a tracker that is unknown, not installed, or out of reach."""
    if name not in TRACKERS:
        board = "; TensorBoard needs no option: its files are in the run's folder"
        hint = board if name == "tensorboard" else ""
        raise ValueError(f"--track {name}: must be one of {', '.join(TRACKERS)}{hint}")
    if find_spec(name) is None:
        raise ValueError(
            f'--track {name} needs {name}, not installed here: pip install "pfl-lm[{name}]"'
        )
    try:
        TRACKERS[name].check()
    except Exception as error:
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(f"--track {name}: {first}") from error


def _key(folder: RunFolder) -> str:
    """Return the name under which trackers know the run, drawn when it is first asked for."""
    path = folder.tracking_path
    if not path.is_file():
        write_json(path, {"key": secrets.token_hex(8)})
    return str(read_json(path)["key"])


def _final(folder: RunFolder) -> dict[str, float]:
    """Return the figures of the trained model on test users."""
    rows = read_evaluation(folder.evaluation_path).get("rows", [])
    return {f"test/{name}": row[name] for row in rows[:1] for name in _FINAL if row.get(name)}


def _flat(value: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Lay nested tables out as dotted keys and short texts."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _flat(inner, f"{prefix}.{key}" if prefix else str(key))
    elif value is not None:
        yield prefix, str(value)[:_LONGEST]
