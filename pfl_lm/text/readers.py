"""Readers of text by user: JSONL, CSV, TSV, Parquet, LEAF JSON, a folder of text files.

Each yields messages in source order and reports what it could not read as ``Malformed`` instead
of failing; damage to a whole file (truncated archive, broken JSON document) is a ValueError. What
is an id and what is text is one rule for all: ``records``.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import IO, Any

from pfl_lm.text.compressed import (
    COMPRESSED,
    LONGEST_LINE,
    Advance,
    bare_suffix,
    ignore,
    lines,
    open_binary,
    whole_file_errors,
)
from pfl_lm.text.leaf import read_leaf
from pfl_lm.text.records import Malformed, Record, brief, message_text, read_record
from pfl_lm.text.tables import read_parquet, read_table

FORMATS = (".jsonl", ".ndjson", ".csv", ".tsv", ".parquet", ".json")
_TOO_LONG = f"longer than {LONGEST_LINE:,} bytes"


def read_messages(
    path: Path,
    user_field: str = "user",
    text_field: str = "text",
    advance: Advance | None = None,
) -> Iterator[Record]:
    """Read one input, its format told by its name (``text.jsonl.gz``), or a folder by user.

    Args:
        path: a file in one of ``FORMATS``, plain or compressed, or a folder of ``<user>.txt``.
        user_field, text_field: JSON keys or column names. In LEAF files, users are keys, and the
            text is ``x``; ``x.4`` takes the entry 4 of each sample.
        advance: called with the number of (compressed) bytes read since the call before.

    Raises:
        ValueError: unknown format, a missing column, or a file damaged as a whole.
    """
    path = Path(path)
    advance = advance or ignore
    if path.is_dir():
        yield from _read_folder(path, advance)
        return
    reader = _READERS[format_of(path)]
    with whole_file_errors(path), open_binary(path, advance) as file:
        yield from reader(file, path, user_field, text_field)


def read_texts(path: Path, text_field: str = "text") -> Iterator[str]:
    """Read public text, message by message, from .txt (a line each) or .jsonl, plain or compressed.

    Blank lines are passed over, as they are by the reader of text by user.

    Raises:
        ValueError: another format, or a line that is not readable; public text is expected clean.
    """
    path = Path(path)
    suffix = bare_suffix(path)
    if suffix not in (".txt", ".jsonl", ".ndjson"):
        raise ValueError(f"{path}: public text is read from .txt or .jsonl, plain or compressed")
    with whole_file_errors(path), open_binary(path, ignore) as file:
        for number, line in lines(file):
            if line is not None and not line.strip():
                continue
            try:
                decoded = _decode(line)
                if suffix != ".txt":
                    (value,) = _fields(decoded, text_field)
                    decoded = message_text(value)
            except (ValueError, KeyError, RecursionError) as error:
                raise ValueError(f"{path}:{number}: {_of_text(error, text_field)}") from error
            yield decoded


def first_row_has(path: Path, field: str) -> bool:
    """Say whether the first row of a .jsonl file, plain or compressed, has a field."""
    if bare_suffix(path) not in (".jsonl", ".ndjson"):
        return False
    with whole_file_errors(path), open_binary(path, ignore) as file:
        for _, line in lines(file):
            try:
                return bool(_fields(_decode(line), field))
            except (ValueError, KeyError, RecursionError):
                return False
    return False


def _of_text(error: BaseException, field: str) -> str:
    said = brief(error)
    return f"field {field!r} holds no text: {said}" if said.startswith("it is") else said


def format_of(path: Path) -> str:
    """Return the format of a file by its name; ValueError lists what can be read."""
    suffix = bare_suffix(path)
    if suffix not in FORMATS:
        raise ValueError(
            f"{path}: cannot tell the format; expected a folder of .txt files, or a file in "
            f"{', '.join(FORMATS)}, plain or with {', '.join(COMPRESSED)}"
        )
    return suffix


def text_files(folder: Path) -> list[Path]:
    """Return the text files of a folder by user; hidden ones are some program's own."""
    return sorted(
        path
        for path in folder.iterdir()
        if bare_suffix(path) == ".txt" and not path.name.startswith(".") and path.is_file()
    )


def _read_jsonl(file: IO[bytes], path: Path, user: str, text: str) -> Iterator[Record]:
    name = str(path)
    for number, line in lines(file):
        if line is not None and not line.strip():
            continue
        try:
            who, what = _fields(_decode(line), user, text)
            yield read_record(who, what, name, number, (user, text))
        except (ValueError, KeyError, RecursionError) as error:
            yield Malformed(name, number, brief(error))


def _decode(line: bytes | None) -> str:
    if line is None:
        raise ValueError(_TOO_LONG)
    return line.decode("utf-8")


def _fields(line: str, *names: str) -> list[Any]:
    """Return the values of a JSON object's fields; KeyError or ValueError where one is not there.

    A field that is there twice is refused: which of the two is meant, nobody can tell.
    """
    try:
        row = json.loads(line)
    except RecursionError:
        raise ValueError("its JSON is nested too deeply") from None
    if not isinstance(row, dict):
        raise ValueError(f"expected a JSON object, found a {type(row).__name__}")
    for name in names:
        if line.count(f'"{name}"') > 1:  # a value may be spelled like the field
            json.loads(line, object_pairs_hook=partial(_once, name))
    return [row[name] for name in names]


def _once(name: str, pairs: list[tuple[str, Any]]) -> None:
    if sum(key == name for key, _ in pairs) > 1:
        raise ValueError(f"field {name!r} is there twice")


def _read_folder(folder: Path, advance: Advance) -> Iterator[Record]:
    """Read ``<user>.txt`` or ``<user>.txt.gz`` …, a message a line, users in the order of names."""
    files = text_files(folder)
    if not files:
        raise ValueError(f"{folder}: holds no .txt file; expected one text file per user")
    for path in files:
        user = path.name[: path.name.lower().rindex(".txt")]
        with whole_file_errors(path), open_binary(path, advance) as file:
            for number, line in lines(file):
                try:
                    text = _decode(line).removesuffix("\n").removesuffix("\r")
                    yield read_record(user, text, str(path), number, ("file name", "line"))
                except ValueError as error:
                    yield Malformed(str(path), number, brief(error))


_READERS = {
    ".jsonl": _read_jsonl,
    ".ndjson": _read_jsonl,
    ".csv": read_table,
    ".tsv": read_table,
    ".parquet": read_parquet,
    ".json": read_leaf,
}
