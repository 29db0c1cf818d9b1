"""A run's folder: what a run writes down, and how it is found again after a crash.

manifest.json    what was run, on what, by which versions, and both privacy statements
ledger.jsonl     the hash-chained record of what was spent (see pfl_lm.dp.ledger)
metrics.jsonl    one JSON object a line: rounds and evaluations
tensorboard/     the same figures for TensorBoard
checkpoints/     round-000120.pt: all that resuming needs, beside (seed, round)
evaluation.json  the last evaluation on held-out users, with the baselines
model.pt         the trained model, once the run has ended
report.html      written by `pfl-lm report`
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pfl_lm.files import write_atomically

CHECKPOINTS_KEPT = 2


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
                "began, remove the folder and start anew)"
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
    def tensorboard_path(self) -> Path:
        return self.path / "tensorboard"

    @property
    def evaluation_path(self) -> Path:
        return self.path / "evaluation.json"

    @property
    def model_path(self) -> Path:
        return self.path / "model.pt"

    @property
    def report_path(self) -> Path:
        return self.path / "report.html"

    def manifest(self) -> dict[str, Any]:
        return read_json(self.manifest_path)

    def metrics(self) -> list[dict[str, Any]]:
        """Return every whole line of the metrics; a line cut off by a crash is passed over."""
        if not self.metrics_path.exists():
            return []
        lines = self.metrics_path.read_text(encoding="utf-8").split("\n")
        try:
            return [json.loads(line) for line in lines[:-1] if line]
        except json.JSONDecodeError as error:
            raise ValueError(f"{self.metrics_path} is damaged: {error}") from error

    def checkpoint_path(self, round: int) -> Path:
        return self.path / "checkpoints" / f"round-{round:06d}.pt"

    def checkpoints(self) -> dict[int, Path]:
        """Return the checkpoints by the number of rounds that they hold, oldest first."""
        found = {}
        for path in (self.path / "checkpoints").glob("round-*.pt"):
            if matched := re.fullmatch(r"round-(\d+)\.pt", path.name):
                found[int(matched[1])] = path
        return dict(sorted(found.items()))

    def prune_checkpoints(self) -> None:
        """Keep the newest checkpoints only."""
        for path in list(self.checkpoints().values())[:-CHECKPOINTS_KEPT]:
            path.unlink()


class RunLog:
    """The running log of figures: JSON lines, and the same figures for TensorBoard."""

    def __init__(self, folder: RunFolder, start_round: int) -> None:
        """Open the log to continue at ``start_round``; lines of later rounds are dropped."""
        kept = [line for line in folder.metrics() if _precedes(line, start_round)]
        with write_atomically(folder.metrics_path) as temporary:
            temporary.write_text("".join(_line(entry) for entry in kept), encoding="utf-8")
        self._file = folder.metrics_path.open("a", encoding="utf-8")
        self._evaluated = {entry["round"] for entry in kept if entry["kind"] == "evaluation"}
        from torch.utils.tensorboard import SummaryWriter

        self._board = SummaryWriter(str(folder.tensorboard_path), purge_step=start_round)

    def write(self, entry: Mapping[str, Any]) -> None:
        """Append one entry; it must have ``kind`` and ``round``."""
        self._file.write(_line(entry))
        self._file.flush()
        if entry["kind"] == "evaluation":
            self._evaluated.add(entry["round"])
        for name, value in entry.items():
            if isinstance(value, int | float) and name != "round":
                self._board.add_scalar(f"{entry['kind']}/{name}", value, entry["round"])

    def owes_evaluation(self, every: int, round: int) -> bool:
        """Whether ``round`` is one of every so many (of none, where that is 0) and has no entry."""
        return bool(every) and round % every == 0 and round not in self._evaluated

    def close(self) -> None:
        self._file.close()
        self._board.close()


def _precedes(entry: Mapping[str, Any], start_round: int) -> bool:
    # An evaluation is labelled with the rounds trained before it, a round with its own number.
    last = start_round if entry["kind"] == "evaluation" else start_round - 1
    return bool(entry["round"] <= last)


def _line(entry: Mapping[str, Any]) -> str:
    return json.dumps(entry, allow_nan=True) + "\n"


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        ValueError: the file is no JSON object.
    """
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except ValueError as error:  # no JSON, or no UTF-8
        raise ValueError(f"{path} is damaged: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} is damaged: it should hold one JSON object")
    return content


def digest_of(content: Any) -> str:
    """Return the SHA-256 of JSON content, whatever the order of its keys."""
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def write_json(path: Path, content: Mapping[str, Any] | Iterable[Any]) -> None:
    """Write a JSON file, whole or not at all."""
    with write_atomically(path) as temporary:
        temporary.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
