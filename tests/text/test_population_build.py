"""The builder: one population whatever the order, format or number of workers, or none at all."""

from __future__ import annotations

import filecmp
import gzip
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter, defaultdict
from pathlib import Path
from typing import Literal

import numpy as np
import pytest

from pfl_lm.evaluation.vocabulary import Vocabulary
from pfl_lm.text import population_write
from pfl_lm.text.as_typed import AsTyped
from pfl_lm.text.normalisation import Normalisation
from pfl_lm.text.population import HELD_OUT, SPLITS, PopulationStore
from pfl_lm.text.population_build import (
    BuildOptions,
    Input,
    build_population,
)
from pfl_lm.text.public_text import public_tokens
from pfl_lm.text.records import user_digest
from pfl_lm.text.synthetic.population import synthetic_tokenizer
from pfl_lm.text.tokenizer import CONTROLS, Tokenizer
from pfl_lm.text.tokenizer_assemble import assemble

USERS, MESSAGES = 60, 600


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return synthetic_tokenizer(500)


@pytest.fixture(scope="module")
def rows(tokenizer: Tokenizer) -> list[tuple[str, str]]:
    """Messages of many users, mixed; some words are outside the vocabulary."""
    random = np.random.default_rng(0)
    words = np.array([*tokenizer.words[4:], "qqq"])
    return [
        (f"user{random.integers(USERS)}", " ".join(random.choice(words, random.integers(1, 9))))
        for _ in range(MESSAGES)
    ]


def write(path: Path, rows: list[tuple[str, str]]) -> Path:
    path.write_text("".join(json.dumps({"user": u, "text": t}) + "\n" for u, t in rows))
    return path


def streams_by_user(rows: list[tuple[str, str]], tokenizer: Tokenizer) -> dict[str, list[int]]:
    """The reference: what the store must hold for each user."""
    streams: dict[str, list[int]] = defaultdict(list)
    for user, text in rows:
        streams[user] += [2, *tokenizer.encode(text), 3]
    return streams


def same_files(first: Path, second: Path) -> bool:
    names = sorted(path.name for path in first.iterdir())
    assert names == sorted(path.name for path in second.iterdir())
    parts = [name for name in names if name != "population.json"]  # names its inputs
    return filecmp.cmpfiles(first, second, parts, shallow=False)[0] == parts


class TestUnknownWords:
    """A store that keeps, by user, the words that its vocabulary lacks."""

    def test_they_are_counted_by_user_in_any_grouping(
        self, rows: list[tuple[str, str]], tokenizer: Tokenizer, tmp_path: Path
    ) -> None:
        halves = [write(tmp_path / "a.jsonl", rows[::2]), write(tmp_path / "b.jsonl", rows[1::2])]
        options = BuildOptions(keep_unknown_words=True, keep_user_ids=True)
        for folder, paths in (("p", halves), ("q", halves[::-1])):
            build_population([Input(path) for path in paths], tokenizer, tmp_path / folder, options)
        store = PopulationStore.open(tmp_path / "p")
        assert (tmp_path / "p/train.unknown").read_bytes() == (
            tmp_path / "q/train.unknown"
        ).read_bytes()
        expected = Counter(user for user, text in rows for _ in range(text.split().count("qqq")))
        for split in SPLITS:
            users = list(store.user_ids(split))
            counts = list(store.unknown_words(split))
            assert counts == [{"qqq": expected[u]} if expected[u] else {} for u in users]

    def test_a_changed_file_is_refused(
        self, rows: list[tuple[str, str]], tokenizer: Tokenizer, tmp_path: Path
    ) -> None:
        options = BuildOptions(keep_unknown_words=True)
        build_population(
            [Input(write(tmp_path / "a.jsonl", rows))], tokenizer, tmp_path / "p", options
        )
        path = tmp_path / "p" / "train.unknown"
        path.write_bytes(path.read_bytes().replace(b"qqq", b"qqr", 1))
        with pytest.raises(ValueError, match="damaged"):
            list(PopulationStore.open(tmp_path / "p").unknown_words("train"))

    def test_without_the_option_nothing_is_kept(
        self, rows: list[tuple[str, str]], tokenizer: Tokenizer, tmp_path: Path
    ) -> None:
        build_population([Input(write(tmp_path / "a.jsonl", rows))], tokenizer, tmp_path / "p")
        with pytest.raises(ValueError, match="--keep-unknown-words"):
            list(PopulationStore.open(tmp_path / "p").unknown_words("train"))


class TestContent:
    def test_every_user_keeps_every_message_in_order(
        self, rows: list[tuple[str, str]], tokenizer: Tokenizer, tmp_path: Path
    ) -> None:
        options = BuildOptions(keep_user_ids=True)
        inputs = [Input(write(tmp_path / "a.jsonl", rows))]
        profile = build_population(inputs, tokenizer, tmp_path / "p", options)
        store = PopulationStore.open(tmp_path / "p")
        expected = streams_by_user(rows, tokenizer)
        found = {
            user: store.tokens(split, number).tolist()
            for split in SPLITS
            for number, user in enumerate(store.user_ids(split))
        }
        assert found == expected
        typed = AsTyped(tokenizer)
        how: dict[str, list[int]] = defaultdict(list)
        for user, text in rows:
            how[user] += [0, *typed.codes(text)]
        for split in HELD_OUT:
            for number, user in enumerate(store.user_ids(split)):
                assert store.typed(split, number).tolist() == how[user]  # type: ignore[union-attr]
        assert store.typed("train", 0) is None
        parts = ("ids", "offsets", "tokens", "users")
        names = [f"{split}.{part}" for split in SPLITS for part in parts]
        names += [f"{split}.typed" for split in HELD_OUT]
        assert sorted(os.listdir(tmp_path / "p")) == sorted(["population.json", *names])
        flat = [i for ids in expected.values() for i in ids if i not in (2, 3)]
        splits = profile["splits"].values()
        assert sum(row["words"] for row in splits) == len(flat)
        unknown = sum(row["oov_rate"] * row["words"] for row in splits)
        assert unknown == pytest.approx(flat.count(1))
        assert profile == store.describe()

    @pytest.mark.parametrize("punctuation", ["keep", "drop"])
    def test_words_are_counted_as_an_evaluation_counts_them(
        self, punctuation: Literal["keep", "drop"], tmp_path: Path
    ) -> None:
        marks = [(mark, "mark", 1) for mark in (",", ".", "😂") if punctuation == "keep"]
        names = [(name, "control", 1) for name in CONTROLS]
        words = [(word, "word", 1) for word in ("in", "london", "no")]
        listed = [*names, ("<number>", "placeholder", 1), *marks, *words]
        rules = Normalisation(punctuation=punctuation)
        tokenizer = assemble(listed, rules, {"locale": "en_US"})
        text = write(tmp_path / "a.jsonl", [("u", "In London, 2026. No, no 😂 qqq, 7 in")])
        inputs, folder = [Input(text, split="test")], tmp_path / "p"
        row = build_population(inputs, tokenizer, folder)["splits"]["test"]
        assert (row["words"], row["oov_rate"]) == (6, pytest.approx(1 / 6))
        counts = Vocabulary.of(tokenizer)
        tokens = PopulationStore.open(folder).tokens("test", 0)
        assert counts.counts_as_word[tokens].sum() == 6

    def test_grouping_files_workers_and_buffers_change_nothing(
        self,
        rows: list[tuple[str, str]],
        tokenizer: Tokenizer,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        whole = Input(write(tmp_path / "a.jsonl", rows))
        build_population([whole], tokenizer, tmp_path / "whole")
        grouped = Input(write(tmp_path / "b.jsonl", sorted(rows, key=lambda row: row[0])))
        build_population([grouped], tokenizer, tmp_path / "grouped")
        parts = [
            Input(write(tmp_path / f"{i}.jsonl", rows[i * 100 : i * 100 + 100])) for i in range(6)
        ]
        build_population(parts, tokenizer, tmp_path / "parts", BuildOptions(workers=2))
        monkeypatch.setattr(population_write, "_BUFFER_BYTES", 100)
        monkeypatch.setattr("pfl_lm.text.population_build._BUCKET_BYTES", 1000)
        build_population([whole], tokenizer, tmp_path / "spilled")
        for other in ("grouped", "parts", "spilled"):
            assert same_files(tmp_path / "whole", tmp_path / other), other

    def test_messages_without_words_are_left_out_and_counted(
        self, tokenizer: Tokenizer, tmp_path: Path
    ) -> None:
        word = tokenizer.words[10]
        path = write(tmp_path / "a.jsonl", [("a", ":)"), ("a", word), ("b", "!!!")])
        profile = build_population([Input(path)], tokenizer, tmp_path / "p")
        assert sum(row["users"] for row in profile["splits"].values()) == 1
        assert profile["provenance"]["messages_without_words"] == 2

    def test_progress_ends_at_the_size_of_the_inputs(
        self, rows: list[tuple[str, str]], tokenizer: Tokenizer, tmp_path: Path
    ) -> None:
        seen: list[tuple[int, int]] = []
        path = write(tmp_path / "a.jsonl", rows)
        build_population(
            [Input(path)], tokenizer, tmp_path / "p", progress=lambda d, t: seen.append((d, t))
        )
        assert seen[-1] == (path.stat().st_size, path.stat().st_size)


class TestSplits:
    def test_inputs_may_state_their_split(self, tokenizer: Tokenizer, tmp_path: Path) -> None:
        word = tokenizer.words[10]
        inputs = [
            Input(write(tmp_path / f"{split}.jsonl", [(f"{split}-user", word)]), split)
            for split in SPLITS
        ]
        options = BuildOptions(keep_user_ids=True)
        build_population(inputs, tokenizer, tmp_path / "p", options)
        store = PopulationStore.open(tmp_path / "p")
        assert [list(store.user_ids(split)) for split in SPLITS] == [
            [f"{split}-user"] for split in SPLITS
        ]

    def test_fractions_hold_and_stay_when_users_are_added(self) -> None:
        draws = {f"user{i}": user_digest(f"user{i}", "k")[1] for i in range(20_000)}
        shares = Counter((draw >= 0.8) + (draw >= 0.9) for draw in draws.values())
        assert [shares[i] / 20_000 for i in range(3)] == pytest.approx([0.8, 0.1, 0.1], abs=0.01)
        assert user_digest("user7", "k")[1] == draws["user7"]
        assert user_digest("user7", "other") != user_digest("user7", "k")

    def test_a_user_in_two_splits_is_refused(self, tokenizer: Tokenizer, tmp_path: Path) -> None:
        word = tokenizer.words[10]
        train = Input(write(tmp_path / "a.jsonl", [("ann", word)]), "train")
        test = Input(write(tmp_path / "b.jsonl", [("ann", word)]), "test")
        with pytest.raises(ValueError, match="train and in the test input"):
            build_population([train, test], tokenizer, tmp_path / "p")
        assert not (tmp_path / "p").exists()


class TestPublicText:
    def test_it_is_one_stream_in_order(
        self, rows: list[tuple[str, str]], tokenizer: Tokenizer, tmp_path: Path
    ) -> None:
        texts = [text for _, text in rows]
        first, second = tmp_path / "a.txt.gz", tmp_path / "b.jsonl"
        first.write_bytes(gzip.compress("\n".join(texts[:300]).encode()))
        second.write_text("\n".join(json.dumps({"text": text}) for text in texts[300:]))
        public_tokens([first, second], tokenizer, tmp_path / "p")
        stream = PopulationStore.open(tmp_path / "p").stream("train")
        assert stream.tolist() == [i for t in texts for i in (2, *tokenizer.encode(t), 3)]
        assert not stream.flags.writeable

    def test_files_of_two_languages_take_turns(self, tokenizer: Tokenizer, tmp_path: Path) -> None:
        words = tokenizer.words[9:20]
        for name, lines in (("a", words[:7]), ("b", words[7:])):
            (tmp_path / f"{name}.txt").write_text("\n".join(lines))
        paths = [tmp_path / "a.txt", tmp_path / "b.txt"]
        public_tokens(paths, tokenizer, tmp_path / "p", turns=3)
        stream = PopulationStore.open(tmp_path / "p").stream("train")
        order = [*words[:3], *words[7:10], *words[3:6], words[10], words[6]]
        assert stream.tolist() == [i for word in order for i in (2, *tokenizer.encode(word), 3)]

    def test_long_text_is_cut_into_users(
        self, tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("pfl_lm.text.public_text._LINES_PER_USER", 3)
        (tmp_path / "a.txt").write_text(f"{tokenizer.words[9]}\n" * 7)
        public_tokens([tmp_path / "a.txt"], tokenizer, tmp_path / "p")
        store = PopulationStore.open(tmp_path / "p")
        assert store.lengths("train").tolist() == [9, 9, 3]


class TestBadInput:
    """Each mistake is one ValueError, and nothing is left where the store would have been."""

    def refused(
        self,
        inputs: list[Input],
        tokenizer: Tokenizer,
        tmp_path: Path,
        match: str,
        options: BuildOptions | None = None,
    ) -> None:
        with pytest.raises(ValueError, match=match):
            build_population(inputs, tokenizer, tmp_path / "out" / "p", options)
        assert not (tmp_path / "out").exists() or not os.listdir(tmp_path / "out")

    def bad_lines(self, tmp_path: Path, tokenizer: Tokenizer, bad: int, good: int) -> Input:
        path = write(tmp_path / "a.jsonl", [("ann", tokenizer.words[10])] * good)
        path.write_text(path.read_text() + "{oops\n" * bad)
        return Input(path)

    def test_too_many_malformed_lines(self, tokenizer: Tokenizer, tmp_path: Path) -> None:
        lines = self.bad_lines(tmp_path, tokenizer, bad=2, good=98)
        options = BuildOptions(max_malformed=0.019)
        match = r"2 of 100 records are malformed \(2.00%, allowed 1.90%.*a\.jsonl:99: .*jsonl:100: "
        self.refused([lines], tokenizer, tmp_path, match, options)

    def test_few_malformed_lines_are_counted_and_shown(
        self, tokenizer: Tokenizer, tmp_path: Path
    ) -> None:
        lines = self.bad_lines(tmp_path, tokenizer, bad=2, good=98)
        options = BuildOptions(max_malformed=0.02)
        profile = build_population([lines], tokenizer, tmp_path / "p", options)
        assert profile["provenance"]["malformed"] == 2
        assert "a.jsonl:99: " in profile["provenance"]["malformed_examples"][0]

    def test_another_format_stops_early(self, tokenizer: Tokenizer, tmp_path: Path) -> None:
        lines = self.bad_lines(tmp_path, tokenizer, bad=5000, good=10)
        self.refused([lines], tokenizer, tmp_path, r"1,000 of the first 1,010 records")

    def test_truncated_archive(self, tokenizer: Tokenizer, tmp_path: Path) -> None:
        path = tmp_path / "a.jsonl.gz"
        content = b'{"user": "a", "text": "x"}\n' * 1000
        path.write_bytes(gzip.compress(content)[:-20])
        self.refused([Input(path)], tokenizer, tmp_path, r"a\.jsonl\.gz: .*ends early")

    def test_an_error_in_a_worker(self, tokenizer: Tokenizer, tmp_path: Path) -> None:
        good = Input(write(tmp_path / "a.jsonl", [("ann", tokenizer.words[10])]))
        bad = Input(tmp_path / "b.csv")
        bad.path.write_text("who,what\na,b\n")
        options = BuildOptions(workers=2)
        self.refused([good, bad], tokenizer, tmp_path, "no column 'user'", options)

    def test_missing_input(self, tokenizer: Tokenizer, tmp_path: Path) -> None:
        self.refused([Input(tmp_path / "no.csv")], tokenizer, tmp_path, r"no\.csv does not exist")

    def test_no_input(self, tokenizer: Tokenizer, tmp_path: Path) -> None:
        self.refused([], tokenizer, tmp_path, "no input")

    def test_an_id_too_long_to_be_kept(self, tokenizer: Tokenizer, tmp_path: Path) -> None:
        path = write(tmp_path / "a.jsonl", [("a" * 70_000, tokenizer.words[10])])
        options = BuildOptions(keep_user_ids=True)
        self.refused([Input(path)], tokenizer, tmp_path, "at most 65,535 bytes", options)

    def test_unknown_format(self, tokenizer: Tokenizer, tmp_path: Path) -> None:
        (tmp_path / "a.pdf").touch()
        self.refused([Input(tmp_path / "a.pdf")], tokenizer, tmp_path, "cannot tell the format")

    def test_unknown_split(self, tokenizer: Tokenizer, tmp_path: Path) -> None:
        path = write(tmp_path / "a.jsonl", [("a", "x")])
        self.refused([Input(path, "dev")], tokenizer, tmp_path, "split = 'dev'")

    @pytest.mark.parametrize("content", ["", '{"user": "a", "text": "?!"}\n'])
    def test_no_words_at_all(self, content: str, tokenizer: Tokenizer, tmp_path: Path) -> None:
        path = tmp_path / "a.jsonl"
        path.write_text(content)
        self.refused([Input(path)], tokenizer, tmp_path, "no message with a word")

    def test_existing_destination(self, tokenizer: Tokenizer, tmp_path: Path) -> None:
        path = write(tmp_path / "a.jsonl", [("a", tokenizer.words[10])])
        (tmp_path / "p").mkdir()
        with pytest.raises(ValueError, match="exists already"):
            build_population([Input(path)], tokenizer, tmp_path / "p")

    @pytest.mark.parametrize(
        ("stated", "match"),
        [
            ({"fractions": (0.5, 0.1, 0.1)}, "sum to 1"),
            ({"fractions": (1.2, -0.1, -0.1)}, "sum to 1"),
            ({"max_malformed": 1.0}, "max_malformed"),
            ({"workers": 0}, "workers"),
            ({"split_key": ""}, "split_key"),
        ],
    )
    def test_impossible_options(self, stated: dict[str, object], match: str) -> None:
        with pytest.raises(ValueError, match=match):
            BuildOptions(**stated)  # type: ignore[arg-type]


_BUILD = """
import sys
from pathlib import Path
from pfl_lm.text.population_build import BuildOptions, Input, build_population
from pfl_lm.text.synthetic.population import synthetic_tokenizer
if __name__ == "__main__":
    folder = Path(sys.argv[1])
    inputs = [Input(folder / "pipe.jsonl"), Input(folder / "a.jsonl")]
    options = BuildOptions(workers=int(sys.argv[2]))
    build_population(inputs, synthetic_tokenizer(200), folder / "out" / "p", options)
"""


class TestInterruption:
    @pytest.mark.parametrize("workers", [1, 2])
    def test_ctrl_c_leaves_nothing(self, workers: int, tmp_path: Path) -> None:
        os.mkfifo(tmp_path / "pipe.jsonl")  # an input that never comes
        write(tmp_path / "a.jsonl", [("ann", "x")])
        (tmp_path / "build.py").write_text(_BUILD)
        command = [sys.executable, str(tmp_path / "build.py"), str(tmp_path), str(workers)]
        process = subprocess.Popen(command, stderr=subprocess.PIPE, start_new_session=True)
        deadline = time.monotonic() + 60
        while not list((tmp_path / "out").glob(".p.*/*/spill")) and time.monotonic() < deadline:
            time.sleep(0.05)
        time.sleep(0.3)
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to every process
        _, errors = process.communicate(timeout=60)
        assert process.returncode != 0, errors
        assert os.listdir(tmp_path / "out") == []

    def test_the_next_build_removes_the_spill_of_a_killed_one(
        self, tokenizer: Tokenizer, tmp_path: Path
    ) -> None:
        os.mkfifo(tmp_path / "pipe.jsonl")
        path = write(tmp_path / "a.jsonl", [("ann", tokenizer.words[10])])
        (tmp_path / "build.py").write_text(_BUILD)
        command = [sys.executable, str(tmp_path / "build.py"), str(tmp_path), "1"]
        process = subprocess.Popen(command)
        deadline = time.monotonic() + 60
        while not list((tmp_path / "out").glob(".p.*/*/spill")) and time.monotonic() < deadline:
            time.sleep(0.05)
        process.kill()
        process.wait()
        assert len(os.listdir(tmp_path / "out")) == 1
        build_population([Input(path)], tokenizer, tmp_path / "out" / "p")
        assert os.listdir(tmp_path / "out") == ["p"]

    def test_an_error_while_writing_leaves_nothing(
        self, tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def full_disk(*_: object) -> None:
            raise OSError("no space left on device")

        monkeypatch.setattr(population_write.StoreWriter, "add", full_disk)
        path = write(tmp_path / "a.jsonl", [("a", tokenizer.words[10])])
        with pytest.raises(OSError, match="no space"):
            build_population([Input(path)], tokenizer, tmp_path / "p")
        assert sorted(os.listdir(tmp_path)) == ["a.jsonl"]


def test_real_text(shared: Path, tokenizer: Tokenizer, tmp_path: Path) -> None:
    """The sms corpus: every line of every file, by 297 users as its README states."""
    paths = [shared / "data" / "sms" / f"{split}.jsonl.gz" for split in SPLITS]
    inputs = [Input(path, split) for path, split in zip(paths, SPLITS, strict=True)]
    profile = build_population(inputs, tokenizer, tmp_path / "p")
    provenance, splits = profile["provenance"], profile["splits"].values()
    lines = sum(gzip.decompress(path.read_bytes()).count(b"\n") for path in paths)
    messages = sum(row["messages"] for row in splits)
    assert sum(row["users"] for row in splits) == 297
    assert messages + provenance["messages_without_words"] == provenance["records"] == lines
    assert provenance["malformed"] == 0
