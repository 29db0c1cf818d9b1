"""The proof that a question's result was paid for: folder, ledger and result agree."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pfl_lm.dp.ledger import Entry, LedgerError, verify
from pfl_lm.files import sha256_of
from pfl_lm.queries.folder import QuestionFolder
from pfl_lm.run.folder import digest_of, read_json


@dataclass(frozen=True)
class PaidQuestion:
    """A finished question whose cost is in its ledger.

    Attributes:
        manifest: what was asked, and what is promised to those who were asked.
        rounds: the ledger's entries of the rounds.
        ledger_sha256: of the ledger's bytes.
    """

    manifest: dict[str, Any]
    rounds: list[Entry]
    ledger_sha256: str


def open_paid(folder: QuestionFolder, what: str, verb: str) -> PaidQuestion:
    """Open a finished question, once the ledger is seen to have paid for its result.

    Args:
        what: the result, in the plural, for messages.
        verb: the one that writes the folder.

    Raises:
        ValueError: the folder holds no finished question, its ledger is missing or broken, has no
            entry of a round, or names another result than is there; a printed seed gives the noise
            again, so that the result is as good as without; or a trial asked.
    """
    remedy = f"`pfl-lm {verb}` writes both"
    for path in (folder.result_path, folder.ledger_path, folder.manifest_path):
        if not path.is_file():
            raise ValueError(f"{folder.path}: {path.name} is missing, so nothing shows that the "
                             f"{what} were paid for; {remedy}")  # fmt: skip
    try:
        entries = verify(folder.ledger_path)
    except LedgerError as error:
        raise ValueError(f"{folder.path}: the ledger cannot be believed: {error}") from error
    manifest = read_json(folder.manifest_path)
    reason = _unpaid(entries, manifest, folder.result_path)
    if reason is not None:
        raise ValueError(f"{folder.path}: {reason}; {remedy}")
    rounds = [entry for entry in entries if entry["kind"] == "round"]
    return PaidQuestion(manifest, rounds, sha256_of(folder.ledger_path))


def _unpaid(entries: Sequence[Entry], manifest: dict[str, Any], result: Path) -> str | None:
    """Return why a ledger does not show that this result was paid for, or None."""
    if entries[0].get("manifest_digest") != digest_of(manifest):
        return "manifest.json is not the one that the ledger began with"
    if manifest["asked"]["seed"] != "secret":
        return "the noise came from --seed, which anybody can take off the result; ask without it"
    if manifest.get("served", {}).get("trial"):
        return "a trial asked, which protects nobody; ask without --trial"
    if not any(entry["kind"] == "round" and entry.get("event") for entry in entries):
        return "the ledger has no entry of a round that devices answered"
    ends = [entry for entry in entries if entry["kind"] == "end"]
    if not ends or ends[-1].get("result") != sha256_of(result):
        return f"{result.name} is not the result that the ledger's last entry names"
    return None
