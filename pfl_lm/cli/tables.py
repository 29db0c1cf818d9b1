"""Tables on a terminal or in a pipe: no figure and no name in them is ever cut."""

from __future__ import annotations

import unicodedata
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

_TURNING = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


def visible(text: str) -> str:
    """Return a text in which control characters are spelled out, as a terminal would obey them.

    So are the marks that turn the direction of what follows; those of right-to-left words stay.
    """
    shown = (
        letter.encode("unicode_escape").decode()
        if unicodedata.category(letter) == "Cc" or letter in _TURNING
        else letter
        for letter in text
    )
    return "".join(shown)


def print_table(table: Table, console: Console | None = None) -> None:
    """Print a table with every word of its cells whole.

    Cells are wrapped at their spaces where the terminal is narrow. Where even that does not fit,
    lines are longer than the terminal, which breaks them; rich alone prints an ellipsis for digits.

    Args:
        console: where to print; None: standard output.
    """
    from rich.console import Console
    from rich.measure import Measurement

    console = console or Console()
    unlimited = console.options.update(max_width=10**6)
    for column in table.columns:
        sizes = [
            Measurement.get(console, unlimited, cell) for cell in (column.header, *column.cells)
        ]
        whole = max(size.maximum if column.no_wrap else size.minimum for size in sizes)
        column.min_width = max(column.min_width or 0, whole)
    least = Measurement.get(console, unlimited, table).minimum
    if least > console.width:
        table.width = least
    console.print(table, crop=False)
