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
        record = json.loads(line, parse_constant=_refuse)
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
    return _misshapen(entry), entry, digest


def _refuse(constant: str) -> None:
    """Refuse NaN and infinities, which no ledger holds."""
    raise ValueError(f"{constant} is no JSON")


_NUMBER, _TABLE = (int, float), (dict, type(None))
# What a reader relies on where an entry of a round has it; whether it must is the replay's.
_SHAPES: dict[str, tuple[type, ...]] = {
    "round": (int,),
    "reports": (int,),
    "divisor": (int,),
    "trimmed": (int,),
    "sum_multiplier": _NUMBER,
    "clip_norm": _NUMBER,
    "event": _TABLE,
    "event.noise_multiplier": _NUMBER,
    "noise": _TABLE,
    "noise.planned": _NUMBER,
    "noise.achieved": _NUMBER,
    "grid": (dict,),
    "grid.scale": _NUMBER,
    "grid.norm_bound": _NUMBER,
    "grid.bits": (int,),
    "payload": (dict,),
    "payload.dim": (int,),
    "clipping": (dict,),
    "clipping.share": _NUMBER,
    "clipping.next": (dict,),
    "clipping.next.norm": _NUMBER,
    "clipping.next.rate": _NUMBER,
    "clipping.next.side": _NUMBER,
    "released": (str, type(None)),
    "noise_state": (str,),
    "noise_taken_up": (str,),
    "failure": (str,),
    "groups": (list,),
}
_GROUP = {"reports": int, "asked": bool, "failure": str}


def _misshapen(entry: dict[str, Any]) -> str:
    """Return which value of a round's entry is of a wrong type, or ""."""
    if not isinstance(entry.get("kind", ""), str):
        return f"kind = {entry['kind']!r} is no text"
    if entry.get("kind") not in ("round", "abandoned"):
        return ""
    if "round" not in entry:
        return "round is missing"
    for key, types in _SHAPES.items():
        value: Any = entry
        for name in key.split("."):
            value = value.get(name, _ABSENT) if isinstance(value, dict) else _ABSENT
        if value is not _ABSENT and type(value) not in types:
            expected = " or ".join(kind.__name__ for kind in types)
            return f"{key} = {value!r} is of a wrong type; expected {expected}"
    return _misshapen_group(entry.get("groups", []))


def _misshapen_group(groups: list[Any]) -> str:
    for group in groups:
        if not isinstance(group, dict):
            return f"groups holds {group!r}, which is no table"
        for name, kind in _GROUP.items():
            if type(group.get(name)) is not kind:
                return f"groups.{name} = {group.get(name)!r} is of a wrong type"
    return ""


_ABSENT = object()


def _canonical(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()
