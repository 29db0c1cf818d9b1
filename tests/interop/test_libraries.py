"""Hugging Face datasets, LEAF's own reader and pfl-research, themselves (`make test-interop`)."""

from __future__ import annotations

import importlib
import importlib.util
import os
from collections import defaultdict
from importlib.metadata import distribution
from itertools import islice
from pathlib import Path

import numpy as np
import pytest

from pfl_lm.interop.exports import export_leaf
from pfl_lm.interop.hugging_face import records_of
from pfl_lm.interop.imports import import_population
from pfl_lm.interop.pfl_research import federated_dataset
from pfl_lm.text.population import SPLITS, PopulationStore, windows
from pfl_lm.text.population_build import BuildOptions, Input, build_population

KEEP = BuildOptions(keep_user_ids=True)


def by_user(lines, tokenizer) -> dict[str, list[int]]:
    streams: dict[str, list[int]] = defaultdict(list)
    for user, text, _ in lines:
        streams[user] += [2, *tokenizer.encode(text), 3]
    return streams


@pytest.fixture(scope="module", autouse=True)
def libraries():
    """Where they are asked for they must be there: nothing is skipped in `make test-interop`."""
    if "PFL_LM_TEST_INTEROP" not in os.environ:
        pytest.skip("needs other libraries; `make test-interop` installs them and runs this")


@pytest.fixture(scope="module")
def datasets():
    return importlib.import_module("datasets")


@pytest.fixture(scope="module")
def rows(datasets, lines):
    columns = {"author": [line.user for line in lines], "body": [line.text for line in lines]}
    return datasets.Dataset.from_dict({**columns, "score": list(range(len(lines)))})


@pytest.fixture(scope="module")
def reader():
    """LEAF's `model_utils`, as its packaged descendant carries it, without the rest of that."""
    path = distribution("rayleaf").locate_file("rayleaf/utils/data_utils.py")
    spec = importlib.util.spec_from_file_location("leaf_reader", Path(str(path)))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class TestHuggingFace:
    def test_a_dataset_in_memory(self, rows, lines, tokenizer, streams, tmp_path):
        found = records_of(rows, "author", "body")
        build_population([Input(Path("hf"), records=found)], tokenizer, tmp_path / "store", KEEP)
        assert streams(PopulationStore.open(tmp_path / "store")) == by_user(lines, tokenizer)

    def test_a_saved_dataset(self, rows, lines, tokenizer, streams, tmp_path):
        rows.save_to_disk(tmp_path / "saved")
        options = BuildOptions(keep_user_ids=True, user_field="author", text_field="body")
        import_population("hf", str(tmp_path / "saved"), tokenizer, tmp_path / "store", options)
        assert streams(PopulationStore.open(tmp_path / "store")) == by_user(lines, tokenizer)

    def test_splits_by_user_are_kept_and_others_divided(
        self, datasets, rows, lines, tokenizer, streams, tmp_path
    ):
        early = rows.filter(lambda row: row["author"] < "user5")
        late = rows.filter(lambda row: row["author"] >= "user5")
        datasets.DatasetDict(train=early, test=late).save_to_disk(tmp_path / "saved")
        options = BuildOptions(keep_user_ids=True, user_field="author", text_field="body")
        import_population("hf", str(tmp_path / "saved"), tokenizer, tmp_path / "store", options)
        store = PopulationStore.open(tmp_path / "store")
        assert set(store.user_ids("train")) == set(early["author"])
        assert set(store.user_ids("test")) == set(late["author"])
        import_population(
            "hf", str(tmp_path / "saved"), tokenizer, tmp_path / "part", options, part="test"
        )
        part = PopulationStore.open(tmp_path / "part")
        assert streams(part) == {
            u: tokens for u, tokens in by_user(lines, tokenizer).items() if u >= "user5"
        }

    def test_a_data_set_by_name_goes_through_load_dataset(
        self, rows, lines, tokenizer, streams, tmp_path
    ):
        folder = tmp_path / "named"
        folder.mkdir()
        rows.to_parquet(folder / "train.parquet")
        options = BuildOptions(keep_user_ids=True, user_field="author", text_field="body")
        import_population(
            "hf", str(folder), tokenizer, tmp_path / "store", options, cache=tmp_path / "cache"
        )
        assert streams(PopulationStore.open(tmp_path / "store")) == by_user(lines, tokenizer)

    def test_mistakes(self, rows, tmp_path):
        with pytest.raises(ValueError, match="its columns are author, body, score"):
            list(records_of(rows, "user", "body"))
        rows.save_to_disk(tmp_path / "saved")
        with pytest.raises(ValueError, match="no split 'dev'"):
            import_population("hf", str(tmp_path / "saved"), None, tmp_path / "x", KEEP, "dev")


class TestLeaf:
    def test_leafs_reader_reads_our_export(self, reader, store, tokenizer, tmp_path):
        export_leaf(store, tokenizer, tmp_path / "leaf")
        train = tmp_path / "leaf" / "train"
        clients, groups, data, same = reader.read_data(train, train)
        assert clients == sorted(store.user_ids("train"))
        assert groups == []
        assert data == same
        ids = list(store.user_ids("train"))
        for client in clients:
            encoded = [[2, *tokenizer.encode(text), 3] for text in data[client]["x"]]
            assert [token for ids in encoded for token in ids] == store.tokens(
                "train", ids.index(client)
            ).tolist()
            batches = list(reader.batch_data(dict(data[client]), 4, seed=1))
            assert sum(len(x) for x, _ in batches) == len(encoded)


class TestPflResearch:
    @pytest.fixture(scope="class", autouse=True)
    @classmethod
    def framework(cls):
        """A program with pfl imports its kind of model, which tells pfl what a tensor is."""
        importlib.import_module("pfl.model.pytorch")

    def test_every_user_is_ours(self, store):
        order = iter(range(store.users("train")))
        users = federated_dataset(
            store.folder, "train", 5, user_sampler=lambda: next(order), max_tokens=20
        )
        for number, (user, _seed) in enumerate(islice(users, store.users("train"))):
            cut = windows(store.tokens("train", number), 5, 21)
            words, targets = user.raw_data
            assert user.user_id == str(number)
            assert len(user) == len(cut)
            np.testing.assert_array_equal(words.numpy(), cut[:, :-1])
            np.testing.assert_array_equal(targets.numpy(), cut[:, 1:])

    def test_arrays_and_cohorts_by_pfls_own_sampler(self, store):
        for split in SPLITS[:2]:
            users = federated_dataset(store.folder, split, 4, as_tensors=False)
            cohort = list(users.get_cohort(5))
            assert len(cohort) == 5
            for user, _seed in cohort:
                cut = windows(store.tokens(split, int(user.user_id)), 4)
                batches = list(user.iter(2))
                np.testing.assert_array_equal(
                    np.concatenate([words for words, _ in batches]), cut[:, :-1]
                )
