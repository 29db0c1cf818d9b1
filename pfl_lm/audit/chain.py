"""The hash chain of a ledger, verified by code that shares nothing with the code that wrote it.

A ledger is a text file of JSON lines ``{"entry", "hash", "index", "previous"}`` in canonical form
(sorted keys, no spaces, one newline each); ``hash`` is the SHA-256 of the canonical JSON of the
other three, ``previous`` the hash of the line before, 64 zeros at first.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Chain:
    """What the file holds: the entries of the sound beginning, and the first fault, if any.

    Attributes:
        entries: as recorded, from the genesis on.
        hashes: of their lines.
        fault: empty, or what is wrong with the first line that does not fit.
    """

    entries: tuple[dict[str, Any], ...]
    hashes: tuple[str, ...]
    fault: str


def read_chain(path: Path) -> Chain:
    """Read a ledger up to its end or to the first line that the chain does not vouch for."""
    try:
        content = Path(path).read_bytes()
    except FileNotFoundError:
        return Chain((), (), "there is no ledger")
    *lines, rest = content.split(b"\n")
    entries: list[dict[str, Any]] = []
    hashes: list[str] = []
    for number, line in enumerate(lines, start=1):
        fault, entry, digest = _check(line, number - 1, hashes[-1] if hashes else "0" * 64)
        if fault:
            return Chain(tuple(entries), tuple(hashes), f"line {number}: {fault}")
        entries.append(entry)
        hashes.append(digest)
    fault = f"line {len(lines) + 1}: cut off in the middle" if rest else ""
    if not entries and not fault:
        fault = "the ledger is empty"
    elif entries and entries[0].get("kind") != "genesis":
        fault = "line 1: not the first entry of a ledger"
    return Chain(tuple(entries), tuple(hashes), fault)


def _check(line: bytes, index: int, previous: str) -> tuple[str, dict[str, Any], str]:
    """Return (what is wrong or "", the entry, the line's hash)."""
    try:
        record = json.loads(line)
        entry, digest = record["entry"], record["hash"]
        body = {"index": record["index"], "previous": record["previous"], "entry": entry}
    except (ValueError, KeyError, TypeError, RecursionError):
        return "not an entry of a ledger (edited or damaged)", {}, ""
    if not isinstance(entry, dict) or _canonical({**body, "hash": digest}) != line:
        return "not in the form in which entries are written (edited)", {}, ""
    if hashlib.sha256(_canonical(body)).hexdigest() != digest:
        return "its content does not match its hash: the entry was edited", {}, ""
    if body["index"] != index:
        return f"entry {body['index']} stands here: lines were removed, added or reordered", {}, ""
    if body["previous"] != previous:
        return "it does not continue the line before: another ledger's entry, or reordered", {}, ""
    return "", entry, digest


def _canonical(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()
