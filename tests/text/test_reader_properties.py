"""What every reader keeps, whatever people wrote: each message under its own id, or malformed.

The inputs are drawn: texts with quote marks, line ends, NUL, half-written JSON; ids of every type
that a format can hold.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import math
import unicodedata
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from pfl_lm.interop.hugging_face import records_of
from pfl_lm.text.readers import read_messages
from pfl_lm.text.records import Malformed, Message, Record, message_text, user_id

TROUBLE = st.sampled_from(['"', '""', "'", ",", "\t", "\n", "\r\n", "\0", "\ufeff", "{", "\\", "é"])
TEXTS = st.lists(st.one_of(TROUBLE, st.text(max_size=4)), max_size=6).map("".join)
IDS = st.one_of(
    st.text(max_size=6),
    st.integers(),
    st.floats(),
    st.none(),
    st.booleans(),
    st.sampled_from(["", " ", "\t", "\u200b", "nan", "NaN", "None", "null", "NA", "7", "7.0"]),
    st.sampled_from(["u1", "u1 ", " u1", "\ufeffu1", "U1", "é", "e\u0301", "007", r"\N", "NONE"]),
    st.lists(st.integers(), max_size=2),
)
PAIRS = st.lists(st.tuples(IDS, st.one_of(TEXTS, st.none(), st.integers())), max_size=8)
ONCE = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])


def right(user: Any, text: Any) -> tuple[str, str] | None:
    """The rule: the message that this pair states, or None where it is malformed."""
    try:
        return user_id(user), message_text(text)
    except ValueError:
        return None


def messages(records: list[Record]) -> list[tuple[str, str] | None]:
    return [r[:2] if isinstance(r, Message) else None for r in records]


class TestTheRule:
    @given(IDS)
    def test_an_id_names_somebody(self, value: Any) -> None:
        try:
            named = user_id(value)
        except ValueError:
            return
        assert named.strip()
        assert named not in ("nan", "None", "null", "True", "False")
        assert user_id(named) == named, "what is an id stays the same one"
        assert not isinstance(value, str) or named in unicodedata.normalize("NFC", value)

    @given(st.integers(-(2**53), 2**53))
    def test_a_whole_float_is_the_number_that_it_is(self, number: int) -> None:
        assert user_id(float(number)) == user_id(number) == str(number)
        assert user_id(f"{number}.0") == user_id(str(number)) == str(number)

    @given(st.text(max_size=6), st.sampled_from(["", " ", "\t", "\ufeff", "\r", "\u00a0", "\0"]))
    def test_an_id_is_the_same_user_however_it_is_padded_or_composed(
        self, name: str, blank: str
    ) -> None:
        spellings = [name, blank + name, name + blank, unicodedata.normalize("NFD", name)]
        assert len({right(one, "text") for one in spellings}) == 1

    def test_ids_that_differ_in_case_are_two_users(self) -> None:
        assert user_id("u1") != user_id("U1")

    @pytest.mark.parametrize(
        "value",
        [math.nan, math.inf, None, True, 0.5, 2.0**60, b"u1", ["u1"], {}, "", "\u200b", "NaT",
         "none", r"\N"],
    )  # fmt: skip
    def test_nobody(self, value: object) -> None:
        with pytest.raises(ValueError, match=r"it is|stands for|no whole number"):
            user_id(value)


class TestRoundTrip:
    @ONCE
    @given(PAIRS, st.booleans(), st.sampled_from(["\n", "\r\n"]), st.booleans())
    def test_jsonl(
        self, tmp_path: Path, pairs: list[tuple[Any, Any]], escaped: bool, end: str, bom: bool
    ) -> None:
        content = "".join(
            json.dumps({"user": user, "text": text}, ensure_ascii=escaped) + end
            for user, text in pairs
        )
        path = tmp_path / "a.jsonl.gz"
        path.write_bytes(
            gzip.compress(content.encode("utf-8-sig" if bom else "utf-8", "surrogatepass"))
        )
        assert messages(list(read_messages(path))) == [right(*pair) for pair in pairs]

    @ONCE
    @given(st.lists(st.tuples(st.text(max_size=5), TEXTS), max_size=8))
    def test_csv_as_python_writes_it(self, tmp_path: Path, pairs: list[tuple[str, str]]) -> None:
        """A row that spans lines is malformed as a whole; every other one comes back."""
        content = io.StringIO()
        table = csv.writer(content)
        table.writerow(["user", "text"])
        table.writerows(pairs)
        path = tmp_path / "a.csv"
        path.write_bytes(content.getvalue().encode("utf-8", "surrogatepass"))
        found = [r[:2] for r in read_messages(path) if isinstance(r, Message)]
        one_line = [
            pair for pair in pairs if "\n" not in "".join(pair) and "\r" not in "".join(pair)
        ]
        assert set(found) <= {right(*pair) for pair in pairs}
        assert set(found) >= {right(*pair) for pair in one_line} - {None}

    @ONCE
    @given(PAIRS.map(lambda pairs: [p for p in pairs if isinstance(p[0], str)]))
    def test_parquet(self, tmp_path: Path, pairs: list[tuple[Any, Any]]) -> None:
        pairs = [(u, t if isinstance(t, str) else None) for u, t in pairs]
        pairs = [(u, t) for u, t in pairs if u.isascii() and (t is None or _encodes(t))]
        columns = {
            "user": pyarrow.array([u for u, _ in pairs], pyarrow.utf8()),
            "text": pyarrow.array([t for _, t in pairs], pyarrow.utf8()),
        }
        parquet.write_table(pyarrow.table(columns), tmp_path / "a.parquet")
        found = list(read_messages(tmp_path / "a.parquet"))
        assert messages(found) == [right(*pair) for pair in pairs]

    @ONCE
    @given(st.dictionaries(st.text(max_size=5), st.lists(st.one_of(TEXTS, st.none()), max_size=3)))
    def test_leaf(self, tmp_path: Path, data: dict[str, list[Any]]) -> None:
        document = {"users": [], "user_data": {u: {"x": texts} for u, texts in data.items()}}
        (tmp_path / "a.json").write_text(json.dumps(document))
        found = list(read_messages(tmp_path / "a.json"))
        assert messages(found) == [right(u, t) for u, texts in data.items() for t in texts]

    @given(PAIRS)
    def test_hugging_face(self, pairs: list[tuple[Any, Any]]) -> None:
        found = list(records_of(Rows(pairs)))
        assert messages(found) == [right(*pair) for pair in pairs]
        assert [r.line for r in found if isinstance(r, Malformed)] == [
            number for number, pair in enumerate(pairs, 1) if right(*pair) is None
        ]


class TestLinesAreRecords:
    """However quote marks fall, a line's text stands under that line's id, or nowhere."""

    LINES = st.lists(
        st.tuples(
            st.integers(0, 3).map("u{}".format),
            st.lists(st.sampled_from(['"', '""', "a", " ", ",", "\t"]), max_size=6).map("".join),
        ),
        max_size=10,
    )

    @ONCE
    @given(LINES, st.sampled_from([".csv", ".tsv"]))
    def test_unbalanced_quotes(
        self, tmp_path: Path, lines: list[tuple[str, str]], suffix: str
    ) -> None:
        delimiter = "\t" if suffix == ".tsv" else ","
        marked = [(u, f"{text}m{i}e") for i, (u, text) in enumerate(lines)]
        path = tmp_path / f"a{suffix}"
        path.write_text(
            f"user{delimiter}text\n" + "".join(f"{u}{delimiter}{t}\n" for u, t in marked)
        )
        found = list(read_messages(path))
        assert len(found) == len(lines)  # nothing is dropped uncounted
        for record, (number, (user, _)) in zip(found, enumerate(marked), strict=True):
            if isinstance(record, Message):
                assert record.user == user
                assert [n for n in range(len(lines)) if f"m{n}e" in record.text] == [number]
            else:
                assert record.line == number + 2

    @ONCE
    @given(LINES.map(lambda lines: [(u, t) for u, t in lines if "\t" not in t]))
    def test_in_a_tsv_every_line_is_read(
        self, tmp_path: Path, lines: list[tuple[str, str]]
    ) -> None:
        path = tmp_path / "a.tsv"
        path.write_text("user\ttext\n" + "".join(f"{u}\t{t}\n" for u, t in lines))
        assert [r[:2] for r in read_messages(path)] == lines


class TestAnyBytes:
    @ONCE
    @given(
        st.one_of(st.binary(max_size=80), TEXTS.map(lambda t: ("user,text\n" + t).encode())),
        st.sampled_from(["jsonl", "csv", "tsv", "json", "parquet", "jsonl.gz", "csv.xz", "txt"]),
    )
    def test_records_or_one_value_error(self, tmp_path: Path, content: bytes, kind: str) -> None:
        path = tmp_path / f"a.{kind}"
        path.write_bytes(content)
        assert str(path) in refusal_of(path)

    @ONCE
    @given(st.recursive(IDS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(
        st.sampled_from(["users", "user_data", "x", "user", "text", "a"]), inner, max_size=4
    )))  # fmt: skip
    def test_any_json(self, tmp_path: Path, document: Any) -> None:
        for kind in ("json", "jsonl"):
            path = tmp_path / f"a.{kind}"
            path.write_text(json.dumps(document))
            assert "not a LEAF file" in refusal_of(path, "not a LEAF file")


def refusal_of(path: Path, otherwise: str = "") -> str:
    """Read a file whole; return why it is refused, or what stands for a file that is read."""
    try:
        assert all(isinstance(record, Message | Malformed) for record in read_messages(path))
    except ValueError as error:
        return str(error)
    return otherwise or str(path)


class Rows:
    """What the reader asks of a `datasets.Dataset`."""

    column_names = ("user", "text")

    def __init__(self, pairs: list[tuple[Any, Any]]) -> None:
        self._rows = [{"user": user, "text": text} for user, text in pairs]

    def select_columns(self, names: list[str]) -> list[dict[str, Any]]:
        return [{name: row[name] for name in names} for row in self._rows]


def _encodes(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
