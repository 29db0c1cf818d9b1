"""Invented users: reproducible alone, cheap at any number, and with exact probabilities."""

from __future__ import annotations

import itertools
import time
import tracemalloc

import numpy as np
import pytest

from pfl_lm.text.population import PopulationStore
from pfl_lm.text.synthetic import language as tables
from pfl_lm.text.synthetic import population
from pfl_lm.text.synthetic.language import Language, language_of
from pfl_lm.text.synthetic.population import (
    PUBLIC,
    SyntheticPopulation,
    synthetic_tokenizer,
    synthetic_words,
    write_public_store,
)

SMALL = 420


@pytest.fixture(scope="module")
def small() -> SyntheticPopulation:
    return SyntheticPopulation(
        {"train": 400, "validation": 50, "test": 50, PUBLIC: 400}, SMALL, tokens_per_user=60
    )


class TestUsers:
    def test_a_user_follows_from_seed_split_and_number_alone(
        self, small: SyntheticPopulation
    ) -> None:
        direct = SyntheticPopulation(small.users_by_split, SMALL, 60).tokens("train", 17)
        for user in (3, 17, 4):
            last = small.tokens("train", user)
            if user == 17:
                assert (last == direct).all()
        more = SyntheticPopulation({"train": 10**8}, SMALL, 60)
        assert (more.tokens("train", 17) == direct).all()

    def test_users_splits_and_seeds_differ(self, small: SyntheticPopulation) -> None:
        other = SyntheticPopulation(small.users_by_split, SMALL, 60, seed=1)
        texts = [small.tokens("train", 1), small.tokens("train", 2), small.tokens("test", 1)]
        texts.append(other.tokens("train", 1))
        assert len({text.tobytes() for text in texts}) == 4

    def test_streams_are_messages_between_their_marks(self, small: SyntheticPopulation) -> None:
        tokens = small.tokens("train", 5)
        assert tokens.dtype == np.int32
        assert tokens[0] == 2
        assert tokens[-1] == 3
        assert (tokens[1:][tokens[:-1] == 3] == 2).all()
        assert ((tokens == 2).sum(), 0) == ((tokens == 3).sum(), (tokens < 2).sum())
        assert tokens.max() < SMALL

    def test_lengths_have_the_stated_mean_and_a_heavy_tail(self) -> None:
        people = SyntheticPopulation()
        lengths = [len(people.tokens("train", user)) for user in range(1500)]
        assert np.mean(lengths) == pytest.approx(300, rel=0.12)
        assert np.quantile(lengths, 0.99) > 5 * np.median(lengths)

    def test_the_vocabulary_is_large_and_heavy_tailed(self) -> None:
        people = SyntheticPopulation()
        text = np.concatenate([people.tokens("train", user) for user in range(700)])
        counts = np.sort(np.bincount(text, minlength=30_000))[::-1]
        assert (counts > 0).sum() > 7000
        assert counts[:200].sum() > 0.5 * counts.sum()
        assert (counts == 1).sum() > 1000

    def test_a_user_of_300_tokens_takes_about_a_millisecond(self) -> None:
        people = SyntheticPopulation()
        people.tokens("train", 0)
        began = time.process_time()
        for user in range(300):
            people.tokens("train", user)
        assert (time.process_time() - began) / 300 < 0.004  # 0.4 ms on a quiet core

    def test_memory_does_not_depend_on_the_number_of_users(self) -> None:
        language_of(30_000)
        peaks = []
        for users in (10**4, 10**8):
            tracemalloc.start()
            people = SyntheticPopulation({"train": users})
            for user in np.linspace(0, users - 1, 50).astype(int):
                people.tokens("train", int(user))
            peaks.append(tracemalloc.get_traced_memory()[1])
            tracemalloc.stop()
        assert max(peaks) < 4 << 20

    @pytest.mark.parametrize("user", [-1, 400])
    def test_a_user_beyond_the_last_is_an_error(
        self, small: SyntheticPopulation, user: int
    ) -> None:
        with pytest.raises(IndexError, match="train has 400 users"):
            small.tokens("train", user)

    def test_impossible_populations_are_refused(self, small: SyntheticPopulation) -> None:
        with pytest.raises(ValueError, match="this population has train"):
            small.users("dev")
        with pytest.raises(ValueError, match="no split"):
            SyntheticPopulation({"dev": 3})
        with pytest.raises(ValueError, match="at least 200"):
            SyntheticPopulation(vocabulary_size=100)
        with pytest.raises(ValueError, match="tokens_per_user"):
            SyntheticPopulation(tokens_per_user=0)


class Reader:
    """The process written a second time: step by step, over every cause a reader cannot see.

    Weights over (habit, favourite topic, topic of this message) are kept for a prefix, and the
    next token's distribution is their mixture. Nothing but the tables is shared with the package.
    """

    def __init__(self, language: Language, split: str) -> None:
        self.l = language
        public = split == PUBLIC
        self.topics = language.public_topics if public else language.private_topics
        self.habits = language.public_habits if public else language.private_habits
        k = len(self.topics)
        self.wish = tables.LOYAL * np.eye(k) + (1 - tables.LOYAL) * self.topics[None, :]
        self.weights = np.einsum("h,f,fz->hfz", self.habits, self.topics, self.wish)
        self.clause, self.template, self.slot = -1, -1, 0
        self.expect = "start"
        self.first: tuple[int, int] | None = None

    def lexeme(self, lexeme: int, habit: int) -> np.ndarray:
        share = np.full(tables.VARIANTS, (1 - tables.KEEP_HABIT) / tables.VARIANTS)
        share[self.l.forms[habit, lexeme]] += tables.KEEP_HABIT
        row = np.zeros(self.l.vocabulary_size)
        at = 4 + lexeme * tables.VARIANTS
        row[at : at + tables.VARIANTS] = share
        return row

    def content(self, rank: int, chosen: int, cls: int) -> int:
        return self.l.first_content + (rank * tables.CLASSES + cls) * (self.l.topics + 1) + chosen

    def distribution(self, habit: int, topic: int) -> np.ndarray:
        row = np.zeros(self.l.vocabulary_size)
        if self.expect == "start":
            row[2] = 1.0
            return row
        if self.expect == "opener":
            go_on = 1.0
            if self.clause >= 0:
                go_on = tables.GO_ON if self.clause < tables.MOST_CLAUSES - 1 else 0.0
                row[3] = 1 - go_on
            shares = self.l.opening if self.clause < 0 else self.l.following[self.template]
            for template, share in enumerate(shares):
                row += go_on * share * self.lexeme(template, habit)
            return row
        kind, value = self.kind_and_value()
        if kind in (tables.LEXEME, tables.AGREEING):
            shift = self.first[0] % tables.GENDERS if kind == tables.AGREEING else 0  # type: ignore[index]
            return self.lexeme(value + shift, habit)
        k = self.l.topics
        for chosen in range(k + 1):
            if chosen == k:
                share = tables.GENERAL
            else:
                share = tables.TOPICAL * (chosen == topic)
                share += (1 - tables.TOPICAL - tables.GENERAL) / k
            for rank, of_rank in enumerate(self.l.ranks):
                row[self.content(rank, chosen, value)] += share * of_rank
        if kind == tables.PARTNER:
            row *= 1 - tables.PARTNERED
            row[self.content(*self.first, value)] += tables.PARTNERED  # type: ignore[misc]
        return row

    def kind_and_value(self) -> tuple[int, int]:
        return (
            int(self.l.kinds[self.template, self.slot]),
            int(self.l.values[self.template, self.slot]),
        )

    def read(self, token: int) -> np.ndarray:
        """Return the distribution of the next token, then take ``token`` as having come."""
        rows = {
            (h, z): self.distribution(h, z)
            for h in range(len(self.habits))
            for z in range(len(self.topics))
        }
        mixed = sum(self.weights[h, :, z].sum() * row for (h, z), row in rows.items())
        for (h, z), row in rows.items():
            self.weights[h, :, z] *= row[token]
        self.weights /= self.weights.sum()
        self.move(token)
        return mixed  # type: ignore[return-value]

    def move(self, token: int) -> None:
        if self.expect == "start":
            self.clause, self.expect = -1, "opener"
            return
        if token == 3:
            self.weights = np.einsum("hf,fz->hfz", self.weights.sum(2), self.wish)
            self.expect = "start"
            return
        if self.expect == "opener":
            self.clause, self.first = self.clause + 1, None
            self.template, self.slot, self.expect = (token - 4) // tables.VARIANTS, 0, "slot"
        elif self.kind_and_value()[0] == tables.CONTENT:
            place = (token - self.l.first_content) // (self.l.topics + 1)
            chosen = (token - self.l.first_content) % (self.l.topics + 1)
            self.first = (place // tables.CLASSES, chosen)
        self.slot += 1
        if self.slot == tables.SLOTS or self.l.kinds[self.template, self.slot] == tables.END:
            self.expect = "opener"


class TestProbability:
    @pytest.mark.parametrize("split", ["train", PUBLIC])
    @pytest.mark.parametrize("user", [0, 1])
    def test_it_is_that_of_a_step_by_step_reader(
        self, small: SyntheticPopulation, split: str, user: int
    ) -> None:
        tokens = small.tokens(split, user)[:70]
        found = small.log_probability(split, user)[:70]
        reader = Reader(language_of(SMALL), split)
        for token, log_probability in zip(tokens, found, strict=True):
            row = reader.read(int(token))
            assert row.sum() == pytest.approx(1, abs=1e-9)
            assert log_probability == pytest.approx(np.log(row[token]), abs=1e-8)

    def test_every_token_has_a_finite_one(self, small: SyntheticPopulation) -> None:
        for split, user in itertools.product(("train", PUBLIC), range(100)):
            found = small.log_probability(split, user)
            assert found.shape == small.tokens(split, user).shape
            assert np.isfinite(found).all()
            assert (found <= 1e-12).all()
            assert (found[small.tokens(split, user) == 2] == 0).all()

    def test_a_user_without_content_words_has_one_too(self) -> None:
        short = SyntheticPopulation({"train": 3000}, SMALL, tokens_per_user=1)
        first = language_of(SMALL).first_content
        users = (user for user in range(3000) if short.tokens("train", user).max() < first)
        assert np.isfinite(short.log_probability("train", next(users))).all()

    def test_no_count_based_model_goes_below_the_floor(self) -> None:
        people = SyntheticPopulation({"train": 600, "test": 60, PUBLIC: 600}, 2000)
        floor = people.entropy_floor("test", 60)
        test = np.concatenate([people.tokens("test", user) for user in range(60)])
        train = np.concatenate([people.tokens("train", user) for user in range(600)])
        public = people.public_text()
        unigram, bigram = cross_entropies(train, test)
        public_unigram, public_bigram = cross_entropies(public, test)
        assert floor + 1 < bigram < unigram - 1  # structure beyond unigrams, and beyond bigrams
        assert public_unigram > unigram + 0.3  # private people talk differently
        assert public_bigram > bigram + 0.3


def cross_entropies(train: np.ndarray, test: np.ndarray) -> tuple[float, float]:
    """Nats per token, ``<s>`` not counted, of a unigram and of a bigram backed off to it."""
    size = 2000
    unigram = np.bincount(train, minlength=size) + 0.5
    unigram /= unigram.sum()
    pairs = np.zeros((size, size))
    np.add.at(pairs, (train[:-1], train[1:]), 1.0)
    kinds = np.maximum((pairs > 0).sum(axis=1, keepdims=True), 1)
    bigram = (pairs + kinds * unigram) / (pairs.sum(axis=1, keepdims=True) + kinds)
    scored = test[1:] != 2
    bigram_loss = -np.log(bigram[test[:-1], test[1:]][scored]).mean()
    return float(-np.log(unigram[test[1:]][scored]).mean()), float(bigram_loss)


class TestTokenizer:
    def test_it_knows_every_word_and_gives_it_back(self, small: SyntheticPopulation) -> None:
        tokenizer = synthetic_tokenizer(SMALL)
        assert tokenizer.vocabulary_size == SMALL
        assert len(set(tokenizer.words)) == SMALL
        tokens = small.tokens("train", 1)
        words = tokens[tokens > 3]
        assert tokenizer.encode(tokenizer.decode(tokens)) == words.tolist()

    def test_the_unigram_is_that_of_public_text(self, small: SyntheticPopulation) -> None:
        tokenizer = synthetic_tokenizer(SMALL)
        counted = np.bincount(small.public_text(), minlength=SMALL)
        counted = counted / counted.sum()
        assert np.abs(counted - tokenizer.unigram).sum() < 0.12
        assert tokenizer.unigram.min() > 0

    def test_the_digest_is_stable(self, small: SyntheticPopulation) -> None:
        digest = synthetic_tokenizer(SMALL).digest
        population._tokenizer_of.cache_clear()
        assert synthetic_tokenizer(SMALL).digest == digest == small.tokenizer_digest

    def test_words_are_different_and_short_ones_come_first(self) -> None:
        words = synthetic_words(60_000)
        assert len(set(words)) == 60_000
        assert all(word.isalpha() and word.isascii() for word in words)
        assert np.mean([len(w) for w in words[:300]]) < np.mean([len(w) for w in words[-300:]]) - 2


def test_public_text_becomes_a_store(small: SyntheticPopulation, tmp_path) -> None:  # type: ignore[no-untyped-def]
    write_public_store(small, tmp_path / "p")
    store = PopulationStore.open(tmp_path / "p")
    assert (store.stream("train") == small.public_text()).all()
    assert store.tokenizer_digest == small.tokenizer_digest
    assert store.users("train") == small.users(PUBLIC)
