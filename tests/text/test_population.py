"""The store: windows that predict every token once, and folders that open without being read."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pfl_lm.text.population import (
    PROFILE_FILE,
    SPLITS,
    PopulationStore,
    windows,
)
from pfl_lm.text.population_write import StoreWriter, UserText, message_bytes, token_dtype
from pfl_lm.text.synthetic.population import synthetic_tokenizer

STREAMS = st.lists(st.integers(1, 40_000), max_size=80).map(lambda ids: np.array(ids, np.int32))


class TestWindows:
    @given(STREAMS, st.integers(1, 25), st.none() | st.integers(1, 100))
    def test_every_token_but_the_first_is_predicted_once(
        self, tokens: np.ndarray, length: int, limit: int | None
    ) -> None:
        cut = windows(tokens, length, limit)
        used = tokens[:limit]
        assert cut.dtype == np.int64
        assert cut.shape == (max(0, -(-(len(used) - 1) // length)), length + 1)
        predicted = cut[:, 1:].ravel()
        assert predicted[predicted != 0].tolist() == used[1:].tolist()
        assert (cut[1:, 0] == cut[:-1, -1]).all()  # overlap by one
        if len(cut):
            assert cut[0, 0] == used[0]
            assert (cut[:-1] != 0).all()  # only the last is filled up

    def test_nothing_to_predict_gives_no_window(self) -> None:
        assert windows(np.array([], np.int32), 5).shape == (0, 6)
        assert windows(np.array([2], np.int32), 5).shape == (0, 6)

    def test_windows_are_the_caller_s_own(self) -> None:
        cut = windows(np.arange(1, 12, dtype=np.int32), 5)
        cut[0, -1] = 99
        assert cut[1, 0] == 6

    @pytest.mark.parametrize(("length", "limit"), [(0, None), (5, 0)])
    def test_impossible_sizes_are_refused(self, length: int, limit: int | None) -> None:
        with pytest.raises(ValueError, match="at least 1"):
            windows(np.arange(5), length, limit)


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """Three users in train, none in validation, one in test."""
    folder = tmp_path / "store"
    folder.mkdir()
    texts = {0: [[[5, 6], [7]], [[8]], [[9, 1]]], 2: [[[10]]]}
    with StoreWriter(folder, synthetic_tokenizer(200), keep_user_ids=True) as writer:
        for split, users in texts.items():
            for number, messages in enumerate(users):
                encoded = [message_bytes("H", ids) for ids in messages]
                writer.add(UserText(bytes([number] * 16), split, b"u%d" % number, encoded))
    writer.finish("tiny", {"inputs": []})
    return folder


class TestStore:
    def test_streams_by_user(self, store: Path) -> None:
        opened = PopulationStore.open(store)
        assert [opened.users(split) for split in SPLITS] == [3, 0, 1]
        assert opened.tokens("train", 0).tolist() == [2, 5, 6, 3, 2, 7, 3]
        assert opened.tokens("train", 0).dtype == np.int32
        assert opened.tokens("test", 0).tolist() == [2, 10, 3]
        assert opened.lengths("train").tolist() == [7, 3, 4]
        assert opened.stream("train").tolist()[7:10] == [2, 8, 3]
        assert opened.user_digest("train", 1) == bytes([1] * 16)
        assert list(opened.user_ids("train")) == ["u0", "u1", "u2"]

    def test_profile_counts_words_and_those_outside_the_vocabulary(self, store: Path) -> None:
        profile = PopulationStore.open(store).describe()
        train = profile["splits"]["train"]
        assert (train["users"], train["messages"], train["words"], train["tokens"]) == (3, 4, 6, 14)
        assert train["oov_rate"] == pytest.approx(1 / 6)
        assert profile["per_user"]["words"]["max"] == 3
        assert profile["tokenizer_digest"] == synthetic_tokenizer(200).digest

    @pytest.mark.parametrize("user", [-1, 3])
    def test_a_user_beyond_the_last_is_an_error(self, store: Path, user: int) -> None:
        with pytest.raises(IndexError, match="train has 3 users"):
            PopulationStore.open(store).tokens("train", user)

    def test_an_unknown_split_is_refused(self, store: Path) -> None:
        with pytest.raises(ValueError, match="expected one of train"):
            PopulationStore.open(store).users("dev")

    def test_a_folder_that_is_no_store_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match="holds no population"):
            PopulationStore.open(tmp_path)

    @pytest.mark.parametrize("harm", ["cut", "absent", "profile", "no key"])
    def test_a_damaged_store_is_refused(self, store: Path, harm: str) -> None:
        if harm == "cut":
            (store / "train.tokens").write_bytes(b"\0\0")
        elif harm == "absent":
            (store / "test.offsets").unlink()
        elif harm == "profile":
            (store / PROFILE_FILE).write_text("{")
        else:
            (store / PROFILE_FILE).write_text("{}")
        with pytest.raises(ValueError, match="build it anew"):
            PopulationStore.open(store)

    def test_user_ids_that_were_not_kept_are_an_error(self, store: Path) -> None:
        (store / "train.ids").unlink()
        with pytest.raises(ValueError, match="--keep-user-ids"):
            list(PopulationStore.open(store).user_ids("train"))

    @pytest.mark.parametrize(("size", "name"), [(200, "<u2"), (65_536, "<u2"), (65_537, "<u4")])
    def test_tokens_take_the_smallest_type(self, size: int, name: str) -> None:
        assert token_dtype(size).numpy == name
        assert np.iinfo(np.dtype(name)).max >= size - 1

    def test_a_store_opens_without_its_text_being_read(self, store: Path) -> None:
        self.change(store / "train.tokens")
        opened = PopulationStore.open(store)
        assert opened.tokens("test", 0).tolist() == [2, 10, 3]  # files of another split
        with pytest.raises(ValueError, match=r"train\.tokens is not what was written"):
            opened.tokens("train", 0)

    @staticmethod
    def change(path: Path) -> None:
        """Change one bit, in the middle of a file."""
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)

    @pytest.mark.parametrize("part", ["tokens", "offsets", "users", "ids"])
    def test_one_bit_of_any_file_is_noticed(self, part: str, store: Path) -> None:
        self.change(store / f"train.{part}")
        opened = PopulationStore.open(store)
        opened.check("test")
        for read in (opened.check, lambda: opened.stream("train"), lambda: opened.lengths("train")):
            with pytest.raises(ValueError, match=rf"train\.{part} is not what was written"):
                read()

    @pytest.mark.parametrize(
        ("part", "dtype", "values"),
        [
            ("offsets", "<i8", [0, 7, 3, 14]),
            ("offsets", "<i8", [1, 7, 10, 14]),
            ("offsets", "<i8", [0, 7, 10, 13]),
            ("tokens", "<u2", [2] * 13 + [200]),
        ],
    )
    def test_what_no_writer_writes_is_refused_whatever_its_digest(
        self, part: str, dtype: str, values: list[int], store: Path
    ) -> None:
        path = store / f"train.{part}"
        path.write_bytes(np.array(values, dtype=dtype).tobytes())
        profile = json.loads((store / PROFILE_FILE).read_text())
        profile["files"][path.name] = hashlib.sha256(path.read_bytes()).hexdigest()
        (store / PROFILE_FILE).write_text(json.dumps(profile))
        with pytest.raises(ValueError, match="overlap, or hold tokens beyond"):
            PopulationStore.open(store).tokens("train", 0)

    def test_a_store_knows_whether_it_holds_users(self, store: Path, tmp_path: Path) -> None:
        users = PopulationStore.open(store)
        assert users.holds == "users"
        with pytest.raises(ValueError, match="the text of users, which is not public"):
            users.require_public()
        folder = tmp_path / "public"
        folder.mkdir()
        with StoreWriter(folder, synthetic_tokenizer(200)) as writer:
            writer.add_public([message_bytes("H", [5])])
        writer.finish("public", {"inputs": []})
        public = PopulationStore.open(folder)
        assert public.holds == "public text"
        public.require_public()
