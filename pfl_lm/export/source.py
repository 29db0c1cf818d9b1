"""The run that a bundle comes from: opened, and checked against its own record."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pfl_lm.dp.ledger import verify
from pfl_lm.files import sha256_of
from pfl_lm.models.file import Model, load_model
from pfl_lm.models.models import longest_text
from pfl_lm.run.folder import RunFolder, digest_of, read_json
from pfl_lm.run.manifest_file import Manifest
from pfl_lm.run.nearby import open_tokenizer
from pfl_lm.text.tokenizer import Tokenizer

_WINDOW = 20  # of a run that states none


@dataclass(frozen=True)
class Source:
    """A finished run.

    Attributes:
        identity: ``manifest_digest``, ``ledger_head``, ``ledger_entries``, ``model_sha256``.
        evaluation: the run's own, on held-out users; empty if it has none.
    """

    folder: RunFolder
    manifest: Manifest
    model: Model
    tokenizer: Tokenizer
    evaluation: dict[str, Any]
    identity: dict[str, Any]

    @property
    def name(self) -> str:
        return self.manifest.run

    @property
    def window(self) -> int:
        """Return how many ids are read at once: as in training, and no more than the model can."""
        trained = self.manifest.scenario.window or _WINDOW
        return min(trained, longest_text(self.model.spec) or trained)


def open_source(run: Path, tokenizer: Path | None = None) -> Source:
    """Open a finished run.

    Args:
        tokenizer: its vocabulary's folder; None: invented users' own, or found by its digest.

    Raises:
        ValueError: no run, not finished, a ledger that does not hold, does not end with the run or
            belongs to another one, another model than the ledger names, or another vocabulary.
    """
    folder = RunFolder.open(run)
    if not folder.model_path.is_file():
        raise ValueError(f"{run} has no model.pt: the run has not ended; resume it first")
    manifest, model = Manifest.read(folder), load_model(folder.model_path)
    words = open_tokenizer(manifest, folder.path, tokenizer)
    if words.digest != model.origin.get("tokenizer_digest"):
        raise ValueError(f"{run} was trained with another vocabulary than {tokenizer}")
    evaluation = read_json(folder.evaluation_path) if folder.evaluation_path.is_file() else {}
    stated = identity(folder)
    if problem := ending_problem(verify(folder.ledger_path), stated["model_sha256"]):
        raise ValueError(
            f"{folder.path}: {problem}. What the run states of privacy is not about this model; "
            "bring the run's own ledger and model.pt back"
        )
    return Source(folder, manifest, model, words, evaluation, stated)


def ending_problem(entries: Sequence[dict[str, Any]], model_sha256: str) -> str:
    """Say why a ledger's entries do not vouch for a model file, or nothing.

    A run records the digest of its model in an entry of kind ``end``, after the last round.
    """
    ends = [place for place, entry in enumerate(entries) if entry.get("kind") == "end"]
    if not ends:
        return "the ledger has no closing entry, so its last rounds were cut off"
    if any(entry.get("kind") in ("round", "abandoned") for entry in entries[ends[-1] :]):
        return "the ledger has a round after its closing entry"
    if entries[ends[-1]].get("model") != model_sha256:
        return "model.pt is not the model that the ledger's closing entry names: it was replaced"
    return ""


def identity(folder: RunFolder) -> dict[str, Any]:
    """Return what tells this run's model from any other's.

    Raises:
        ValueError: the ledger's chain is broken, or its first entry names another manifest.
    """
    entries = verify(folder.ledger_path)
    digest = digest_of(folder.manifest())
    if entries[0]["manifest_digest"] != digest:
        raise ValueError(
            f"{folder.path}: the ledger was begun for another manifest than the one beside it; "
            "manifest.json was replaced or altered"
        )
    last = folder.ledger_path.read_text(encoding="utf-8").splitlines()[-1]
    return {
        "manifest_digest": digest,
        "ledger_head": json.loads(last)["hash"],
        "ledger_entries": len(entries),
        "model_sha256": sha256_of(folder.model_path),
    }
