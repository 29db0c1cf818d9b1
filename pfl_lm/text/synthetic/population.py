"""Invented users: any number of them, at no storage, with a known entropy floor."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np

from pfl_lm.streams import stream
from pfl_lm.text.normalisation import Normalisation
from pfl_lm.text.synthetic import english
from pfl_lm.text.synthetic.english import English
from pfl_lm.text.synthetic.english_tables import english_of
from pfl_lm.text.synthetic.language import (
    FIRST_WORD,
    LOYAL,
    Language,
    cumulated,
    language_of,
)
from pfl_lm.text.synthetic.process import Trace, generate, log_probability
from pfl_lm.text.tokenizer import CONTROLS, Tokenizer

PUBLIC = "public"
Speech = Literal["invented", "english"]
_SAMPLE_MESSAGES = 100_000  # public text that the tokenizer's unigram is counted in
_MESSAGE_SPREAD = 1.0  # standard deviation of the log of messages per user
_MOST_TIMES_MEAN = 10  # nobody writes more than so many times the mean
_TOGETHER = 128  # pseudo-users of public English, who are read in turn, that are written at once
_CONSONANTS, _VOWELS, _ENDINGS = "ptkbdgmnslrvfz", "aeiou", "nrlskt"


@dataclass(frozen=True)
class SyntheticPopulation:
    """Invented users; user i of a split follows from (seed, split, i) alone.

    Args:
        users_by_split: users of ``train``, ``validation``, ``test``, and ``public``, which is
            public text of other topics and habits, cut into pseudo-users.
        vocabulary_size: V, ids of ``synthetic_tokenizer(V)``.
        tokens_per_user: mean length of a stream; lengths are heavy-tailed.
        seed: another seed, other people; the language stays.
        era: how far what people talk about has moved: 0 not at all; at 1 every topic has the
            place that its neighbour had. Public text does not follow.
        language: ``invented``, whose grammar reaches beyond neighbouring words, or ``english``,
            whose words follow one another as often as in English (``synthetic/english``).
    """

    users_by_split: Mapping[str, int] = field(
        default_factory=lambda: {"train": 10_000, "validation": 1000, "test": 1000, PUBLIC: 5000}
    )
    vocabulary_size: int = 30_000
    tokens_per_user: int = 300
    seed: int = 0
    name: str = "synthetic"
    era: float = 0.0
    language: Speech = "invented"
    _written: dict[int, list[np.ndarray]] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )  # the public streams from a user on: those read last

    def __post_init__(self) -> None:
        _speech(self.language, self.vocabulary_size)
        for split, users in self.users_by_split.items():
            if split not in ("train", "validation", "test", PUBLIC) or users < 0:
                raise ValueError(f"users_by_split: {split!r}: {users} is no split and a count")
        if self.tokens_per_user < 1:
            raise ValueError(f"tokens_per_user = {self.tokens_per_user} must be at least 1")
        if not 0 <= self.era < float("inf"):
            raise ValueError(f"era = {self.era} must not be negative")

    @property
    def tokenizer_digest(self) -> str:
        """Digest of ``synthetic_tokenizer(vocabulary_size, language)``."""
        return synthetic_tokenizer(self.vocabulary_size, self.language).digest

    def users(self, split: str) -> int:
        """Return how many users ``split`` has."""
        if split not in self.users_by_split:
            raise ValueError(
                f"split = {split!r}; this population has {', '.join(self.users_by_split)}"
            )
        return self.users_by_split[split]

    def tokens(self, split: str, user: int) -> np.ndarray:
        """Return int32[n], user's stream; IndexError beyond the last user."""
        self._check(split, user)
        if split != PUBLIC or self.language != "english":
            return np.asarray(self._trace(split, user).tokens)
        first = user - user % _TOGETHER
        together = self._written.get(first)
        if together is None:
            together = self._public_english(first)
            self._written.clear()
            self._written[first] = together
        return together[user - first].copy()

    def _public_english(self, first: int) -> list[np.ndarray]:
        """Return ``_TOGETHER`` public streams, the same as one by one, in a fifth of the time."""
        last = min(first + _TOGETHER, self.users(PUBLIC))
        people = [self._person(PUBLIC, user) for user in range(first, last)]
        messages = np.array([len(about) for _, about, _ in people])
        drawn = [english.drawn_for(random, len(about)) for random, about, _ in people]
        text = english.write(
            english_of(self.vocabulary_size),
            np.concatenate(drawn, axis=2),
            np.concatenate([about for _, about, _ in people]),
            np.repeat([habit for *_, habit in people], messages),
            private=False,
        )
        ends = np.cumsum(text.lengths)[np.cumsum(messages) - 1]
        return np.split(text.tokens, ends[:-1])

    def groups(self, split: str, users: np.ndarray) -> np.ndarray:
        """Return what each user likes to talk about, float64[n] in [0, 1): its place among topics.

        Spread within a topic by chance, so that the numbers are uniform over all users.
        """
        places = np.empty(len(users))
        topics, _ = _priors(_speech(self.language, self.vocabulary_size), split, 0.0)
        edges = np.concatenate([[0.0], cumulated(topics)])
        for place, user in enumerate(users.tolist()):
            random = stream(self.seed, "synthetic", split, user)
            random.lognormal(-(_MESSAGE_SPREAD**2) / 2, _MESSAGE_SPREAD)
            favourite, *_ = _draw(topics, random.random(1))
            width = edges[favourite + 1] - edges[favourite]
            places[place] = edges[favourite] + random.random() * width
        return np.minimum(places, np.nextafter(1.0, 0.0))

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

    def _read(self, split: str, trace: Any) -> np.ndarray:
        language = _speech(self.language, self.vocabulary_size)
        topics, habits = _priors(language, split, self.era)
        if isinstance(language, English):
            return english.log_probability(language, trace, topics, habits, split != PUBLIC)
        return log_probability(language, trace, topics, habits)

    def _check(self, split: str, user: int) -> None:
        if not 0 <= user < self.users(split):
            raise IndexError(f"user {user}: {split} has {self.users(split)} users")

    def _trace(self, split: str, user: int) -> Any:
        self._check(split, user)
        language = _speech(self.language, self.vocabulary_size)
        return _write(language, *self._person(split, user), split != PUBLIC)

    def _person(self, split: str, user: int) -> tuple[np.random.Generator, np.ndarray, int]:
        """Return what a user draws from next, the topic of each message (M,), and the habit."""
        language = _speech(self.language, self.vocabulary_size)
        topics, habits = _priors(language, split, self.era)
        random = stream(self.seed, "synthetic", split, user)
        mean = self.tokens_per_user / language.tokens_per_message
        spread = random.lognormal(-(_MESSAGE_SPREAD**2) / 2, _MESSAGE_SPREAD)
        messages = max(1, round(mean * min(spread, _MOST_TIMES_MEAN)))
        drawn = random.random(2 + 2 * messages)
        favourite, *_ = _draw(topics, drawn[:1])
        habit = _draw(habits, drawn[1:2])
        wandering = _draw(topics, drawn[2 : 2 + messages])
        about = np.where(drawn[2 + messages :] < LOYAL, favourite, wandering)
        return random, about, int(habit[0])


def _speech(language: Speech, vocabulary_size: int) -> Language | English:
    return english_of(vocabulary_size) if language == "english" else language_of(vocabulary_size)


def _write(
    language: Language | English,
    random: np.random.Generator,
    topics: np.ndarray,
    habit: np.ndarray | int,
    private: bool,
) -> Trace | english.Text:
    if isinstance(language, English):
        drawn = english.drawn_for(random, len(topics))
        return english.write(language, drawn, topics, habit, private)
    return generate(language, random, topics, habit)


def _priors(language: Language | English, split: str, era: float) -> tuple[np.ndarray, np.ndarray]:
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


def synthetic_tokenizer(vocabulary_size: int, language: Speech = "invented") -> Tokenizer:
    """Return the tokenizer of invented users, in memory; its ``save`` writes a folder.

    The public unigram is counted in a sample of public text.
    """
    return _tokenizer_of(vocabulary_size, language)


@lru_cache(maxsize=4)
def _tokenizer_of(vocabulary_size: int, language: Speech) -> Tokenizer:
    from pfl_lm.text.tokenizer_assemble import assemble

    speech = _speech(language, vocabulary_size)
    random = stream(0, "synthetic tokenizer", vocabulary_size)
    topics = random.choice(speech.topics, _SAMPLE_MESSAGES, p=speech.public_topics)
    habits = random.choice(len(speech.public_habits), _SAMPLE_MESSAGES, p=speech.public_habits)
    sample = _write(speech, random, topics, habits, private=False).tokens
    counts = np.bincount(sample, minlength=vocabulary_size)
    count = vocabulary_size - FIRST_WORD
    words = speech.words if isinstance(speech, English) else synthetic_words(count)
    names, kinds = [*CONTROLS, *words], ["control"] * FIRST_WORD + ["word"] * count
    rows = list(zip(names, kinds, counts.tolist(), strict=True))
    about = _ABOUT[language] | {"source": {"kind": "synthetic"}}
    return assemble(rows, Normalisation(numbers="keep", placeholders=()), about)


_ABOUT: dict[str, dict[str, Any]] = {
    "invented": {
        "locale": "art",
        "provenance": "invented by pfl_lm.text.synthetic.population",
        "licence": "Apache-2.0",
    },
    "english": {
        "locale": "en",
        "provenance": "words of wordfreq, in text that pfl_lm.text.synthetic.english draws from "
        "the bigrams of symspellpy",
        "licence": "CC-BY-SA-4.0 (wordfreq's data), MIT (symspellpy)",
    },
}


def synthetic_words(count: int) -> list[str]:
    """Return ``count`` different pronounceable words, short ones first."""
    open_syllables = [c + v for c in _CONSONANTS for v in _VOWELS]
    closed = open_syllables + [s + e for s in open_syllables for e in _ENDINGS]
    random = stream(0, "synthetic words")
    words: list[str] = []
    for syllables in itertools.count():
        heads = itertools.product(open_syllables, repeat=syllables)
        words_of_length = ["".join(head) + tail for head in heads for tail in closed]
        random.shuffle(words_of_length)
        words += words_of_length[: count - len(words)]
        if len(words) == count:
            return words
    raise AssertionError


def write_public_store(population: SyntheticPopulation, destination: Path) -> None:
    """Write the public pseudo-users as a store, the text that ``pfl-lm pretrain`` takes."""
    from pfl_lm.files import folder_atomically
    from pfl_lm.text.population_write import StoreWriter, token_dtype

    tokenizer = synthetic_tokenizer(population.vocabulary_size, population.language)
    dtype = token_dtype(tokenizer.vocabulary_size).numpy
    with folder_atomically(destination) as folder:
        with StoreWriter(folder, tokenizer) as writer:
            for user in range(population.users(PUBLIC)):
                stream_of_user = population.tokens(PUBLIC, user).astype(dtype)
                ends = np.flatnonzero(stream_of_user == Tokenizer.eos_id) + 1
                messages = np.split(stream_of_user, ends[:-1])
                writer.add_public([message.tobytes() for message in messages])
        writer.finish("synthetic public text", {"inputs": []})
