"""Readers: the same messages from every format, and damage told apart from bad lines."""

from __future__ import annotations

import bz2
import csv
import gzip
import json
import lzma
from collections.abc import Callable
from pathlib import Path

import pyarrow
import pytest
from pyarrow import parquet

from pfl_lm.language import compressed
from pfl_lm.language.readers import Malformed, Message, read_messages, read_texts

MESSAGES = [
    Message("ann", "hello, world"),
    Message("bob", 'she said "no"\tand left'),
    Message("ann", "naïve ☺"),
    Message("7", ""),
]


def zstd(data: bytes) -> bytes:
    return pyarrow.compress(data, codec="zstd", asbytes=True)


COMPRESS: dict[str, Callable[[bytes], bytes]] = {
    "": lambda data: data,
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
    ".zst": zstd,
}


def as_jsonl(folder: Path) -> Path:
    path = folder / "text.jsonl"
    path.write_text("".join(json.dumps(m._asdict()) + "\n" for m in MESSAGES))
    return path


def as_table(folder: Path, suffix: str, delimiter: str) -> Path:
    path = folder / f"text{suffix}"
    with path.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file, delimiter=delimiter)
        table.writerow(["text", "when", "user"])
        table.writerows([m.text, "now", m.user] for m in MESSAGES)
    return path


def as_parquet(folder: Path) -> Path:
    path = folder / "text.parquet"
    columns = {"user": [m.user for m in MESSAGES], "text": [m.text for m in MESSAGES]}
    parquet.write_table(pyarrow.table(columns), path)
    return path


WRITERS: dict[str, Callable[[Path], Path]] = {
    "jsonl": as_jsonl,
    "csv": lambda folder: as_table(folder, ".csv", ","),
    "tsv": lambda folder: as_table(folder, ".tsv", "\t"),
    "parquet": as_parquet,
}


@pytest.mark.parametrize("compression", COMPRESS)
@pytest.mark.parametrize("kind", WRITERS)
def test_every_format_and_compression_gives_the_same(
    kind: str, compression: str, tmp_path: Path
) -> None:
    plain = WRITERS[kind](tmp_path)
    path = plain.with_name(plain.name + compression)
    path.write_bytes(COMPRESS[compression](plain.read_bytes()))
    assert list(read_messages(path)) == MESSAGES


def test_bytes_read_are_reported(tmp_path: Path) -> None:
    path = as_jsonl(tmp_path)
    seen: list[int] = []
    list(read_messages(path, advance=seen.append))
    assert sum(seen) == path.stat().st_size


def test_other_fields_can_be_named_and_numbers_are_user_ids(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"who": 12, "what": "hi", "text": 0}\n\n')
    assert list(read_messages(path, "who", "what")) == [Message("12", "hi")]


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv"])
def test_a_byte_order_mark_is_no_text(name: str, tmp_path: Path) -> None:
    content = "user,text\nann,hi\n" if name == "a.csv" else '{"user": "ann", "text": "hi"}\n'
    (tmp_path / name).write_bytes(content.encode("utf-8-sig"))
    assert list(read_messages(tmp_path / name)) == [Message("ann", "hi")]


class TestLeaf:
    def read(self, tmp_path: Path, data: object, text_field: str = "text") -> list[object]:
        path = tmp_path / "all_data.json"
        users = list(data) if isinstance(data, dict) else []
        path.write_text(json.dumps({"users": users, "num_samples": [], "user_data": data}))
        return list(read_messages(path, text_field=text_field))

    def test_samples_are_text(self, tmp_path: Path) -> None:
        data = {"ann": {"x": ["one", "two"], "y": [0, 1]}, "bob": {"x": ["three"], "y": [1]}}
        found = self.read(tmp_path, data)
        assert found == [Message("ann", "one"), Message("ann", "two"), Message("bob", "three")]

    def test_samples_are_lists_of_words_with_padding(self, tmp_path: Path) -> None:
        data = {"ann": {"x": [[["<BOS>", "so", "it"], ["goes", "<EOS>", "<PAD>"]]], "y": [0]}}
        assert self.read(tmp_path, data) == [Message("ann", "so it goes")]

    def test_an_entry_of_each_sample_is_the_text(self, tmp_path: Path) -> None:
        data = {"ann": {"x": [["17", "Monday", "yay"], ["18", "Tuesday"]], "y": [1, 0]}}
        good, bad = self.read(tmp_path, data, "x.2")
        assert good == Message("ann", "yay")
        assert isinstance(bad, Malformed)
        assert bad.line == 2

    def test_an_entry_that_is_no_number_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match=r"--text-field x\.text"):
            self.read(tmp_path, {"ann": {"x": ["a"], "y": [0]}}, "x.text")

    @pytest.mark.parametrize("content", ["[1]", '{"users": ["a"], "user_data": {}}', "{", "\xff"])
    def test_another_document_is_refused(self, content: str, tmp_path: Path) -> None:
        path = tmp_path / "a.json"
        path.write_text(content, encoding="latin-1")
        with pytest.raises(ValueError, match="not a LEAF file"):
            list(read_messages(path))


class TestFolder:
    def test_one_file_per_user_one_message_per_line(self, tmp_path: Path) -> None:
        (tmp_path / "bob.txt").write_text("b1\n")
        (tmp_path / "ann.txt.gz").write_bytes(gzip.compress(b"a1\na2"))
        (tmp_path / "notes.md").write_text("not text")
        found = [(m.user, m.text.strip()) for m in read_messages(tmp_path)]  # type: ignore[union-attr]
        assert found == [("ann", "a1"), ("ann", "a2"), ("bob", "b1")]

    def test_a_folder_without_text_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match=r"no \.txt file"):
            list(read_messages(tmp_path))


class TestMalformed:
    @pytest.mark.parametrize(
        ("line", "reason"),
        [
            (b'{"user": "a", "text": "x"', "Expecting"),
            (b'{"user": "a"}', "field 'text' is missing"),
            (b'{"user": "a", "text": null}', "field 'text' holds no text"),
            (b'{"user": "", "text": "x"}', "field 'user' holds no user id"),
            (b'{"user": true, "text": "x"}', "field 'user' holds no user id"),
            (b'["a", "x"]', "indices"),
            (b'{"user": "a", "text": "\xff"}', "not UTF-8"),
            (b"[" * 100_000, "recursion"),
        ],
    )
    def test_jsonl_line(self, line: bytes, reason: str, tmp_path: Path) -> None:
        path = tmp_path / "a.jsonl"
        good = b'{"user": "a", "text": "x"}\n'
        path.write_bytes(good + line + b"\n" + good)
        first, bad, last = read_messages(path)
        assert first == last == Message("a", "x")
        assert isinstance(bad, Malformed)
        assert (bad.file, bad.line) == (str(path), 2)
        assert reason in bad.reason

    def test_line_that_does_not_end_is_skipped_unheld(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(compressed, "LONGEST_LINE", 64)
        path = tmp_path / "a.jsonl"
        good = b'{"user": "a", "text": "x"}\n'
        path.write_bytes(b"x" * 1000 + b"\n" + good)
        bad, last = read_messages(path)
        assert isinstance(bad, Malformed)
        assert "longer than" in bad.reason
        assert last == Message("a", "x")

    def test_csv_rows(self, tmp_path: Path) -> None:
        path = tmp_path / "a.csv"
        path.write_bytes(b"user,text\na,x\na\nb,y,z\nb,\xff\nc,z\n")
        kinds = [type(record) for record in read_messages(path)]
        assert kinds == [Message, Malformed, Malformed, Malformed, Message]

    def test_parquet_rows(self, tmp_path: Path) -> None:
        path = tmp_path / "a.parquet"
        parquet.write_table(pyarrow.table({"user": ["a", None], "text": ["x", "y"]}), path)
        good, bad = read_messages(path)
        assert good == Message("a", "x")
        assert isinstance(bad, Malformed)
        assert bad.line == 2


class TestDamage:
    @pytest.mark.parametrize("compression", [".gz", ".bz2", ".xz", ".zst"])
    @pytest.mark.parametrize("harm", ["cut", "changed", "another format"])
    def test_damaged_archive(self, compression: str, harm: str, tmp_path: Path) -> None:
        content = b"".join(b'{"user": "a", "text": "%d"}\n' % i for i in range(5000))
        data = bytearray(COMPRESS[compression](content))
        if harm == "cut":
            data = data[: len(data) // 2]
        elif harm == "changed":
            data[len(data) // 2 : len(data) // 2 + 40] = bytes(40)
        else:
            data = bytearray(content)
        path = tmp_path / f"a.jsonl{compression}"
        path.write_bytes(data)
        with pytest.raises(ValueError, match=rf"a\.jsonl\{compression}: .*damaged or ends early"):
            list(read_messages(path))

    def test_parquet_that_is_none(self, tmp_path: Path) -> None:
        path = tmp_path / "a.parquet"
        path.write_bytes(b"PAR1 and then nothing")
        with pytest.raises(ValueError, match="not a readable Parquet file"):
            list(read_messages(path))

    @pytest.mark.parametrize("kind", ["csv", "parquet"])
    def test_missing_column(self, kind: str, tmp_path: Path) -> None:
        path = WRITERS[kind](tmp_path)
        with pytest.raises(ValueError, match=r"no column 'author'.*user.*--user-field"):
            list(read_messages(path, user_field="author"))

    def test_empty_csv(self, tmp_path: Path) -> None:
        (tmp_path / "a.csv").touch()
        with pytest.raises(ValueError, match="no column 'user'"):
            list(read_messages(tmp_path / "a.csv"))

    def test_unknown_format(self, tmp_path: Path) -> None:
        (tmp_path / "a.docx").touch()
        with pytest.raises(ValueError, match=r"cannot tell the format.*\.jsonl.*\.zst"):
            list(read_messages(tmp_path / "a.docx"))


class TestPublicText:
    def test_lines_of_text(self, tmp_path: Path) -> None:
        path = tmp_path / "a.txt.xz"
        path.write_bytes(lzma.compress("one\ntwö\n".encode()))
        assert [text.strip() for text in read_texts(path)] == ["one", "twö"]

    @pytest.mark.parametrize("line", [b"{", b'{"t": "x"}', b'{"text": 1}', b"\xff"])
    def test_a_bad_line_is_an_error_with_its_number(self, line: bytes, tmp_path: Path) -> None:
        path = tmp_path / "a.jsonl"
        path.write_bytes(b'{"text": "x"}\n' + line + b"\n")
        with pytest.raises(ValueError, match=r"a\.jsonl:2"):
            list(read_texts(path))

    def test_other_formats_are_refused(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match=r"from \.txt or \.jsonl"):
            list(read_texts(tmp_path / "a.csv"))
