"""Messages of any origin become a store; what cannot be read is refused with the remedy."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

import pytest

from pfl_lm.interop import hugging_face
from pfl_lm.interop.imports import _stackoverflow_split, import_population
from pfl_lm.text.population import PopulationStore
from pfl_lm.text.population_build import BuildOptions, Input, build_population
from pfl_lm.text.records import Malformed, Message

KEEP = BuildOptions(keep_user_ids=True)


def test_every_message_is_there_in_order(store, lines, tokenizer, streams):
    expected: dict[str, list[int]] = defaultdict(list)
    for user, text, _ in lines:
        expected[user] += [2, *tokenizer.encode(text), 3]
    assert streams(store) == expected


def test_stated_splits_are_kept(lines, tokenizer, tmp_path):
    told = [Message(user, text, "train" if user < "user5" else "test") for user, text, _ in lines]
    build_population([Input(Path("x"), records=told)], tokenizer, tmp_path / "store", KEEP)
    found = PopulationStore.open(tmp_path / "store")
    assert set(found.user_ids("train")) == {u for u, _, split in told if split == "train"}
    assert set(found.user_ids("test")) == {u for u, _, split in told if split == "test"}


def test_an_interrupted_import_leaves_nothing(tokenizer, tmp_path):
    def broken():
        yield Message("a", "word")
        raise ValueError("the connection broke")

    with pytest.raises(ValueError, match="broke"):
        build_population([Input(Path("x"), records=broken())], tokenizer, tmp_path / "store", KEEP)
    assert list(tmp_path.iterdir()) == []


def test_an_existing_folder_is_refused_before_anything_is_read(tokenizer, tmp_path):
    def never():
        raise AssertionError("read")
        yield

    with pytest.raises(ValueError, match="exists"):
        build_population([Input(Path("x"), records=never())], tokenizer, tmp_path, KEEP)


def test_held_out_users_of_stackoverflow_are_divided_evenly_and_for_good():
    splits = [_stackoverflow_split("heldout", str(user), "key") for user in range(2000)]
    assert 850 < splits.count("validation") < 1150  # 6.7 standard deviations
    assert splits.count("validation") + splits.count("test") == 2000
    assert _stackoverflow_split("train", "7", "key") == "train"


@pytest.mark.parametrize(
    ("source", "path", "reason"),
    [
        ("tff-csv", "x", "expected one of tff-stackoverflow"),
        ("tff-stackoverflow", "x", "takes no path"),
        ("tff-sqlite", None, "needs a path"),
        ("tff-sqlite", "absent.sqlite", "no such file"),
        ("leaf", "absent.json", "does not exist"),
    ],
)
def test_arguments_that_do_not_fit(source, path, reason, tokenizer, tmp_path):
    with pytest.raises(ValueError, match=reason):
        import_population(source, path, tokenizer, tmp_path / "store", KEEP)
    assert list(tmp_path.iterdir()) == []


class Rows(list):
    """What is asked of a `datasets.Dataset`."""

    column_names = ("who", "what")

    def select_columns(self, names):
        return self


def test_rows_without_an_id_are_nobody(tokenizer, tmp_path):
    word = tokenizer.words[10]
    ids = [float("nan"), None, 0.0, 1.0, "", "nan", "u1"]
    rows = Rows({"who": who, "what": word} for who in ids)
    found = list(hugging_face.records_of(rows, "who", "what", "data"))
    assert [record.user for record in found if isinstance(record, Message)] == ["0", "1", "u1"]
    assert [str(r).split(":")[:2] for r in found if isinstance(r, Malformed)] == [
        ["data", "1"], ["data", "2"], ["data", "5"], ["data", "6"],
    ]  # fmt: skip
    with pytest.raises(ValueError, match=r"4 of 7 records are malformed.*data:1: field 'who'"):
        build_population([Input(Path("data"), records=found)], tokenizer, tmp_path / "store")
    assert list(tmp_path.iterdir()) == []


def test_records_of_a_library_are_held_to_the_rule(tokenizer, tmp_path):
    records = [Message("nan", tokenizer.words[10]), Message("ann", tokenizer.words[10])]
    with pytest.raises(ValueError, match=r"1 of 2 records.*lib:1: .*stands for a missing id"):
        build_population([Input(Path("lib"), records=records)], tokenizer, tmp_path / "store")


@pytest.mark.parametrize("column", ["who", "what"])
def test_a_column_that_a_data_set_lacks(column):
    rows = Rows()
    rows.column_names = ("when", *(name for name in ("who", "what") if name != column))
    with pytest.raises(ValueError, match=f"no column '{column}'; its columns are when"):
        list(hugging_face.records_of(rows, "who", "what"))


def test_without_datasets_a_line_says_what_to_install(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "datasets", None)
    with pytest.raises(ValueError, match="pip install datasets"):
        hugging_face.open_splits("anything")
