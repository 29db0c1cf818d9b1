"""How an attacker who knows the formats rewrites a run's files, and what the audit says then."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pfl_lm.audit.accounting.check import audit_accounting
from pfl_lm.audit.artifacts import RunArtifacts, digest_of
from pfl_lm.audit.ledger.check import audit_ledger


def failing(run: Path, *, accounting: bool = True) -> dict[str, str]:
    """Audit what a run wrote down; return the findings that fail, by name.

    Args:
        accounting: recompute the stated figures too, which takes a second.
    """
    artifacts = RunArtifacts.open(run)
    parts = [audit_accounting(artifacts)] * accounting + [audit_ledger(artifacts)]
    return {f.name: f.text for part in parts for f in part.findings if f.holds is False}


def entries_of(run: Path) -> list[dict[str, Any]]:
    """Return the entries of a run's ledger."""
    lines = (run / "ledger.jsonl").read_text().splitlines()
    return [json.loads(line)["entry"] for line in lines]


def chained(entries: list[dict[str, Any]]) -> list[str]:
    """Return the lines of a ledger that holds these entries."""
    lines, previous = [], "0" * 64
    for index, entry in enumerate(entries):
        body = {"index": index, "previous": previous, "entry": entry}
        previous = hashlib.sha256(_canonical(body)).hexdigest()
        lines.append(_canonical({**body, "hash": previous}).decode())
    return lines


def rewrite_ledger(run: Path, change: Callable[[list[dict[str, Any]]], None]) -> None:
    """Change a ledger's entries in place, and chain them again."""
    entries = entries_of(run)
    change(entries)
    (run / "ledger.jsonl").write_text("".join(line + "\n" for line in chained(entries)))


def rewrite_manifest(run: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change a manifest in place; the ledger's first entry vouches for it again."""
    path = run / "manifest.json"
    manifest = json.loads(path.read_text())
    change(manifest)
    path.write_text(json.dumps(manifest))

    def vouch(entries: list[dict[str, Any]]) -> None:
        entries[0] |= {
            "policy_digest": digest_of(manifest["policy"]),
            "manifest_digest": digest_of(manifest),
            "statements": manifest["statements"],
        }

    rewrite_ledger(run, vouch)


def rewrite_metrics(run: Path, change: Callable[[list[dict[str, Any]]], None]) -> None:
    """Change the lines of a run's metrics in place."""
    path = run / "metrics.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    change(lines)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def _canonical(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()
