"""From a store to a list of words: what is found, what it costs, what a crash leaves."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest

from pfl_lm.dp.ledger import verify
from pfl_lm.dp.policy import Reviewed
from pfl_lm.queries import discover as module
from pfl_lm.queries.discover import WordsQuestion, discover
from pfl_lm.queries.found import open_discovered, read_words
from pfl_lm.queries.prefix_tree import TreePlan
from pfl_lm.text.population import PopulationStore
from pfl_lm.text.population_build import BuildOptions, Input, build_population
from pfl_lm.text.tokenizer import Tokenizer
from tests.queries.conftest import TYPED, USERS, policy_of

RARELY = 1e-7  # of a false word: a test must not fail by chance
OPEN = WordsQuestion(domain="open", entries=4, cells=100_000, false_positives=RARELY)


@pytest.fixture
def closed(word_list: Path) -> WordsQuestion:
    return WordsQuestion(
        entries=4, candidates=200, candidates_from=word_list, false_positives=RARELY
    )


class TestClosed:
    def test_words_of_many_are_found_and_words_of_nobody_are_not(
        self, closed, store: PopulationStore, tokenizer: Tokenizer, tmp_path: Path
    ) -> None:
        found = discover(closed, store, tokenizer, policy_of(), tmp_path / "w")
        assert {word.word for word in found} == {"moarvm", "rakudo", "irda"}
        assert read_words(tmp_path / "w" / "words.tsv")[0].word == "moarvm"

    def test_a_denied_word_is_never_asked_for(
        self, closed, store: PopulationStore, tokenizer: Tokenizer, tmp_path: Path
    ) -> None:
        denying = replace(closed, denied=frozenset({"rakudo"}))
        found = discover(denying, store, tokenizer, policy_of(), tmp_path / "w")
        assert {word.word for word in found} == {"moarvm", "irda"}

    def test_a_user_is_asked_no_more_often_than_the_policy_pays_for(
        self, closed, store: PopulationStore, tokenizer: Tokenizer, tmp_path: Path
    ) -> None:
        apart = policy_of(rounds=3, min_separation=3)
        with pytest.raises(ValueError, match="at most 100"):
            discover(replace(closed, cohort=101), store, tokenizer, apart, tmp_path / "w")
        assert not (tmp_path / "w").exists()

    def test_the_noise_is_whole_however_few_users_there_are(
        self, closed, store: PopulationStore, tokenizer: Tokenizer, tmp_path: Path
    ) -> None:
        # Of 100 times as many users the policy would have a hundredth of the noise on these.
        policy = policy_of(users=100 * USERS, delta=1e-5)
        discover(closed, store, tokenizer, policy, tmp_path / "w")
        (entry,) = [e for e in verify(tmp_path / "w" / "ledger.jsonl") if e["kind"] == "round"]
        assert entry["divisor"] == USERS
        assert entry["sum_multiplier"] >= entry["noise"]["planned"] * (1 - 1e-9)

    def test_more_users_than_the_policy_covers_are_refused(
        self, closed, store: PopulationStore, tokenizer: Tokenizer, tmp_path: Path
    ) -> None:
        with pytest.raises(ValueError, match="covers 200"):
            discover(closed, store, tokenizer, policy_of(users=200), tmp_path / "w")

    @pytest.mark.parametrize(
        ("content", "why"),
        [("word\n", "no column 'count'"), ("word\tcount\n", "holds no word"), (None, "exist")],
    )
    def test_a_list_that_is_none_leaves_nothing_behind(
        self, store: PopulationStore, tokenizer: Tokenizer, tmp_path: Path, content, why: str
    ) -> None:
        if content is not None:
            (tmp_path / "list.tsv").write_text(content)
        asking = WordsQuestion(candidates_from=tmp_path / "list.tsv")
        with pytest.raises(ValueError, match=why):
            discover(asking, store, tokenizer, policy_of(), tmp_path / "w")
        assert not (tmp_path / "w").exists()

    def test_a_store_without_unknown_words_says_how_to_build_one(
        self, closed, store: PopulationStore, tokenizer: Tokenizer, tmp_path: Path
    ) -> None:
        for path in store.folder.iterdir():
            if path.suffix != ".unknown":
                os.link(path, tmp_path / path.name)
        bare = PopulationStore.open(tmp_path)
        with pytest.raises(ValueError, match="keep-unknown-words"):
            discover(closed, bare, tokenizer, policy_of(), tmp_path / "w")
        assert not (tmp_path / "w").exists()


class TestOpen:
    def test_words_in_no_list_are_spelled_out(
        self, store: PopulationStore, tokenizer: Tokenizer, tmp_path: Path
    ) -> None:
        policy = policy_of(epsilon=16, rounds=3, min_dim=64)
        found = discover(OPEN, store, tokenizer, policy, tmp_path / "w")
        assert {"moarvm", "rakudo", "irda"} <= {word.word for word in found} <= set(TYPED)
        assert (
            len([e for e in verify(tmp_path / "w" / "ledger.jsonl") if e["kind"] == "round"]) == 3
        )

    def test_an_alphabet_that_needs_more_cells_says_how_many(self) -> None:
        letters = tuple(map(chr, range(0x900, 0x900 + 70)))
        with pytest.raises(ValueError, match="need 347,970: state --cells 347970 or more"):
            TreePlan(5, 20, 1 << 18, 0.02, letters)

    def test_a_denied_word_is_never_voted_for(
        self, store: PopulationStore, tokenizer: Tokenizer, tmp_path: Path
    ) -> None:
        policy = policy_of(epsilon=16, rounds=3)
        denying = replace(OPEN, denied=frozenset({"moarvm"}))
        found = discover(denying, store, tokenizer, policy, tmp_path / "w")
        assert {"rakudo", "irda"} <= {word.word for word in found} <= set(TYPED) - {"moarvm"}

    def test_the_first_letters_must_fit(
        self, store: PopulationStore, tokenizer: Tokenizer, tmp_path: Path
    ) -> None:
        with pytest.raises(ValueError, match=r"cells = 1,000, .* state --cells 25259 or more"):
            discover(replace(OPEN, cells=1000), store, tokenizer, policy_of(), tmp_path / "w")
        assert not (tmp_path / "w").exists()


class TestFolder:
    def test_a_finished_question_keeps_no_seed_and_is_paid_for(
        self, closed, store: PopulationStore, tokenizer: Tokenizer, tmp_path: Path
    ) -> None:
        discover(closed, store, tokenizer, policy_of(), tmp_path / "w")
        assert not (tmp_path / "w" / "noise.secret").exists()
        words = open_discovered(tmp_path / "w")
        assert words.reports == USERS
        assert 0 < sum(words.shares().values()) <= 0.5 + 1e-9
        assert "-differentially private" in words.statement

    @pytest.mark.parametrize("hurt", ["words.tsv", "ledger.jsonl", "manifest.json"])
    def test_what_the_ledger_does_not_vouch_for_is_refused(
        self, closed, store: PopulationStore, tokenizer: Tokenizer, tmp_path: Path, hurt: str
    ) -> None:
        discover(closed, store, tokenizer, policy_of(), tmp_path / "w")
        path = tmp_path / "w" / hurt
        content = path.read_bytes()
        path.write_bytes(content.replace(b"moarvm", b"moarvn").replace(b'"round"', b'"rond"', 1))
        if hurt == "manifest.json":
            path.write_bytes(content.replace(b'"entries": 4', b'"entries": 5'))
        with pytest.raises(ValueError, match=r"ledger|manifest"):
            open_discovered(tmp_path / "w")
        path.unlink()
        with pytest.raises(ValueError, match=f"{hurt} is missing"):
            open_discovered(tmp_path / "w")

    def test_a_list_whose_noise_a_printed_seed_gives_again_is_refused(
        self, closed, store: PopulationStore, tokenizer: Tokenizer, tmp_path: Path
    ) -> None:
        discover(replace(closed, seed=7), store, tokenizer, policy_of(), tmp_path / "w")
        with pytest.raises(ValueError, match="--seed"):
            open_discovered(tmp_path / "w")

    @pytest.mark.parametrize("at", ["write_words", "QuestionFolder.finish"])
    def test_an_interrupted_question_goes_on_with_the_same_noise(
        self, store, tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: str
    ) -> None:
        policy = policy_of(epsilon=16, rounds=3)
        with monkeypatch.context() as patched:
            patched.setattr(f"pfl_lm.queries.discover.{at}", _die)
            with pytest.raises(KeyboardInterrupt):
                discover(OPEN, store, tokenizer, policy, tmp_path / "w")
        before = (tmp_path / "w" / "ledger.jsonl").read_bytes()
        found = discover(OPEN, store, tokenizer, policy, tmp_path / "w", resume=True)
        after = (tmp_path / "w" / "ledger.jsonl").read_bytes()
        assert after.startswith(before)
        assert after.count(b"\n") == before.count(b"\n") + 1  # the end alone
        assert {"moarvm", "rakudo", "irda"} <= {word.word for word in found} <= set(TYPED)
        with pytest.raises(ValueError, match="is finished"):
            discover(OPEN, store, tokenizer, policy, tmp_path / "w", resume=True)

    def test_without_its_seed_it_never_asks_again(
        self, closed, store, tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with monkeypatch.context() as patched:
            patched.setattr(module, "write_words", _die)
            with pytest.raises(KeyboardInterrupt):
                discover(closed, store, tokenizer, policy_of(), tmp_path / "w")
        (tmp_path / "w" / "noise.secret").unlink()
        with pytest.raises(ValueError, match="stays spent"):
            discover(closed, store, tokenizer, policy_of(), tmp_path / "w", resume=True)

    def test_another_question_is_not_taken_for_the_interrupted_one(
        self, closed, store, tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with monkeypatch.context() as patched:
            patched.setattr(module, "write_words", _die)
            with pytest.raises(KeyboardInterrupt):
                discover(closed, store, tokenizer, policy_of(), tmp_path / "w")
        other = replace(closed, entries=3)
        with pytest.raises(ValueError, match=r"\(asked.entries was 4, now it is 3\)"):
            discover(other, store, tokenizer, policy_of(), tmp_path / "w", resume=True)

    def test_it_goes_on_where_the_policy_s_figures_were_approved_meanwhile(
        self, closed, store, tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        policy = policy_of()
        with monkeypatch.context() as patched:
            patched.setattr(module, "write_words", _die)
            with pytest.raises(KeyboardInterrupt):
                discover(closed, store, tokenizer, policy, tmp_path / "w")
        approved = replace(policy, reviewed=Reviewed(epsilon=policy.epsilon))
        discover(closed, store, tokenizer, approved, tmp_path / "w", resume=True)
        assert open_discovered(tmp_path / "w")

    def test_no_file_of_a_question_tells_what_a_user_wrote_but_by_the_noisy_sum(
        self, closed, store, tokenizer: Tokenizer, tmp_path: Path
    ) -> None:
        """With a digest of the text, one who knows all others could test a guess at one user's."""
        _write_again(store, tokenizer, tmp_path / "people")
        other = PopulationStore.open(tmp_path / "people")
        assert other.digest == store.digest
        told = []
        for place, people in enumerate((store, other)):
            path = tmp_path / str(place) / "w"
            discover(replace(closed, seed=7), people, tokenizer, policy_of(), path)
            genesis = (path / "ledger.jsonl").read_bytes().splitlines()[0]
            told.append(((path / "manifest.json").read_bytes(), genesis))
        assert told[0] == told[1]

    def test_other_text_of_the_same_users_is_not_asked_with_the_same_noise(
        self, closed, store, tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with monkeypatch.context() as patched:
            patched.setattr(module, "write_words", _die)
            with pytest.raises(KeyboardInterrupt):
                discover(closed, store, tokenizer, policy_of(), tmp_path / "w")
        _write_again(store, tokenizer, store.folder.parent / "again")
        again = PopulationStore.open(store.folder.parent / "again")
        with pytest.raises(ValueError, match="what is spent stays spent"):
            discover(closed, again, tokenizer, policy_of(), tmp_path / "w", resume=True)
        assert not (tmp_path / "w" / "words.tsv").exists()

    def test_a_folder_that_is_not_empty_is_left_alone(
        self, closed, store: PopulationStore, tokenizer: Tokenizer, tmp_path: Path
    ) -> None:
        (tmp_path / "mine.txt").write_text("mine")
        with pytest.raises(ValueError, match="not empty"):
            discover(closed, store, tokenizer, policy_of(), tmp_path)
        assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def _write_again(store: PopulationStore, tokenizer: Tokenizer, folder: Path) -> None:
    """Build a store of the same users, of whom the first wrote something else."""
    rows = [{"user": f"u{user}", "text": tokenizer.words[10]} for user in range(USERS)]
    for user, row in enumerate(rows):
        words = [word for word, count in TYPED.items() if user * 7 % USERS < count]
        row["text"] = " ".join([row["text"], *words, *words[:1]] if user else ["irda", "moarvm"])
    text = folder.parent / "other.jsonl"
    text.write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = BuildOptions(store.name, fractions=(1.0, 0.0, 0.0), keep_unknown_words=True)
    build_population([Input(text)], tokenizer, folder, options)


def _die(*_: object) -> None:
    raise KeyboardInterrupt
