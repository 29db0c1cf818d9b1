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

from pfl_lm.text import compressed
from pfl_lm.text.readers import read_messages, read_texts
from pfl_lm.text.records import Malformed, Message

MESSAGES = [
    Message("ann", "hello, world"),
    Message("bob", 'she said "no" and left'),
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


def as_csv(folder: Path) -> Path:
    path = folder / "text.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(["text", "when", "user"])
        table.writerows([m.text, "now", m.user] for m in MESSAGES)
    return path


def as_tsv(folder: Path) -> Path:
    path = folder / "text.tsv"
    rows = [["text", "when", "user"], *([m.text, "now", m.user] for m in MESSAGES)]
    path.write_text("".join("\t".join(row) + "\n" for row in rows), encoding="utf-8")
    return path


def as_parquet(folder: Path) -> Path:
    path = folder / "text.parquet"
    columns = {"user": [m.user for m in MESSAGES], "text": [m.text for m in MESSAGES]}
    parquet.write_table(pyarrow.table(columns), path)
    return path


WRITERS: dict[str, Callable[[Path], Path]] = {
    "jsonl": as_jsonl,
    "csv": as_csv,
    "tsv": as_tsv,
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

    def test_users_who_have_data_and_are_not_listed_are_read(self, tmp_path: Path) -> None:
        document = {"users": ["b", "gone"], "user_data": {u: {"x": [f"of {u}"]} for u in "abc"}}
        (tmp_path / "a.json").write_text(json.dumps(document))
        found = list(read_messages(tmp_path / "a.json"))
        assert [record for record in found if isinstance(record, Message)] == [
            Message(user, f"of {user}") for user in "bac"
        ]
        (bad,) = (record for record in found if isinstance(record, Malformed))
        assert "'gone' is listed and has no data" in bad.reason

    @pytest.mark.parametrize("x", [None, "the you it is", {"0": "a"}, 7, True])
    def test_samples_that_are_no_list_are_one_malformed_user(
        self, x: object, tmp_path: Path
    ) -> None:
        good, bad = self.read(tmp_path, {"ann": {"x": ["a"]}, "bob": {"x": x}})
        assert good == Message("ann", "a")
        assert isinstance(bad, Malformed)
        assert "'bob': x is no list" in bad.reason

    @pytest.mark.parametrize("data", [None, [], "x", {}, {"y": []}])
    def test_a_user_without_samples_is_malformed(self, data: object, tmp_path: Path) -> None:
        (bad,) = self.read(tmp_path, {"ann": data})
        assert isinstance(bad, Malformed)

    def test_lists_within_lists_end_somewhere(self, tmp_path: Path) -> None:
        deep: object = "word"
        for _ in range(200):
            deep = [deep]
        good, bad = self.read(tmp_path, {"ann": {"x": [["word"], deep]}})
        assert good == Message("ann", "word")
        assert isinstance(bad, Malformed)

    def test_an_entry_of_a_string_is_no_letter(self, tmp_path: Path) -> None:
        (bad,) = self.read(tmp_path, {"ann": {"x": ["hello"]}}, "x.1")
        assert isinstance(bad, Malformed)

    @pytest.mark.parametrize(
        "content",
        [
            "[1]",
            '{"users": 7, "user_data": {}}',
            '{"user_data": []}',
            "{",
            "\xff",
            '{"user_data": {"a": {"x": ["1"]}, "a": {"x": ["2"]}}}',
            '{"user_data": {"a": {"x": ' + "[" * 100_000,
        ],
    )
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

    def test_hidden_files_are_nobodys(self, tmp_path: Path) -> None:
        (tmp_path / "ann.txt").write_text("a\n")
        (tmp_path / "._ann.txt").write_bytes(b"\0\5\x16\xff")
        (tmp_path / ".hidden.txt").write_text("b\n")
        (tmp_path / "folder.txt").mkdir()
        assert list(read_messages(tmp_path)) == [Message("ann", "a")]

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
            (b'["a", "x"]', "expected a JSON object"),
            (b'{"user": "a", "text": "x", "user": "b"}', "'user' is there twice"),
            (b'{"user": NaN, "text": "x"}', "stands for a missing id"),
            (b'{"user": 7.5, "text": "x"}', "no whole number"),
            (b'{"user": 1e300, "text": "x"}', "too large to be exact"),
            (b'{"user": "nan", "text": "x"}', "stands for a missing id"),
            (b'{"user": "[deleted]", "text": "x"}', "stands for a missing id"),
            (b'{"user": " \\t", "text": "x"}', "it is blank"),
            (b'{"user": "\\ud83d", "text": "x"}', "surrogate"),
            (b'{"user": "a", "text": "\\ud83d"}', "surrogate"),
            (b'{"user": "a", "text": "\xff"}', "not UTF-8"),
            (b"[" * 100_000, "nested too deeply"),
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

    def test_a_quote_mark_in_a_tsv_is_a_letter(self, tmp_path: Path) -> None:
        path = tmp_path / "a.tsv"
        path.write_text('user\ttext\nu1\t"the you\nu2\t"so" it"\nu3\tis\n')
        assert list(read_messages(path)) == [
            Message("u1", '"the you'), Message("u2", '"so" it"'), Message("u3", "is"),
        ]  # fmt: skip

    def test_a_stray_quote_in_a_csv_costs_its_own_line_alone(self, tmp_path: Path) -> None:
        path = tmp_path / "a.csv"
        path.write_text('user,text\nu1,a\nu2,"the you\nu3,b\nu4,"no" end\nu5,"c, d"\n')
        found = list(read_messages(path))
        assert [record for record in found if isinstance(record, Message)] == [
            Message("u1", "a"), Message("u3", "b"), Message("u5", "c, d"),
        ]  # fmt: skip
        assert [r.line for r in found if isinstance(r, Malformed)] == [3, 5]

    def test_lines_that_may_be_inside_a_quoted_field_are_nobodys(self, tmp_path: Path) -> None:
        path = tmp_path / "a.csv"
        path.write_text('user,text\nu1,"first\nu2,second\nu3,third"\nu4,b\n')
        *bad, last = read_messages(path)
        assert last == Message("u4", "b")
        assert [(type(r), r.line) for r in bad] == [(Malformed, line) for line in (2, 3, 4)]  # type: ignore[union-attr]

    def test_a_parquet_text_that_is_no_utf8(self, tmp_path: Path) -> None:
        path = tmp_path / "a.parquet"
        raw = pyarrow.array([b"fine", b"\xff", b"too"], pyarrow.binary()).view(pyarrow.utf8())
        parquet.write_table(pyarrow.table({"user": ["a", "b", "c"], "text": raw}), path)
        first, bad, last = read_messages(path)
        assert (first, last) == (Message("a", "fine"), Message("c", "too"))
        assert str(bad).endswith("a.parquet:2: field 'text' is not UTF-8")

    def test_a_csv_text_that_is_no_utf8(self, tmp_path: Path) -> None:
        path = tmp_path / "a.csv"
        path.write_bytes("user,text\na,très\n".encode("latin-1"))
        (bad,) = read_messages(path)
        assert str(bad).endswith("it is not UTF-8")

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
        said = "it is text" if harm == "another format" else "damaged or ends early"
        with pytest.raises(ValueError, match=rf"a\.jsonl\{compression}: .*{said}"):
            list(read_messages(path))

    @pytest.mark.parametrize("compression", [".gz", ".bz2", ".xz", ".zst"])
    def test_an_empty_archive_is_no_archive(self, compression: str, tmp_path: Path) -> None:
        path = tmp_path / f"a.jsonl{compression}"
        path.touch()
        with pytest.raises(ValueError, match="it is empty"):
            list(read_messages(path))

    @pytest.mark.parametrize(("suffix", "mark"), [("csv", ","), ("tsv", "\t")])
    def test_tables_behind_one_another(self, suffix: str, mark: str, tmp_path: Path) -> None:
        table = f"user{mark}text\nu1{mark}the\n"
        (tmp_path / f"a.{suffix}.gz").write_bytes(2 * gzip.compress(table.encode()))
        found = list(read_messages(tmp_path / f"a.{suffix}.gz"))
        assert [r.user for r in found if isinstance(r, Message)] == ["u1", "u1"]
        assert [(r.line, r.reason[:16]) for r in found if isinstance(r, Malformed)] == [
            (3, "the header again")
        ]

    @pytest.mark.parametrize(
        ("header", "said"),
        [("user, text\n", "its columns are user, ' text' "), ("user,text\ru1,the\r", "newlines")],
    )
    def test_a_header_that_looks_right(self, header: str, said: str, tmp_path: Path) -> None:
        (tmp_path / "a.csv").write_bytes(header.encode())
        with pytest.raises(ValueError, match=said):
            list(read_messages(tmp_path / "a.csv"))

    @pytest.mark.parametrize(
        ("name", "content", "said"),
        [
            ("a.jsonl", gzip.compress(b"{}", mtime=0), r"it is gzip data.*\.gz"),
            (
                "a.jsonl.gz",
                gzip.compress(gzip.compress(b"{}", mtime=0), mtime=0),
                "it is gzip data",
            ),
            ("a.csv", bz2.compress(b"user"), "it is bzip2 data"),
            ("a.jsonl.gz", lzma.compress(b"{}"), "not .gz data: it is xz data"),
            ("a.csv", "user,text\n".encode("utf-16"), "UTF-16.*convert it to UTF-8"),
            ("a.csv", "user,text\n".encode("utf-16-le"), "UTF-16.*convert it to UTF-8"),
            ("a.jsonl", '{"user": "a"}\n'.encode("utf-16-be"), "UTF-16.*convert it to UTF-8"),
            ("a.jsonl", b"PAR1....", r"a Parquet file.*\.parquet"),
            ("a.csv", b"PK\x03\x04", "a zip archive"),
            ("a.json", b'[{"user": "a"}]', r"not a LEAF file.*\.jsonl"),
            ("a.json", b'{"user": "a"}\n{"user": "b"}\n', r"not a LEAF file.*\.jsonl"),
        ],
    )
    def test_a_name_that_says_something_else(
        self, name: str, content: bytes, said: str, tmp_path: Path
    ) -> None:
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=said):
            list(read_messages(tmp_path / name))

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

    def test_a_csv_without_commas(self, tmp_path: Path) -> None:
        (tmp_path / "a.csv").write_text("user;text\na;hello\n")
        with pytest.raises(ValueError, match="has no comma and parts its names by ';'"):
            list(read_messages(tmp_path / "a.csv"))

    @pytest.mark.parametrize("twice", ["user", "text"])
    def test_a_column_that_is_there_twice(self, twice: str, tmp_path: Path) -> None:
        names = ["user", "text", twice]
        columns = [pyarrow.array(["a"])] * 3
        parquet.write_table(pyarrow.Table.from_arrays(columns, names), tmp_path / "a.parquet")
        (tmp_path / "a.csv").write_text(",".join(names) + "\na,b,c\n")
        (tmp_path / "a.tsv").write_text("\t".join(names) + "\na\tb\tc\n")
        for suffix in ("parquet", "csv", "tsv"):
            with pytest.raises(ValueError, match=f"2 columns '{twice}'"):
                list(read_messages(tmp_path / f"a.{suffix}"))

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

    def test_blank_lines_are_passed_over(self, tmp_path: Path) -> None:
        (tmp_path / "a.jsonl").write_text('{"text":"the you"}\n\n{"text":"it is"}\n')
        (tmp_path / "a.txt").write_text("the you\n\n \nit is\n")
        for name in ("a.jsonl", "a.txt"):
            assert [text.strip() for text in read_texts(tmp_path / name)] == ["the you", "it is"]

    def test_a_line_too_long_is_called_that(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(compressed, "LONGEST_LINE", 64)
        (tmp_path / "a.jsonl").write_text('{"text": "' + "x" * 100 + '"}\n')
        with pytest.raises(ValueError, match=r"a\.jsonl:1: longer than"):
            list(read_texts(tmp_path / "a.jsonl"))

    @pytest.mark.parametrize("line", [b"{", b'{"t": "x"}', b'{"text": 1}', b"\xff"])
    def test_a_bad_line_is_an_error_with_its_number(self, line: bytes, tmp_path: Path) -> None:
        path = tmp_path / "a.jsonl"
        path.write_bytes(b'{"text": "x"}\n' + line + b"\n")
        with pytest.raises(ValueError, match=r"a\.jsonl:2"):
            list(read_texts(path))

    def test_other_formats_are_refused(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match=r"from \.txt or \.jsonl"):
            list(read_texts(tmp_path / "a.csv"))
