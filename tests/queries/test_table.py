"""Tables with tabs: what was written is read, and what is damaged is refused by its line."""

from pathlib import Path

import pytest

from pfl_lm.queries.table import TabTable, numbers

TABLE = TabTable("list of things", ("thing", "sum", "weight"))


def test_what_was_written_is_read(tmp_path: Path) -> None:
    path = tmp_path / "things.tsv"
    TABLE.write(path, [("ünï", "1.5", "2"), ("b", "3", "4")])
    assert list(TABLE.read(path)) == [
        (f"{path}:2", ["ünï", "1.5", "2"]),
        (f"{path}:3", ["b", "3", "4"]),
    ]
    path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))
    assert [fields for _, fields in TABLE.read(path)] == [["ünï", "1.5", "2"], ["b", "3", "4"]]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"thing\tweight\tsum\n", "no list of things: its first line must be thing, sum, weight"),
        (b"", "no list of things"),
        (b"thing\tsum\tweight\na\t1\t2\nb\t1\n", ":3: expected thing, sum, weight"),
        (b"\xff\n", "cannot be read"),
    ],
)
def test_a_damaged_table_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "things.tsv"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        list(TABLE.read(path))


def test_a_field_that_is_no_number_is_refused_by_its_place() -> None:
    assert numbers("a:2", ["1", "2.5"]) == [1.0, 2.5]
    with pytest.raises(ValueError, match=r"a:2: expected numbers, and found 1, many"):
        numbers("a:2", ["1", "many"])
