"""What a run folder holds, read for the page; a run may still be going, and parts may be absent."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pfl_lm.numbers import is_number
from pfl_lm.pages.charts import Series
from pfl_lm.run.evaluation_file import read_evaluation
from pfl_lm.run.folder import RunFolder, digest_of, read_json
from pfl_lm.run.manifest_file import Manifest

FEDERATED = "federated model"
# The page's colours, by what a line stands for.
STYLES = {
    FEDERATED: "s0",
    "public pretraining": "s1",
    "public bigram": "s2",
    "public unigram": "s3",
}


@dataclass(frozen=True)
class LedgerState:
    """The record of what was spent: its last hash, its length, and whether the chain holds."""

    head: str
    entries: int
    problem: str = ""


@dataclass(frozen=True)
class Run:
    """Everything the page tells."""

    manifest: Manifest
    rounds: list[dict[str, Any]]  # by round
    evaluations: list[dict[str, Any]]  # on validation users, while training
    final: dict[str, Any]  # evaluation.json
    ledger: LedgerState | None
    budget: dict[str, Any] | None = None  # what its people had spent; None where it spends nobody's

    @property
    def rows(self) -> list[dict[str, Any]]:
        """The models compared on the final held-out users, the trained one first."""
        rows = [row for row in self.final.get("rows", []) if isinstance(row, dict)]
        return sorted(rows, key=lambda row: row.get("name") != FEDERATED)

    @property
    def trained(self) -> dict[str, Any]:
        """The trained model's figures: the final ones, or the last that a going run has."""
        if self.rows and self.rows[0].get("name") == FEDERATED:
            return self.rows[0]
        return self.evaluations[-1] if self.evaluations else {}

    @property
    def baselines(self) -> list[dict[str, Any]]:
        return [row for row in self.rows if row.get("name") != FEDERATED]

    @property
    def planned_rounds(self) -> int:
        return self.manifest.scenario.rounds

    @property
    def finished(self) -> bool:
        return bool(self.final)

    def over_rounds(self, name: str, key: str, style: str = "s0", named: bool = True) -> Series:
        """Return one figure of the rounds as a line."""
        return Series(
            name,
            [entry["round"] + 1 for entry in self.rounds],
            [_finite(entry.get(key)) for entry in self.rounds],
            style,
            named,
        )

    def over_evaluations(self, name: str, key: str, style: str = "s0") -> Series:
        """Return one figure of the evaluations as a line over the rounds trained before."""
        return Series(
            name,
            [entry["round"] for entry in self.evaluations],
            [_finite(entry.get(key)) for entry in self.evaluations],
            style,
        )

    def latest(self, key: str) -> Any:
        """Return a figure of the last round that has it."""
        return next((e[key] for e in reversed(self.rounds) if is_number(e.get(key))), None)

    def mean(self, key: str) -> float | None:
        """Return a figure's mean over the rounds."""
        values = [entry[key] for entry in self.rounds if is_number(entry.get(key))]
        return math.fsum(values) / len(values) if values else None


def read_run(folder: RunFolder) -> Run:
    """Read a run folder.

    Raises:
        ValueError: the manifest or the evaluation is damaged.
    """
    metrics = folder.metrics()
    return Run(
        manifest=Manifest.read(folder),
        rounds=_of_kind(metrics, "round"),
        evaluations=_of_kind(metrics, "evaluation"),
        final=read_evaluation(folder.evaluation_path),
        ledger=_ledger(folder),
        budget=read_json(folder.budget_path) if folder.budget_path.is_file() else None,
    )


def style_of(name: str) -> str:
    """Return the colour of a model's lines."""
    return STYLES.get(name, "s4")


def _of_kind(metrics: Sequence[dict[str, Any]], kind: str) -> list[dict[str, Any]]:
    # A resumed run may have written a round again: its last words count.
    entries = {entry["round"]: entry for entry in metrics if entry.get("kind") == kind}
    return [entries[round] for round in sorted(entries)]


def _ledger(folder: RunFolder) -> LedgerState | None:
    from pfl_lm.dp.ledger import LedgerError, verify

    if not folder.ledger_path.is_file():
        return None
    lines = folder.ledger_path.read_text(encoding="utf-8", errors="replace").splitlines()
    try:
        genesis, digest = verify(folder.ledger_path)[0], digest_of(folder.manifest())
        if genesis.get("manifest_digest", digest) != digest:
            return LedgerState("", len(lines), "the manifest was changed; do not trust this page")
        return LedgerState(json.loads(lines[-1])["hash"], len(lines))
    except (LedgerError, ValueError, KeyError, IndexError) as error:
        return LedgerState("", len(lines), str(error).replace(f"{folder.ledger_path}", "ledger"))


def _finite(value: Any) -> float | None:
    return float(value) if is_number(value) else None
