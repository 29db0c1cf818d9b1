"""Stores, whatever rows they are built of: nothing is lost uncounted, nothing changes unnoticed."""

from __future__ import annotations

import csv
import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from pfl_lm.text.population import PROFILE_FILE, SPLITS, PopulationStore
from pfl_lm.text.population_build import BuildOptions, Input, build_population
from pfl_lm.text.population_write import StoreWriter, UserText, message_bytes
from pfl_lm.text.records import message_text, user_id
from pfl_lm.text.synthetic.population import synthetic_tokenizer
from pfl_lm.text.tokenizer import Tokenizer

FOLDERS = settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return synthetic_tokenizer(300)


WORDS = [w for w in synthetic_tokenizer(300).words[10:20] if w.isalpha()]
IDS = st.sampled_from(
    ["u1", "U1", "u1 ", "\ufeffu1", "u2", "7", "7.0", "", " ", "nan", "None", "é", "e\u0301", '"'],
)
TEXTS = st.lists(
    st.sampled_from([*WORDS, '"', ",", ".", "zzz", "\0", "\u200b", "'"]), max_size=5
).map(" ".join)
ROWS = st.lists(st.tuples(IDS, TEXTS), min_size=1, max_size=12)


def jsonl(path: Path, rows: list[tuple[str, str]]) -> None:
    path.write_text("".join(json.dumps({"user": u, "text": t}) + "\n" for u, t in rows))


def tsv(path: Path, rows: list[tuple[str, str]]) -> None:
    path.write_bytes(("user\ttext\n" + "".join(f"{u}\t{t}\n" for u, t in rows)).encode())


def comma(path: Path, rows: list[tuple[str, str]]) -> None:
    with path.open("w", newline="", encoding="utf-8-sig") as file:
        csv.writer(file).writerows([("user", "text"), *rows])


def columns(path: Path, rows: list[tuple[str, str]]) -> None:
    users, texts = zip(*rows, strict=True)
    parquet.write_table(pyarrow.table({"user": users, "text": texts}), path)


def expected(rows: list[tuple[str, str]], tokenizer: Tokenizer) -> tuple[dict[str, Any], int, int]:
    """Return the ids of every user's messages, the malformed rows, those without a word."""
    users, malformed, empty = defaultdict(list), 0, 0
    for who, what in rows:
        try:
            user, ids = user_id(who), tokenizer.encode(message_text(what))
        except ValueError:
            malformed += 1
            continue
        if ids:
            users[user].append(ids)
        empty += not ids
    return users, malformed, empty


@FOLDERS
@given(
    ROWS, st.sampled_from([(jsonl, "jsonl"), (tsv, "tsv"), (comma, "csv"), (columns, "parquet")])
)
def test_every_row_is_in_the_store_under_its_own_user_or_counted(
    tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory, rows: Any, kind: Any
) -> None:
    write, suffix = kind
    folder = tmp_path_factory.mktemp("rows")
    write(folder / f"a.{suffix}", rows)
    users, malformed, empty = expected(rows, tokenizer)
    options = BuildOptions(keep_user_ids=True, max_malformed=0.999)
    inputs = [Input(folder / f"a.{suffix}")]
    if not users:
        with pytest.raises(ValueError, match=r"malformed|holds? no"):
            build_population(inputs, tokenizer, folder / "out", options)
        assert not (folder / "out").exists()
        return
    profile = build_population(inputs, tokenizer, folder / "out", options)
    about = profile["provenance"]
    assert (about["malformed"], about["messages_without_words"]) == (malformed, empty)
    messages = sum(part["messages"] for part in profile["splits"].values())
    assert about["records"] == messages + malformed + empty == len(rows)
    store = PopulationStore.open(folder / "out")
    found = {}
    for split in SPLITS:
        for number, user in enumerate(store.user_ids(split)):
            found[user] = store.tokens(split, number).tolist()
    stream = {u: [t for ids in m for t in (2, *ids, 3)] for u, m in users.items()}
    assert found == stream


@pytest.fixture(scope="module")
def sound(tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sound") / "store"
    folder.mkdir()
    with StoreWriter(folder, tokenizer, keep_user_ids=True) as writer:
        for number, split in enumerate((0, 0, 1, 2)):
            text = [message_bytes("H", [5 + number, 6]), message_bytes("H", [7])]
            writer.add(UserText(bytes([number] * 16), split, b"u%d" % number, text))
    writer.finish("sound", {"inputs": []})
    return folder


@FOLDERS
@given(st.data())
def test_no_change_of_a_store_s_files_goes_unnoticed(
    sound: Path, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    import shutil

    copy = tmp_path_factory.mktemp("changed") / "store"
    shutil.copytree(sound, copy)
    names = sorted(path.name for path in copy.iterdir() if path.name != PROFILE_FILE)
    path = copy / data.draw(st.sampled_from(names))
    content = path.read_bytes()
    harm = data.draw(st.sampled_from(["bit", "cut", "longer", "gone", "other"]))
    if harm == "gone":
        path.unlink()
    elif harm == "bit":
        at = data.draw(st.integers(0, 8 * len(content) - 1))
        path.write_bytes(bytes(b ^ (1 << at % 8) * (i == at // 8) for i, b in enumerate(content)))
    else:
        other = data.draw(st.binary(min_size=1, max_size=40).filter(lambda b: b != content))
        path.write_bytes(
            {"cut": content[: -len(other)], "longer": content + other}.get(harm, other)
        )
    with pytest.raises(ValueError, match=path.name.replace(".", r"\.")):
        PopulationStore.open(copy).check()


@FOLDERS
@given(st.lists(st.booleans(), min_size=1, max_size=4))
def test_a_store_is_public_if_and_only_if_all_of_it_is(
    tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory, kinds: list[bool]
) -> None:
    folder = tmp_path_factory.mktemp("public")
    with StoreWriter(folder, tokenizer) as writer:
        for number, public in enumerate(kinds):
            if public:
                writer.add_public([message_bytes("H", [5, 6])])
            else:
                user = UserText(bytes([number] * 16), 0, b"", [message_bytes("H", [5])])
                writer.add(user)
    writer.finish("mixed", {"inputs": []})
    store = PopulationStore.open(folder)
    if all(kinds):
        store.require_public()
    else:
        with pytest.raises(ValueError, match="holds the text of users, which is not public"):
            store.require_public()
