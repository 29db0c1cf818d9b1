"""Tables of the command line: what is in them is printed whole, however narrow the terminal is."""

from __future__ import annotations

import io

import pytest

from pfl_lm.cli.tables import print_table, visible


def printed(width: int, rows: list[list[str]], **column) -> str:
    from rich.console import Console
    from rich.table import Table

    table = Table(title="What each policy guarantees")
    for place in range(len(rows[0])):
        table.add_column(f"heading{place}", **column)
    for row in rows:
        table.add_row(*row)
    file = io.StringIO()
    print_table(table, Console(file=file, width=width))
    return file.getvalue()


ROWS = [
    ["keyboard_with_a_long_name", "2.0001", "1e-07", "2.60825"],
    ["キーボード", "1,234,567", "∞", "agrees"],
]


@pytest.mark.parametrize("width", [1, 10, 40, 80])
@pytest.mark.parametrize("column", [{}, {"no_wrap": True}, {"overflow": "fold"}])
def test_every_figure_is_whole(width, column):
    shown = printed(width, ROWS, **column)
    assert "…" not in shown
    assert all(cell in shown for row in ROWS for cell in row)
    assert all(f"heading{place}" in shown for place in range(4))


def test_many_columns_are_all_there():
    words = [f"word{number}" for number in range(50)]
    assert all(word in printed(80, [words]) for word in words)


def test_a_table_that_fits_is_as_it_was_and_sentences_are_wrapped():
    assert max(map(len, printed(80, ROWS).splitlines())) <= 80
    sentence = "a sentence of several words that may be wrapped at each of its spaces"
    assert max(map(len, printed(40, [["a", sentence]]).splitlines())) <= 40


def test_what_a_terminal_would_obey_is_spelled_out():
    assert visible("a\x1b[2J\n\x7f\u202eb") == r"a\x1b[2J\n\x7f\u202eb"
    assert visible("👩\u200d💻 שלום\u200f é") == "👩\u200d💻 שלום\u200f é"
