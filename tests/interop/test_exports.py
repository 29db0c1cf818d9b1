"""Stores as other libraries' files; what is written is read back here, and by them elsewhere."""

from __future__ import annotations

import json
import sqlite3

import pytest

from pfl_lm.interop.exports import example, export_leaf, export_sqlite
from pfl_lm.interop.imports import import_population, sqlite_splits
from pfl_lm.text.population import SPLITS, PopulationStore
from pfl_lm.text.population_build import BuildOptions
from pfl_lm.text.synthetic.population import synthetic_tokenizer

KEEP = BuildOptions(keep_user_ids=True, text_field="x")


def test_leaf_there_and_back_is_the_same_population(store, tokenizer, streams, tmp_path):
    written = export_leaf(store, tokenizer, tmp_path / "leaf")
    import_population("leaf", str(tmp_path / "leaf"), tokenizer, tmp_path / "again", KEEP)
    again = PopulationStore.open(tmp_path / "again")
    assert streams(again) == streams(store)
    assert written == sum(store.profile["splits"][split]["messages"] for split in SPLITS)


def test_leaf_there_and_back_keeps_who_is_held_out(store, tokenizer, tmp_path):
    export_leaf(store, tokenizer, tmp_path / "leaf")
    profile = import_population("leaf", str(tmp_path / "leaf"), tokenizer, tmp_path / "again", KEEP)
    again = PopulationStore.open(tmp_path / "again")
    for split in SPLITS:
        assert set(again.user_ids(split)) == set(store.user_ids(split))
    assert {item["split"] for item in profile["provenance"]["inputs"]} == {"as its records state"}


def test_leaf_files_of_others_are_split_by_user(tmp_path, tokenizer):
    word = tokenizer.words[10]
    for part in ("train", "test"):  # LEAF has each user in both
        data = {f"u{i}": {"x": [word], "y": [0]} for i in range(20)}
        (tmp_path / "leaf" / part).mkdir(parents=True)
        path = tmp_path / "leaf" / part / "data.json"
        path.write_text(json.dumps({"users": list(data), "user_data": data}))
    profile = import_population("leaf", str(tmp_path / "leaf"), tokenizer, tmp_path / "store", KEEP)
    assert sum(row["users"] for row in profile["splits"].values()) == 20
    assert {item["split"] for item in profile["provenance"]["inputs"]} == {"by user digest"}


def test_a_store_may_have_any_name(store, tokenizer, tmp_path):
    for place, name in enumerate(("people 2024/05", "../outside", str(tmp_path / "outside"))):
        named = PopulationStore(store.folder, store.profile | {"name": name})
        export_leaf(named, tokenizer, tmp_path / f"leaf{place}")
        assert len(list((tmp_path / f"leaf{place}").rglob("*.json"))) == len(SPLITS)
    assert not list(tmp_path.rglob("outside*"))


def test_steps_that_leaf_keeps_are_not_read_again(tmp_path, tokenizer):
    data = {f"u{i}": {"x": [tokenizer.words[10]], "y": [0]} for i in range(20)}
    for part in ("all_data", "sampled_data", "rem_user_data", "train", "test"):
        (tmp_path / "leaf" / part).mkdir(parents=True)
        path = tmp_path / "leaf" / part / "data.json"
        path.write_text(json.dumps({"users": list(data), "user_data": data}))
    profile = import_population("leaf", str(tmp_path / "leaf"), tokenizer, tmp_path / "store", KEEP)
    assert profile["provenance"]["records"] == 40  # of train and test
    alone = str(tmp_path / "leaf" / "sampled_data")
    profile = import_population("leaf", alone, tokenizer, tmp_path / "one", KEEP)
    assert profile["provenance"]["records"] == 20


def test_clients_of_an_sqlite_file_keep_their_splits(store, tokenizer, tmp_path):
    export_sqlite(store, tokenizer, tmp_path / "clients.sqlite")
    splits, note = sqlite_splits(tmp_path / "clients.sqlite")
    assert splits == {name: split for split in SPLITS for name in store.user_ids(split)}
    assert "stay" in note


def test_clients_in_two_splits_are_divided_anew_and_it_is_said(store, tokenizer, tmp_path):
    path = tmp_path / "clients.sqlite"
    export_sqlite(store, tokenizer, path)
    with sqlite3.connect(path) as file:
        client = next(store.user_ids("train"))
        file.execute("INSERT INTO client_metadata VALUES (?, 'test', 1)", (client,))
    assert sqlite_splits(path) == (
        {},
        "clients are split by their digest: the file's splits are not kept",
    )


def test_another_file_is_no_client_data(tmp_path):
    (tmp_path / "a.sqlite").write_text("no database, but text that is long enough to be read")
    with pytest.raises(ValueError, match="not a client data file"):
        sqlite_splits(tmp_path / "a.sqlite")


def test_leaf_files_have_what_leaf_asks_for(store, tokenizer, tmp_path):
    export_leaf(store, tokenizer, tmp_path / "leaf")
    for split in SPLITS:
        (path,) = (tmp_path / "leaf" / split).iterdir()
        content = json.loads(path.read_text(encoding="utf-8"))
        assert content["users"] == list(content["user_data"]) == list(store.user_ids(split))
        for user, count in zip(content["users"], content["num_samples"], strict=True):
            data = content["user_data"][user]
            assert len(data["x"]) == len(data["y"]) == count
            for text, target in zip(data["x"], data["y"], strict=True):
                assert target.split() == [*text.split()[1:], "</s>"]


def test_sqlite_tables_and_counts(store, tokenizer, tmp_path):
    path = tmp_path / "clients.sqlite"
    written = export_sqlite(store, tokenizer, path)
    with sqlite3.connect(path) as file:
        counts = "SELECT count(*) FROM examples WHERE client_id = ? AND split_name = ?"
        rows = file.execute("SELECT client_id, split_name, num_examples FROM client_metadata")
        found = rows.fetchall()
        assert written == sum(count for _, _, count in found)
        for client, split, count in found:
            assert file.execute(counts, (client, split)).fetchone() == (count,)
    names = {(client, split) for client, split, _ in found}
    assert names == {(name, split) for split in SPLITS for name in store.user_ids(split)}


def test_an_example_byte_by_byte():
    inner = b"\x0a\x02\x68\x69"  # BytesList{value: "hi"}
    feature = b"\x0a\x04" + inner  # Feature{bytes_list}
    entry = b"\x0a\x01\x74" + b"\x12\x06" + feature  # {key: "t", value: feature}
    features = b"\x0a\x0b" + entry
    assert example("t", "hi") == b"\x0a\x0d" + features
    assert example("t", "x" * 300)[:3] == bytes([0x0A, 0xBB, 0x02])  # 315, as a varint


def test_nothing_is_overwritten_and_nothing_half_written(store, tokenizer, tmp_path):
    taken = tmp_path / "taken"
    taken.write_text("mine")
    for write in (export_leaf, export_sqlite):
        with pytest.raises(ValueError, match="exists"):
            write(store, tokenizer, taken)
        with pytest.raises(ValueError, match="another tokenizer"):
            write(store, synthetic_tokenizer(300), tmp_path / "new")
    assert [path.name for path in tmp_path.iterdir()] == ["taken"]
    assert taken.read_text() == "mine"
