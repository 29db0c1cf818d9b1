"""Text by user from tables: CSV, TSV and Parquet."""

from __future__ import annotations

import csv
import shutil
import tempfile
from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple

from pfl_lm.text.compressed import COMPRESSED, LONGEST_LINE, bare_suffix, lines
from pfl_lm.text.records import Malformed, Record, brief, read_record

_ROWS = 8192  # of a Parquet file, held at a time


class Row(NamedTuple):
    """One line of a table: its fields, or the reason why it has none."""

    line: int
    fields: list[str]
    reason: str = ""


def read_table(file: IO[bytes], path: Path, user: str, text: str) -> Iterator[Record]:
    """Read .csv or .tsv; every line is one record, and none can reach into the next.

    TSV has no quoting: quote marks are letters. CSV has RFC 4180's, but a quoted field ends on
    its line: one that does not is malformed, as is the header where it comes again.

    Raises:
        ValueError: there is no header, or a column is missing or there twice.
    """
    numbered = lines(file)
    rows = tab_rows(numbered) if bare_suffix(path) == ".tsv" else comma_rows(numbered)
    header = next(rows, Row(1, []))
    if header.reason:
        raise ValueError(f"{path}:{header.line}: the header cannot be read: {header.reason}")
    if any("\r" in name for name in header.fields):
        raise ValueError(f"{path}: its lines end in carriage returns alone; end them in newlines")
    who, what = columns(path, header.fields, user, text)
    name, width = str(path), len(header.fields)
    for line, fields, reason in rows:
        if reason:
            yield Malformed(name, line, reason)
        elif len(fields) != width:
            yield Malformed(name, line, f"expected {width} columns, found {len(fields)}")
        elif fields == header.fields:  # tables that were put behind one another
            yield Malformed(name, line, "the header again, not a user's text")
        else:
            yield read_record(fields[who], fields[what], name, line, (user, text))


def columns(path: Path | str, names: Sequence[str], user: str, text: str) -> tuple[int, int]:
    """Return where the two columns are; ValueError unless each is there once."""
    for column in (user, text):
        if (count := list(names).count(column)) != 1:
            what = f"no column {column!r}" if not count else f"{count} columns {column!r}"
            other = [mark for mark in ";|\t" if len(names) == 1 and mark in names[0]]
            if other:
                raise ValueError(
                    f"{path}: its header has no comma and parts its names by {other[0]!r}; write "
                    "CSV with commas, or .tsv with tabs and without quotes"
                )
            known = ", ".join(n if n and n == n.strip() else repr(n) for n in names) or "none"
            raise ValueError(
                f"{path}: {what}; its columns are {known} "
                "(choose with --user-field and --text-field)"
            )
    return list(names).index(user), list(names).index(text)


def tab_rows(numbered: Iterator[tuple[int, bytes | None]]) -> Iterator[Row]:
    """Yield the rows of a TSV file."""
    for number, line in numbered:
        if line is None:
            yield Row(number, [], f"longer than {LONGEST_LINE:,} bytes")
        elif line.strip(b" \r\n"):
            yield Row(number, _decode(line).split("\t"))


def comma_rows(numbered: Iterator[tuple[int, bytes | None]]) -> Iterator[Row]:
    """Yield the rows of a CSV file, one a line.

    A quoted field that is open at the end of its line has two readings: a stray quote mark, or a
    field that holds line ends. Where the second one is consistent, nobody can tell whose text the
    lines hold, and all of them are malformed; where it is not, the first line alone is.
    """
    csv.field_size_limit(LONGEST_LINE)
    again: deque[tuple[int, bytes | None]] = deque()  # lines of a second reading that failed
    while (numbered_line := again.popleft() if again else next(numbered, None)) is not None:
        number, line = numbered_line
        if line is None:
            yield Row(number, [], f"longer than {LONGEST_LINE:,} bytes")
            continue
        if not line.strip(b" \r\n"):
            continue
        if b'"' not in line:
            yield Row(number, _decode(line).split(","))
            continue
        taken = [numbered_line]
        fields, reason = _one_record(taken, again, numbered)
        if len(taken) == 1 and not reason:
            yield Row(number, fields)
        elif len(taken) == 1 or reason:
            yield Row(number, [], _OPEN if len(taken) > 1 or "end of data" in reason else reason)
            again.extendleft(reversed(taken[1:]))
        else:
            for inside, _ in taken:
                yield Row(inside, [], f"{_OPEN} (from line {number} to {taken[-1][0]})")


_OPEN = "a quoted field does not end on its line; write text with line ends as JSONL or Parquet"


def _one_record(
    taken: list[tuple[int, bytes | None]],
    again: deque[tuple[int, bytes | None]],
    numbered: Iterator[tuple[int, bytes | None]],
) -> tuple[list[str], str]:
    """Read one record as RFC 4180 has it, over as many lines as it says; they go to ``taken``."""

    def feed() -> Iterator[str]:
        yield _decode(taken[0][1] or b"")
        while (following := again.popleft() if again else next(numbered, None)) is not None:
            taken.append(following)
            if following[1] is None:
                return
            yield _decode(following[1]) + "\n"

    try:
        return next(csv.reader(feed(), strict=True)), ""
    except csv.Error as error:
        return [], brief(error)


def _decode(line: bytes) -> str:
    """Decode a line without its end; bytes that are no UTF-8 stay visible to the rule for text."""
    return line.removesuffix(b"\n").removesuffix(b"\r").decode("utf-8", "surrogateescape")


def read_parquet(file: IO[bytes], path: Path, user: str, text: str) -> Iterator[Record]:
    """Read the two columns of a Parquet file.

    Raises:
        ValueError: it is none, it is damaged, or a column is missing or there twice.
    """
    import pyarrow
    from pyarrow import parquet

    with tempfile.TemporaryFile() as plain:  # Parquet is read from its end: no stream will do
        source: Any = file
        if path.suffix.lower() in COMPRESSED:
            shutil.copyfileobj(file, plain)
            source = plain
        try:
            table = parquet.ParquetFile(source)
            columns(path, table.schema_arrow.names, user, text)
            number = 0
            for batch in table.iter_batches(batch_size=_ROWS, columns=[user, text]):
                pairs = (_values(batch.column(name)) for name in (user, text))
                for who, what in zip(*pairs, strict=True):
                    number += 1
                    yield _parquet_record(who, what, str(path), number, (user, text))
        except (pyarrow.ArrowException, OSError, KeyError) as error:
            raise ValueError(f"{path}: not a readable Parquet file: {brief(error)}") from error


def _parquet_record(who: Any, what: Any, file: str, number: int, names: tuple[str, str]) -> Record:
    for value, name in ((who, names[0]), (what, names[1])):
        if isinstance(value, UnicodeDecodeError):
            return Malformed(file, number, f"field {name!r} is not UTF-8")
    return read_record(who, what, file, number, names)


def _values(column: Any) -> list[Any]:
    """Return a column's values; one that cannot be decoded stands as its error."""
    try:
        values: list[Any] = column.to_pylist()
        return values
    except UnicodeDecodeError:
        return [_value(scalar) for scalar in column]


def _value(scalar: Any) -> Any:
    try:
        return scalar.as_py()
    except UnicodeDecodeError as error:
        return error
