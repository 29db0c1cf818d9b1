"""A run's folder: what a run writes down, and how it is found again after a crash.

manifest.json    what was run, on what, by which versions, and both privacy statements
ledger.jsonl     the hash-chained record of what was spent (see pfl_lm.dp.ledger)
ledger.debited   the last round's line, where people have one budget; mode 0600, gone at the end
metrics.jsonl    one JSON object a line: rounds and evaluations
tensorboard/     the same figures for TensorBoard
noise/           secret state of correlated noise; gone when the run has ended
checkpoints/     round-000120.pt: the state after that many rounds
means/           noisy means of the rounds since the oldest checkpoint; gone when the run has ended
evaluation.json  the last evaluation on held-out users, with the baselines
budget.json      of a run that spends its people's one budget: what they had spent when it ended
model.pt         the trained model, once the run has ended
report.html      written by `pfl-lm report`
tracking.json    the name under which MLflow or Weights & Biases know the run, if they do

Where the policy's ε holds only while nobody learns how many reported (``counts_are_secret``), what
is computed from the reports of a round without noise is for the auditor alone:

ledger.jsonl           mode 0600, as it counts the reports
metrics.private.jsonl  mode 0600: the figures of each round whole; metrics.jsonl leaves those out
ledger.public.json     what may be published of the ledger: policy, statements, rounds, last hash
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from pfl_lm.files import naming, write_atomically

CHECKPOINTS_KEPT = 2
BUDGET_FILE = "budget.json"
_WITHOUT_COUNTS = {
    *("kind", "round", "payload_dim", "noise_norm", "mean_norm", "clip_norm", "short_share"),
    *("epsilon", "epsilon_unamplified"),
}


@dataclass(frozen=True)
class RunFolder:
    """The paths of one run."""

    path: Path

    @classmethod
    def open(cls, path: Path) -> RunFolder:
        """Open the folder of a run that has started.

        Raises:
            ValueError: there is no manifest in it.
        """
        folder = cls(Path(path))
        if not folder.manifest_path.is_file():
            raise ValueError(
                f"{path} is not a run folder: it has no manifest.json (if a run was killed as it "
                "began, remove the folder and start again)"
            )
        return folder

    @property
    def manifest_path(self) -> Path:
        return self.path / "manifest.json"

    @property
    def ledger_path(self) -> Path:
        return self.path / "ledger.jsonl"

    @property
    def metrics_path(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def private_metrics_path(self) -> Path:
        return self.path / "metrics.private.jsonl"

    @property
    def public_ledger_path(self) -> Path:
        return self.path / "ledger.public.json"

    @property
    def served_rounds_path(self) -> Path:
        """The store of a server's rounds: it is there if devices called over the network."""
        return self.path / "rounds.sqlite"

    @property
    def tensorboard_path(self) -> Path:
        return self.path / "tensorboard"

    @property
    def evaluation_path(self) -> Path:
        return self.path / "evaluation.json"

    @property
    def model_path(self) -> Path:
        return self.path / "model.pt"

    @property
    def budget_path(self) -> Path:
        return self.path / BUDGET_FILE

    @property
    def report_path(self) -> Path:
        return self.path / "report.html"

    @property
    def tracking_path(self) -> Path:
        return self.path / "tracking.json"

    def manifest(self) -> dict[str, Any]:
        return read_json(self.manifest_path)

    def metrics(self) -> list[dict[str, Any]]:
        """Return every whole line of the metrics; a line cut off by a crash is passed over."""
        return read_metrics(self.metrics_path)

    def all_metrics(self) -> list[dict[str, Any]]:
        """Return the metrics with the figures that are kept for the auditor, where some are."""
        path = self.private_metrics_path
        return read_metrics(path if path.exists() else self.metrics_path)

    def checkpoint_path(self, round: int) -> Path:
        return self.path / "checkpoints" / f"round-{round:06d}.pt"

    def checkpoints(self) -> dict[int, Path]:
        """Return the checkpoints by the number of rounds that they hold, oldest first."""
        paths = {}
        for path in (self.path / "checkpoints").glob("round-*.pt"):
            if matched := re.fullmatch(r"round-(\d+)\.pt", path.name):
                paths[int(matched[1])] = path
        return dict(sorted(paths.items()))

    def prune_checkpoints(self) -> None:
        """Keep the newest checkpoints only."""
        for path in list(self.checkpoints().values())[:-CHECKPOINTS_KEPT]:
            path.unlink()


class RunLog:
    """The running log of figures: JSON lines, and the same figures for TensorBoard."""

    def __init__(
        self, folder: RunFolder, start_round: int, counts_are_secret: bool = False
    ) -> None:
        """Open the log to continue at ``start_round``; lines of later rounds are dropped.

        Args:
            counts_are_secret: keep what follows from the reports of a round without noise in a
                file of its own, which its owner alone can read.
        """
        kept = [line for line in folder.all_metrics() if _precedes(line, start_round)]
        self._private = None
        if counts_are_secret:
            self._private = _reopened(folder.private_metrics_path, kept, 0o600)
            kept = [without_counts(line) for line in kept]  # a killed run may lack the last one
        self._file = _reopened(folder.metrics_path, kept, 0o644)
        self._evaluated = {entry["round"] for entry in kept if entry["kind"] == "evaluation"}
        from torch.utils.tensorboard import SummaryWriter

        self._board = SummaryWriter(str(folder.tensorboard_path), purge_step=start_round)

    def write(self, entry: dict[str, Any]) -> dict[str, Any]:
        """Append one entry, which must have ``kind`` and ``round``; return what is public of it."""
        if self._private is not None:
            _append(self._private, entry)
            entry = without_counts(entry)
        _append(self._file, entry)
        if entry["kind"] == "evaluation":
            self._evaluated.add(entry["round"])
        # The time of a round grows with its reports: where their number is secret, so is the time.
        time = None if self._private is None else float(entry["round"])
        for name, value in figures_of(entry).items():
            self._board.add_scalar(name, value, entry["round"], walltime=time)
        return entry

    def owes_evaluation(self, every: int, round: int) -> bool:
        """Whether an evaluation is due after ``round`` rounds and not yet noted.

        Args:
            every: rounds between two evaluations; 0: never.
        """
        return bool(every) and round % every == 0 and round not in self._evaluated

    def close(self) -> None:
        with ExitStack() as ending:  # each is closed though another one cannot be
            for file in (self._board, self._private, self._file):
                if file is not None:
                    ending.callback(file.close)


def figures_of(entry: Mapping[str, Any]) -> dict[str, float]:
    """Return the numbers in a line of the metrics, named as in ``round/loss``."""
    return {
        f"{entry['kind']}/{name}": value
        for name, value in entry.items()
        if isinstance(value, int | float) and name != "round"
    }


def _precedes(entry: Mapping[str, Any], start_round: int) -> bool:
    # An evaluation is labelled with the rounds trained before it, a round with its own number.
    last = start_round if entry["kind"] == "evaluation" else start_round - 1
    return bool(entry["round"] <= last)


def without_counts(entry: dict[str, Any]) -> dict[str, Any]:
    """Leave out of a round's figures what follows from its reports without noise.

    Counts, and what tells of one: bytes, seconds, and every mean over the reports. What stays is
    public before the round, or follows from the noisy mean.
    """
    if entry["kind"] != "round":
        return entry
    return {name: value for name, value in entry.items() if name in _WITHOUT_COUNTS}


def _reopened(path: Path, kept: list[dict[str, Any]], mode: int) -> TextIO:
    """Write the lines that a log keeps, whole or not at all, and open it to go on."""
    with write_atomically(path, mode) as temporary:
        temporary.write_text("".join(_line(entry) for entry in kept), encoding="utf-8")
    return path.open("a", encoding="utf-8")


def _append(file: TextIO, entry: Mapping[str, Any]) -> None:
    with naming(Path(file.name)):
        file.write(_line(entry))
        file.flush()


def _line(entry: Mapping[str, Any]) -> str:
    return json.dumps(entry, allow_nan=True) + "\n"


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        ValueError: the file is no JSON object.
    """
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:  # no JSON, no UTF-8, or nested too deep
        raise ValueError(f"{path} is damaged: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} is damaged: it should hold one JSON object")
    return content


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Return every whole line of a file of metrics; a last line without its end is passed over.

    Returns:
        Nothing where there is no file yet.

    Raises:
        ValueError: a line is no object with a kind and a round.
    """
    if not path.exists():
        return []
    try:
        lines = path.read_text(encoding="utf-8").split("\n")[:-1]
        entries = [(number, json.loads(line)) for number, line in enumerate(lines, 1) if line]
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is damaged: {error}") from error
    for number, entry in entries:
        if not _is_metric(entry):
            raise ValueError(f"{path} is damaged: line {number} is no line of a run's metrics")
    return [entry for _, entry in entries]


def _is_metric(entry: Any) -> bool:
    if not isinstance(entry, dict) or not isinstance(entry.get("kind"), str):
        return False
    return type(entry.get("round")) is int


def was_opened(line: Mapping[str, Any]) -> bool:
    """Whether the sum of a round was opened, by its line of the metrics."""
    return line.get("mean_norm") is not None


def digest_of(content: Any) -> str:
    """Return the SHA-256 of JSON content, whatever the order of its keys."""
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def write_json(path: Path, content: Mapping[str, Any] | Iterable[Any]) -> None:
    """Write a JSON file, whole or not at all."""
    with write_atomically(path) as temporary:
        temporary.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
