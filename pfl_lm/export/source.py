"""The run that a bundle comes from: opened, and checked against its own record."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pfl_lm.dp.ledger import verify
from pfl_lm.files import sha256_of
from pfl_lm.language.tokenizer import Tokenizer
from pfl_lm.model_file import Model, load_model
from pfl_lm.runs import RunFolder, digest_of, read_json


@dataclass(frozen=True)
class Source:
    """A finished run.

    Attributes:
        identity: ``manifest_digest``, ``ledger_head``, ``ledger_entries``, ``model_sha256``.
        evaluation: the run's own, on held-out users; empty if it has none.
    """

    folder: RunFolder
    manifest: dict[str, Any]
    model: Model
    tokenizer: Tokenizer
    evaluation: dict[str, Any]
    identity: dict[str, Any]

    @property
    def name(self) -> str:
        return str(self.manifest["run"])

    def at(self, *keys: str) -> Any:
        """Look up a value of the manifest; None where it is absent."""
        value: Any = self.manifest
        for key in keys:
            value = value.get(key) if isinstance(value, dict) else None
        return value


def open_source(run: Path, tokenizer: Path | None = None) -> Source:
    """Open a finished run.

    Args:
        tokenizer: its vocabulary's folder; None for a run on invented users.

    Raises:
        ValueError: no run, not finished, a ledger that does not hold or belongs to another run,
            or another vocabulary.
    """
    folder = RunFolder.open(run)
    if not folder.model_path.is_file():
        raise ValueError(f"{run} has no model.pt: the run has not ended; resume it first")
    manifest, model = folder.manifest(), load_model(folder.model_path)
    words = _vocabulary(manifest, model, tokenizer)
    stated = model.origin.get("tokenizer_digest")
    if words.digest != stated or words.digest != manifest["tokenizer"]["digest"]:
        raise ValueError(f"{run} was trained with another vocabulary than {tokenizer}")
    evaluation = read_json(folder.evaluation_path) if folder.evaluation_path.is_file() else {}
    return Source(folder, manifest, model, words, evaluation, identity(folder))


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


def _vocabulary(manifest: dict[str, Any], model: Model, folder: Path | None) -> Tokenizer:
    if folder is not None:
        return Tokenizer.open(folder)
    if manifest["scenario"]["population"]["kind"] != "synthetic":
        raise ValueError("--tokenizer is missing: a manifest does not say where on a disk it lies")
    from pfl_lm.language.synthetic import synthetic_tokenizer

    return synthetic_tokenizer(model.spec.vocabulary_size)
