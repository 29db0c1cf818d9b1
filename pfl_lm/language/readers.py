"""Readers of text by user: JSONL, CSV, Parquet, LEAF JSON, a folder of text files.

Each yields messages in source order and reports what it could not read as ``Malformed`` instead
of failing; damage to a whole file (truncated archive, broken JSON document) is a ValueError.
"""

from __future__ import annotations

import csv
import io
import json
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, NamedTuple

from pfl_lm.language.compressed import (
    COMPRESSED,
    LONGEST_LINE,
    Advance,
    bare_suffix,
    ignore,
    lines,
    open_binary,
    whole_file_errors,
)

FORMATS = (".jsonl", ".ndjson", ".csv", ".tsv", ".parquet", ".json")
_LEAF_PADDING = frozenset(("<PAD>", "<BOS>", "<EOS>"))


class Message(NamedTuple):
    """One message of one user."""

    user: str
    text: str


class Malformed(NamedTuple):
    """One record that could not be read; ``line`` counts from 1 (or records, without lines)."""

    file: str
    line: int
    reason: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.reason}"


Record = Message | Malformed


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

    Raises:
        ValueError: another format, or a line that is not readable; public text is expected clean.
    """
    path = Path(path)
    suffix = bare_suffix(path)
    if suffix not in (".txt", ".jsonl", ".ndjson"):
        raise ValueError(f"{path}: public text is read from .txt or .jsonl, plain or compressed")
    with whole_file_errors(path), open_binary(path, ignore) as file:
        for number, line in lines(file):
            try:
                text = line.decode("utf-8") if line is not None else None
                if suffix != ".txt" and text is not None:
                    text = json.loads(text)[text_field]
            except (ValueError, KeyError, TypeError) as error:
                raise ValueError(f"{path}:{number}: {_brief(error)}") from error
            if not isinstance(text, str):
                raise ValueError(f"{path}:{number}: no text")
            yield text


def format_of(path: Path) -> str:
    """Return the format of a file by its name; ValueError lists what can be read."""
    suffix = bare_suffix(path)
    if suffix not in FORMATS:
        raise ValueError(
            f"{path}: cannot tell the format; expected a folder of .txt files, or a file in "
            f"{', '.join(FORMATS)}, plain or with {', '.join(COMPRESSED)}"
        )
    return suffix


def _read_jsonl(file: IO[bytes], path: Path, user: str, text: str) -> Iterator[Record]:
    parse = json.loads
    for number, line in lines(file):
        if line is not None and line.isspace():
            continue
        try:
            if line is None:
                raise ValueError(f"longer than {LONGEST_LINE:,} bytes")
            row = parse(line.decode("utf-8"))
            record = Message(row[user], row[text])
            if type(record.text) is not str or type(record.user) is not str or not record.user:
                record = _as_message(row, user, text)
            yield record
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            yield Malformed(str(path), number, _brief(error))


def _as_message(row: Any, user: str, text: str) -> Message:
    """Check one row; whole numbers are accepted as user ids."""
    who, what = row[user], row[text]
    if isinstance(who, int) and not isinstance(who, bool):
        who = str(who)
    if not isinstance(who, str) or not who:
        raise ValueError(f"field {user!r} holds no user id")
    if not isinstance(what, str):
        raise ValueError(f"field {text!r} holds no text")
    return Message(who, what)


def _read_csv(file: IO[bytes], path: Path, user: str, text: str) -> Iterator[Record]:
    decoded = io.TextIOWrapper(file, "utf-8-sig", errors="surrogateescape", newline="")  # type: ignore[arg-type]
    table = csv.DictReader(decoded, delimiter="\t" if bare_suffix(path) == ".tsv" else ",")
    _require_columns(path, list(table.fieldnames or []), user, text)
    while True:
        try:
            row = next(table)
            if None in row or None in row.values():
                raise ValueError(f"expected {len(table.fieldnames or [])} columns")
            message = _as_message(row, user, text)
            "".join(message).encode("utf-8")
            yield message
        except StopIteration:
            return
        except (ValueError, csv.Error) as error:
            yield Malformed(str(path), table.line_num, _brief(error))


def _read_parquet(file: IO[bytes], path: Path, user: str, text: str) -> Iterator[Record]:
    import pyarrow
    from pyarrow import parquet

    with tempfile.TemporaryFile() as plain:  # Parquet is read from its end: no stream will do
        source: Any = file
        if path.suffix.lower() in COMPRESSED:
            shutil.copyfileobj(file, plain)
            source = plain
        try:
            table = parquet.ParquetFile(source)
            _require_columns(path, table.schema_arrow.names, user, text)
            number = 0
            for batch in table.iter_batches(batch_size=8192, columns=[user, text]):
                users, texts = batch.column(user).to_pylist(), batch.column(text).to_pylist()
                for row in zip(users, texts, strict=True):
                    number += 1
                    try:
                        yield _as_message({user: row[0], text: row[1]}, user, text)
                    except ValueError as error:
                        yield Malformed(str(path), number, _brief(error))
        except (pyarrow.ArrowException, OSError) as error:
            raise ValueError(f"{path}: not a readable Parquet file: {_brief(error)}") from error


def _read_leaf(file: IO[bytes], path: Path, user: str, text: str) -> Iterator[Record]:
    """Read LEAF's {"users": …, "user_data": {user: {"x": …}}}, one file whole: LEAF shards.

    Source: Caldas et al. 2019, "LEAF: A Benchmark for Federated Settings", its data format.
    """
    try:
        document = json.load(file)
        everyone = document["user_data"]
        users = document.get("users", list(everyone))
        samples = {who: everyone[who]["x"] for who in users}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path}: not a LEAF file: {_brief(error)}") from error
    entry = _leaf_entry(text)
    number = 0
    for who, messages in samples.items():
        for sample in messages:
            number += 1
            try:
                yield Message(who, _leaf_text(sample if entry is None else sample[entry]))
            except (ValueError, IndexError, TypeError, KeyError) as error:
                yield Malformed(str(path), number, _brief(error))


def _leaf_entry(text: str) -> int | None:
    if not text.startswith("x."):
        return None
    if not text[2:].isdigit():
        raise ValueError(f"--text-field {text}: expected x, or x.N for entry N of each sample")
    return int(text[2:])


def _leaf_text(sample: Any) -> str:
    """Return a sample's text: a string, or (nested) lists of words as in LEAF's reddit."""
    if isinstance(sample, str):
        return sample
    if not isinstance(sample, list):
        raise ValueError("a sample is neither text nor a list of words")
    parts = (_leaf_text(part) for part in sample)
    return " ".join(part for part in parts if part not in _LEAF_PADDING)


def _read_folder(folder: Path, advance: Advance) -> Iterator[Record]:
    """Read ``<user>.txt`` or ``<user>.txt.gz`` …, a message a line, users by falling name order."""
    files = sorted(file for file in folder.iterdir() if bare_suffix(file) == ".txt")
    if not files:
        raise ValueError(f"{folder}: holds no .txt file; expected one text file per user")
    for path in files:
        user = path.name[: path.name.lower().rindex(".txt")]
        with whole_file_errors(path), open_binary(path, advance) as file:
            for number, line in lines(file):
                try:
                    if line is None:
                        raise ValueError(f"longer than {LONGEST_LINE:,} bytes")
                    yield Message(user, line.decode("utf-8"))
                except ValueError as error:
                    yield Malformed(str(path), number, _brief(error))


def _require_columns(path: Path, columns: list[str], *wanted: str) -> None:
    for column in wanted:
        if column not in columns:
            raise ValueError(
                f"{path}: no column {column!r}; its columns are {', '.join(columns) or 'none'} "
                "(choose with --user-field and --text-field)"
            )


def _brief(error: BaseException) -> str:
    if isinstance(error, KeyError):
        return f"field {error.args[0]!r} is missing"
    if isinstance(error, UnicodeDecodeError):
        return "not UTF-8"
    return " ".join(str(error).split())[:120] or type(error).__name__


_READERS = {
    ".jsonl": _read_jsonl,
    ".ndjson": _read_jsonl,
    ".csv": _read_csv,
    ".tsv": _read_csv,
    ".parquet": _read_parquet,
    ".json": _read_leaf,
}
