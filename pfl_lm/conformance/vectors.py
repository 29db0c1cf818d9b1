"""A conformance vector, the files that hold vectors, and the codes of refusals."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pfl_lm.files import folder_atomically
from pfl_lm.secagg.errors import MalformedMessage, Refused, WrongState
from pfl_lm.secagg.wire import VERSION

INDEX = "index.json"

# From the particular to the general: the first class that fits gives the code.
CODES: tuple[tuple[type[Exception], str], ...] = (
    (MalformedMessage, "malformed"),
    (Refused, "refused"),
    (WrongState, "wrong_state"),
    (ValueError, "invalid"),
)


def code_of(error: Exception) -> str:
    """Return the code that an answer gives to a refusal."""
    return next(code for kind, code in CODES if isinstance(error, kind))


@dataclass(frozen=True)
class Vector:
    """One request to an implementation, and the answer that conforms.

    Args:
        name: unique, a file name without its ending.
        kind: which derivation, message or state machine is asked for.
        inputs: of the kind; bytes are hexadecimal.
        output: of an accepted input; None in a negative vector.
        refused: the code of the refusal; None in a positive vector.
        rule: the sentence of PROTOCOL.md that a negative vector breaks.
        mutation_of: the positive vector from which a negative one differs in one input.
        message: part of the reference's own message; other implementations word their own.
    """

    name: str
    kind: str
    inputs: Mapping[str, Any]
    output: Mapping[str, Any] | None = None
    refused: str | None = None
    rule: str | None = None
    mutation_of: str | None = None
    message: str | None = None

    @property
    def positive(self) -> bool:
        return self.refused is None

    @property
    def answer(self) -> dict[str, Any]:
        """What a conforming implementation answers."""
        return {"output": self.output} if self.positive else {"refused": self.refused}

    def as_json(self) -> dict[str, Any]:
        fields = {"version": VERSION, **vars(self)}
        return {name: value for name, value in fields.items() if value is not None}


def write_vectors(vectors: Iterable[Vector], folder: Path) -> int:
    """Write one file for each vector, and an index; return how many vectors.

    Raises:
        ValueError: the folder exists already.
    """
    names: dict[str, list[str]] = {"positive": [], "negative": []}
    with folder_atomically(folder) as temporary:
        for sign in names:
            (temporary / sign).mkdir()
        for vector in vectors:
            sign = "positive" if vector.positive else "negative"
            names[sign].append(vector.name)
            _write(temporary / sign / f"{vector.name}.json", vector.as_json())
        counts = {sign: len(found) for sign, found in names.items()}
        _write(temporary / INDEX, {"version": VERSION, "counts": counts, **names})
    return sum(counts.values())


def read_vectors(folder: Path) -> list[Vector]:
    """Read what ``write_vectors`` wrote.

    Raises:
        ValueError: no such folder, a file of it is missing or damaged, or another version of the
            protocol.
    """
    index = _read(folder / INDEX)
    version = index.get("version")
    if version != VERSION:
        raise ValueError(
            f"{folder} has vectors of version {version}, this is version {VERSION}; write them "
            "with `pfl-lm protocol vectors`"
        )
    vectors = []
    for sign in ("positive", "negative"):
        for name in index.get(sign, []):
            fields = _read(folder / sign / f"{name}.json")
            fields.pop("version", None)
            try:
                vectors.append(Vector(**fields))
            except TypeError as error:
                raise ValueError(f"{folder / sign / name}.json is no vector: {error}") from None
    return vectors


def _write(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{path} cannot be read as a vector: {error}") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path} must hold a JSON object")
    return content


def double_hex(value: float) -> str:
    """Return a float64 as the hexadecimal of its 8 bytes, little-endian."""
    return struct.pack("<d", value).hex()
