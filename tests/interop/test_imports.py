"""Messages of any origin become a store; what cannot be read is refused with the remedy."""

from __future__ import annotations

import sys
from collections import defaultdict
from pathlib import Path
from types import SimpleNamespace

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


class TestSplitsOfADataSet:
    """A library that is not here: its `load_from_disk` gives the rows of a test."""

    @pytest.fixture
    def saved(self, monkeypatch, tokenizer, tmp_path):
        def save(**splits: list[str]) -> str:
            word = tokenizer.words[10]
            parts = {}
            for split, users in splits.items():
                parts[split] = Rows({"who": who, "what": word} for who in users)
                parts[split].unique = lambda name, rows=parts[split]: [row[name] for row in rows]
            library = SimpleNamespace(load_from_disk=lambda name: parts)
            monkeypatch.setitem(sys.modules, "datasets", library)
            folder = tmp_path / "saved"
            folder.mkdir()
            (folder / "dataset_dict.json").write_text("{}")
            return str(folder)

        return save

    def test_users_who_are_in_one_split_stay_there(self, saved):
        inputs = hugging_face.open_splits(saved(train=["a", "b"], test=["c"]), "who", "what")
        assert [item.split for item in inputs] == ["train", "test"]

    def test_users_who_are_in_two_are_divided(self, saved, tokenizer, tmp_path):
        """Most data sets divide messages: a user's later ones are in another split."""
        users = [f"u{n}" for n in range(40)]
        name = saved(train=users, test=users)
        assert {i.split for i in hugging_face.open_splits(name, "who", "what")} == {None}
        options = BuildOptions(user_field="who", text_field="what")
        profile = import_population("hf", name, tokenizer, tmp_path / "store", options)
        counts = [profile["splits"][split]["users"] for split in ("train", "validation", "test")]
        assert sum(counts) == 40
        assert min(counts) > 0
        assert "users are in two splits" in profile["provenance"]["notes"][0]

    def test_the_users_of_one_split_are_divided(self, saved):
        name = saved(train=["a", "b"], test=["c"])
        (one,) = hugging_face.open_splits(name, "who", "what", part="train")
        assert one.split is None
