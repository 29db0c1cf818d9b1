"""Small tables with tabs between their columns: what a question found, or what it is asked by."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from pfl_lm.files import write_atomically


@dataclass(frozen=True)
class TabTable:
    """A kind of table.

    Attributes:
        kind: how errors call it, such as ``list of discovered words``.
        columns: their names, in the first line of the file.
    """

    kind: str
    columns: tuple[str, ...]

    def write(self, path: Path, rows: Iterable[Sequence[str]]) -> None:
        """Write a table, whole or not at all."""
        lines = ("\t".join(row) for row in (self.columns, *rows))
        with write_atomically(path) as temporary:
            temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")

    def read(self, path: Path) -> Iterator[tuple[str, list[str]]]:
        """Yield each row's place ``file:line`` and its fields.

        Lines may end as Windows ends them.

        Raises:
            ValueError: the file cannot be read, has another header, or a row has other columns.
        """
        try:
            header, *lines = Path(path).read_text(encoding="utf-8").removesuffix("\n").split("\n")
        except (OSError, UnicodeDecodeError) as error:
            raise ValueError(f"{path} cannot be read: {error}") from None
        named = " and ".join(self.columns) if len(self.columns) == 2 else ", ".join(self.columns)
        if header.removesuffix("\r").split("\t") != list(self.columns):
            raise ValueError(
                f"{path} is no {self.kind}: its first line must be {named}, with a tab between "
                f"them, and is {header!r}"
            )
        for number, line in enumerate(lines, start=2):
            fields = line.removesuffix("\r").split("\t")
            if len(fields) != len(self.columns):
                raise ValueError(f"{path}:{number}: expected {named}, with a tab between them")
            yield f"{path}:{number}", fields


def numbers(place: str, fields: Sequence[str]) -> list[float]:
    """Return fields of a row as numbers; raises ValueError naming the place of one that is none."""
    try:
        return [float(field) for field in fields]
    except ValueError:
        raise ValueError(f"{place}: expected numbers, and found {', '.join(fields)}") from None
