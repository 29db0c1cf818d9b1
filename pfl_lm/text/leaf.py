"""Text by user from LEAF's JSON, and from the LEAF files that `population export` writes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from pfl_lm.text.population import SPLITS
from pfl_lm.text.records import Malformed, Record, brief, read_record

SPLIT_KEY = "pfl_lm_split"  # a LEAF file of ours states its split: LEAF's own divide every user
_PADDING = frozenset(("<PAD>", "<BOS>", "<EOS>"))
_DEEPEST = 8  # lists within lists; LEAF's reddit has two


def read_leaf(file: IO[bytes], path: Path, user: str, text: str) -> Iterator[Record]:
    """Read {"users": …, "user_data": {user: {"x": …}}}, one file whole: LEAF shards.

    Users are the keys of ``user_data``, listed in ``users`` or not; one who is listed and has no
    data is malformed, as is one whose ``x`` is no list.

    Source: Caldas et al. 2019, "LEAF: A Benchmark for Federated Settings", its data format.

    Raises:
        ValueError: the document is not of this format, or names a user twice.
    """
    entry = _entry(text)
    document = _document(file, path)
    everyone, split = document["user_data"], document.get(SPLIT_KEY)
    name, number = str(path), 0
    for who in _listed(document, everyone, path):
        if who not in everyone:
            number += 1
            yield Malformed(name, number, f"user {who[:40]!r} is listed and has no data")
            continue
        samples = everyone[who].get("x") if isinstance(everyone[who], dict) else None
        if not isinstance(samples, list):
            number += 1
            yield Malformed(name, number, f"user {who[:40]!r}: x is no list of samples")
            continue
        for sample in samples:
            number += 1
            try:
                yield read_record(who, _text(sample, entry), name, number, split=split)
            except ValueError as error:
                yield Malformed(name, number, brief(error))


def _document(file: IO[bytes], path: Path) -> dict[str, Any]:
    try:
        document = json.load(file, object_pairs_hook=_once)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not a LEAF file: {brief(error)}{_LINES}") from error
    if not isinstance(document, dict) or not isinstance(document.get("user_data"), dict):
        raise ValueError(
            f"{path}: not a LEAF file: that is an object with user_data, an object by user{_LINES}"
        )
    if document.get(SPLIT_KEY) not in (None, *SPLITS):
        raise ValueError(f"{path}: {SPLIT_KEY} is none of {', '.join(SPLITS)}")
    return document


_LINES = "; a file with one JSON object a line is named .jsonl"


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Build an object, and refuse one that has a key twice: the first would be lost."""
    fields = dict(pairs)
    if len(fields) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"the key {twice[:40]!r} is there twice")
    return fields


def _listed(document: dict[str, Any], everyone: dict[str, Any], path: Path) -> list[str]:
    """Return all users: those that are listed, then those that are not and have data."""
    listed = document.get("users") or []
    if not isinstance(listed, list):
        raise ValueError(f"{path}: not a LEAF file: users is no list")
    return list(dict.fromkeys([*map(str, listed), *everyone]))


def _entry(text: str) -> int | None:
    if not text.startswith("x."):
        return None
    if not text[2:].isdecimal():
        raise ValueError(f"--text-field {text}: expected x, or x.N for entry N of each sample")
    return int(text[2:])


def _text(sample: Any, entry: int | None) -> str:
    if entry is None:
        return _words(sample)
    if not isinstance(sample, list) or entry >= len(sample):
        raise ValueError(f"the sample is no list with an entry {entry}")
    return _words(sample[entry])


def _words(sample: Any, depth: int = 0) -> str:
    """Return a sample's text: a string, or (nested) lists of words as in LEAF's reddit."""
    if isinstance(sample, str):
        return sample
    if not isinstance(sample, list):
        raise ValueError("a sample is neither text nor a list of words")
    if depth == _DEEPEST:
        raise ValueError(f"a sample's lists are nested more than {_DEEPEST} deep")
    parts = (_words(part, depth + 1) for part in sample)
    return " ".join(part for part in parts if part not in _PADDING)
