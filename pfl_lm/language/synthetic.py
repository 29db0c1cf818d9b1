"""Invented users: any number of them, at no storage, with a known entropy floor."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from pfl_lm.language.normalisation import Normalisation
from pfl_lm.language.synthetic_language import (
    FIRST_WORD,
    LOYAL,
    Language,
    cumulated,
    language_of,
)
from pfl_lm.language.synthetic_process import Trace, generate, log_probability
from pfl_lm.language.tokenizer import CONTROLS, Tokenizer
from pfl_lm.streams import stream

PUBLIC = "public"
_SAMPLE_MESSAGES = 100_000  # public text that the tokenizer's unigram is counted in
_MESSAGE_SPREAD = 1.0  # standard deviation of the log of messages per user
_MOST_TIMES_MEAN = 10  # nobody writes more than so many times the mean
_CONSONANTS, _VOWELS, _ENDINGS = "ptkbdgmnslrvfz", "aeiou", "nrlskt"


@dataclass(frozen=True)
class SyntheticPopulation:
    """Users of an invented language; user i of a split follows from (seed, split, i) alone.

    Args:
        users_by_split: users of ``train``, ``validation``, ``test``, and ``public``, which is
            public text of other topics and habits, cut into pseudo-users.
        vocabulary_size: V, ids of ``synthetic_tokenizer(V)``.
        tokens_per_user: mean length of a stream; lengths are heavy-tailed.
        seed: another seed, other people; the language stays.
        era: how far what people talk about has moved: 0 not at all; at 1 every topic has the
            place that its neighbour had. Public text does not follow.
    """

    users_by_split: Mapping[str, int] = field(
        default_factory=lambda: {"train": 10_000, "validation": 1000, "test": 1000, PUBLIC: 5000}
    )
    vocabulary_size: int = 30_000
    tokens_per_user: int = 300
    seed: int = 0
    name: str = "synthetic"
    era: float = 0.0

    def __post_init__(self) -> None:
        language_of(self.vocabulary_size)
        for split, users in self.users_by_split.items():
            if split not in ("train", "validation", "test", PUBLIC) or users < 0:
                raise ValueError(f"users_by_split: {split!r}: {users} is no split and a count")
        if self.tokens_per_user < 1:
            raise ValueError(f"tokens_per_user = {self.tokens_per_user} must be at least 1")
        if not 0 <= self.era < float("inf"):
            raise ValueError(f"era = {self.era} must not be negative")

    @property
    def tokenizer_digest(self) -> str:
        """Digest of ``synthetic_tokenizer(vocabulary_size)``."""
        return synthetic_tokenizer(self.vocabulary_size).digest

    def users(self, split: str) -> int:
        """Return how many users ``split`` has."""
        if split not in self.users_by_split:
            raise ValueError(
                f"split = {split!r}; this population has {', '.join(self.users_by_split)}"
            )
        return self.users_by_split[split]

    def tokens(self, split: str, user: int) -> np.ndarray:
        """Return int32[n], user's stream; IndexError beyond the last user."""
        return self._trace(split, user).tokens

    def groups(self, split: str, users: np.ndarray) -> np.ndarray:
        """Return what each user likes to talk about, float64[n] in [0, 1): its place among topics.

        Spread within a topic by chance, so that the numbers are uniform over all users.
        """
        found = np.empty(len(users))
        topics, _ = _priors(language_of(self.vocabulary_size), split, 0.0)
        edges = np.concatenate([[0.0], cumulated(topics)])
        for place, user in enumerate(users.tolist()):
            random = stream(self.seed, "synthetic", split, user)
            random.lognormal(-(_MESSAGE_SPREAD**2) / 2, _MESSAGE_SPREAD)
            favourite, *_ = _draw(topics, random.random(1))
            width = edges[favourite + 1] - edges[favourite]
            found[place] = edges[favourite] + random.random() * width
        return np.minimum(found, np.nextafter(1.0, 0.0))

    def log_probability(self, split: str, user: int) -> np.ndarray:
        """Return float64[n], log P(token | the stream before it) under the true process.

        Nothing that reads the stream from its start predicts better on average. ``<s>`` is
        certain and costs 0. The reader knows the language and how users of this kind of split
        are distributed, not who the user is.
        """
        return self._read(split, self._trace(split, user))

    def entropy_floor(self, split: str, users: int = 100) -> float:
        """Return nats per token, ``<s>`` not counted, over the first ``users`` of a split."""
        total, count = 0.0, 0
        for user in range(min(users, self.users(split))):
            trace = self._trace(split, user)
            total -= float(self._read(split, trace).sum())
            count += int((trace.tokens != Tokenizer.bos_id).sum())
        return total / count

    def public_text(self) -> np.ndarray:
        """Return int32[n], the streams of all public pseudo-users, one after another."""
        everyone = range(self.users(PUBLIC))
        return np.concatenate([self.tokens(PUBLIC, user) for user in everyone])

    def _read(self, split: str, trace: Trace) -> np.ndarray:
        language = language_of(self.vocabulary_size)
        return log_probability(language, trace, *_priors(language, split, self.era))

    def _trace(self, split: str, user: int) -> Trace:
        if not 0 <= user < self.users(split):
            raise IndexError(f"user {user}: {split} has {self.users(split)} users")
        language = language_of(self.vocabulary_size)
        topics, habits = _priors(language, split, self.era)
        random = stream(self.seed, "synthetic", split, user)
        mean = self.tokens_per_user / language.tokens_per_message
        spread = random.lognormal(-(_MESSAGE_SPREAD**2) / 2, _MESSAGE_SPREAD)
        messages = max(1, round(mean * min(spread, _MOST_TIMES_MEAN)))
        drawn = random.random(2 + 2 * messages)
        favourite, *_ = _draw(topics, drawn[:1])
        habit, *_ = _draw(habits, drawn[1:2])
        wandering = _draw(topics, drawn[2 : 2 + messages])
        about = np.where(drawn[2 + messages :] < LOYAL, favourite, wandering)
        return generate(language, random, about, habit)


def _priors(language: Language, split: str, era: float) -> tuple[np.ndarray, np.ndarray]:
    """Return the shares of topics and of habits among the users of a split."""
    if split == PUBLIC:
        return language.public_topics, language.public_habits
    topics = language.private_topics
    if era > 0:
        places, part = divmod(era, 1.0)
        moved = np.roll(topics, int(places))
        topics = (1 - part) * moved + part * np.roll(moved, 1)
    return topics, language.private_habits


def _draw(shares: np.ndarray, uniform: np.ndarray) -> np.ndarray:
    return np.searchsorted(cumulated(shares), uniform, side="right")


@lru_cache(maxsize=4)
def synthetic_tokenizer(vocabulary_size: int) -> Tokenizer:
    """Return the tokenizer of the invented language, in memory; its ``save`` writes a folder.

    The public unigram is counted in a sample of public text.
    """
    from pfl_lm.language.tokenizer_build import assemble

    language = language_of(vocabulary_size)
    random = stream(0, "synthetic tokenizer", vocabulary_size)
    topics = random.choice(language.topics, _SAMPLE_MESSAGES, p=language.public_topics)
    habits = random.choice(len(language.public_habits), _SAMPLE_MESSAGES, p=language.public_habits)
    sample = generate(language, random, topics, habits).tokens
    counts = np.bincount(sample, minlength=vocabulary_size)
    names = [*CONTROLS, *synthetic_words(vocabulary_size - FIRST_WORD)]
    kinds = ["control"] * FIRST_WORD + ["word"] * (vocabulary_size - FIRST_WORD)
    about: dict[str, Any] = {
        "locale": "art",
        "provenance": "invented by pfl_lm.language.synthetic",
        "licence": "Apache-2.0",
        "source": {"kind": "synthetic"},
    }
    rows = list(zip(names, kinds, counts.tolist(), strict=True))
    return assemble(rows, Normalisation(numbers="keep", placeholders=()), about)


def synthetic_words(count: int) -> list[str]:
    """Return ``count`` different pronounceable words, short ones first."""
    open_syllables = [c + v for c in _CONSONANTS for v in _VOWELS]
    closed = open_syllables + [s + e for s in open_syllables for e in _ENDINGS]
    random = stream(0, "synthetic words")
    words: list[str] = []
    for syllables in itertools.count():
        heads = itertools.product(open_syllables, repeat=syllables)
        found = ["".join(head) + tail for head in heads for tail in closed]
        random.shuffle(found)
        words += found[: count - len(words)]
        if len(words) == count:
            return words
    raise AssertionError


def write_public_store(population: SyntheticPopulation, destination: Path) -> None:
    """Write the public pseudo-users as a store, the text that ``pfl-lm pretrain`` takes."""
    from pfl_lm.files import folder_atomically
    from pfl_lm.language.population_write import StoreWriter, token_dtype

    tokenizer = synthetic_tokenizer(population.vocabulary_size)
    dtype = token_dtype(tokenizer.vocabulary_size).numpy
    with folder_atomically(destination) as folder:
        with StoreWriter(folder, tokenizer) as writer:
            for user in range(population.users(PUBLIC)):
                stream_of_user = population.tokens(PUBLIC, user).astype(dtype)
                ends = np.flatnonzero(stream_of_user == Tokenizer.eos_id) + 1
                messages = np.split(stream_of_user, ends[:-1])
                writer.add_public([message.tobytes() for message in messages])
        writer.finish("synthetic public text", {"inputs": []})
