"""English as chance writes it: word by word from bigram counts, with topics, habits and a register.

A message opens with one of a few words. After that,

* a word follows the one before as often as in a bigram table of web text;
* after some words ("my", "some", "good") the message may name what it is about;
* now and then it takes any word at all, as often as in English;
* people spell some words each in their own way ("you", "u", "ya");
* people who write to friends use other words than web pages do, and so private text weighs the
  bigrams by how much commoner a word is in wordfreq, which counts subtitles and conversations too.

No sentence means anything. What the keyboard learns is which English word likely comes next. As a
spelling belongs to one word, the probability of a text follows exactly by filtering over the two
things a reader cannot see: habit and topic.

Legend of shapes: M messages, W words of a message, N words of the chain, S successors, K topics,
H habits, F spellings, n tokens.

Source: bigrams, the table that symspellpy ships (MIT); words and their frequencies, wordfreq's
English list (Speer 2022).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache
from importlib.resources import files
from typing import NamedTuple

import numpy as np

from pfl_lm.streams import stream
from pfl_lm.text.synthetic import english_words as lists
from pfl_lm.text.synthetic.language import BOS_ID, EOS_ID, FIRST_WORD, HABITS, KEEP_HABIT, cumulated
from pfl_lm.text.synthetic.process import read_spellings, read_topics

LEAST_WORDS = 1000  # of a vocabulary: below, most successors would be missing
MOST_IN_A_MESSAGE = 20
SUCCESSORS = 32
CHAIN = 20_000  # words that messages are made of, at most
ANY = 0.03  # chance that the next word is any word
NAMED = 0.45  # chance that a message names what it is about, where it can
# In private, a bigram weighs more by how much commoner its second word is in wordfreq than on the
# web: by that ratio, bounded, to this power.
CONVERSATION, BOUNDS = 1.6, (0.1, 3.0)
_TABLE = "frequency_bigramdictionary_en_243_342.txt"


class Text(NamedTuple):
    """A text in tokens, int32[n]."""

    tokens: np.ndarray


@dataclass(frozen=True, eq=False)
class English:
    """The tables of the process; they depend on the vocabulary's size alone.

    Attributes:
        words: surface form by id, controls left out.
        first_id: int (N,), the id of a word of the chain in its public spelling.
        lexeme: int (N,), its row among the spellings; −1: it has one spelling.
        spelled: int (lexemes, F), ids.
        opening: float64 (N,).
        successors: int (N, S); ``following``: float64 (2, N, S), on the web and among friends.
        ending: float64 (N,), chance that a message ends after a word.
        naming: float64 (N,), chance that what follows, if anything, is a word of the topic.
        common: float64 (N,), the share of each word in English.
        topic_words: int (K, R), words of the chain; ``ranks``: float64 (R,), their shares.
        forms: int (H, lexemes), the usual spelling of each habit.
    """

    words: tuple[str, ...]
    first_id: np.ndarray
    lexeme: np.ndarray
    spelled: np.ndarray
    opening: np.ndarray
    successors: np.ndarray
    following: np.ndarray
    ending: np.ndarray
    naming: np.ndarray
    common: np.ndarray
    topic_words: np.ndarray
    ranks: np.ndarray
    forms: np.ndarray
    public_topics: np.ndarray
    private_topics: np.ndarray
    public_habits: np.ndarray
    private_habits: np.ndarray

    @property
    def topics(self) -> int:
        """K."""
        return len(self.public_topics)

    @cached_property
    def cumulated(self) -> dict[str, np.ndarray]:
        """Cumulative shares, to draw from by their inverse."""
        names = ("opening", "following", "ranks", "common")
        return {name: cumulated(getattr(self, name)) for name in names}

    @cached_property
    def of_id(self) -> np.ndarray:
        """The word of the chain that each id spells, int (V,); −1: none."""
        places = np.full(FIRST_WORD + len(self.words), -1)
        places[self.first_id] = np.arange(len(self.first_id))
        spelled = np.flatnonzero(self.lexeme >= 0)
        for form in self.spelled.T:
            places[form[self.lexeme[spelled]]] = spelled
        return places

    @cached_property
    def in_topic(self) -> np.ndarray:
        """P(word | it names the topic), float64 (K, N)."""
        shares = np.zeros((self.topics, len(self.first_id)))
        for topic, words in enumerate(self.topic_words):
            np.add.at(shares[topic], words, self.ranks)
        return shares

    @cached_property
    def tokens_per_message(self) -> float:
        """Roughly how many tokens a message has, ``<s>`` and ``</s>`` included."""
        random = stream(0, "english message length")
        topics = random.integers(self.topics, size=2000)
        return len(write(self, random, topics, 0, private=True).tokens) / len(topics)


def write(
    language: English,
    random: np.random.Generator,
    topics: np.ndarray,
    habit: np.ndarray | int,
    private: bool,
) -> Text:
    """Write one message per entry of ``topics`` (M,), by a user, or users, of ``habit``."""
    messages = len(topics)
    drawn = random.random((MOST_IN_A_MESSAGE, 5, messages))
    words = np.full((messages, MOST_IN_A_MESSAGE), -1)
    words[:, 0] = np.searchsorted(language.cumulated["opening"], drawn[0, 0], side="right")
    following = language.cumulated["following"][int(private)]
    going = np.arange(messages)
    for place in range(1, MOST_IN_A_MESSAGE):
        before = words[going, place - 1]
        on = drawn[place, 0, going] >= language.ending[before]
        going, before = going[on], before[on]
        uniform = drawn[place][:, going]
        nth = (following[before] <= uniform[1][:, None]).sum(axis=1)
        rank = np.searchsorted(language.cumulated["ranks"], uniform[2], side="right")
        anything = np.searchsorted(language.cumulated["common"], uniform[2], side="right")
        named = uniform[3] < ANY + (1 - ANY) * language.naming[before]
        topical = language.topic_words[topics[going], rank]
        words[going, place] = np.where(named, topical, language.successors[before, nth])
        words[going, place] = np.where(uniform[3] < ANY, anything, words[going, place])
    ids = _spell(language, words, np.broadcast_to(habit, messages), drawn[:, 4].T)
    keep = np.concatenate(
        [np.ones((messages, 1), bool), words >= 0, np.ones((messages, 1), bool)], 1
    )
    edge = np.ones((messages, 1), dtype=np.int64)
    return Text(np.concatenate([BOS_ID * edge, ids, EOS_ID * edge], 1)[keep].astype(np.int32))


def _spell(
    language: English, words: np.ndarray, habit: np.ndarray, uniform: np.ndarray
) -> np.ndarray:
    """Return the ids of words (M, W) as users of ``habit`` (M,) spell them."""
    lexeme = language.lexeme[words]
    spellings = language.spelled.shape[1]
    unusual = ((uniform - KEEP_HABIT) / (1 - KEEP_HABIT) * spellings).astype(np.intp)
    form = np.where(uniform < KEEP_HABIT, language.forms[habit[:, None], lexeme], unusual)
    return np.where(lexeme >= 0, language.spelled[lexeme, form], language.first_id[words])


def log_probability(
    language: English, text: Text, topics: np.ndarray, habits: np.ndarray, private: bool
) -> np.ndarray:
    """Return float64[n]: log P(token | all tokens before it), habit and topic being unknown.

    Args:
        topics, habits: what the reader knows of users: prior (K,) and (H,).
    """
    tokens = text.tokens
    result = np.zeros(len(tokens))
    starts = tokens == BOS_ID
    message = np.cumsum(starts) - 1
    written = np.arange(len(tokens)) - np.flatnonzero(starts)[message] - 1  # words before this one
    word = language.of_id[tokens]
    first, ends = written == 0, tokens == EOS_ID
    result[first] = np.log(language.opening[word[first]])
    before = np.roll(word, 1)
    full = written == MOST_IN_A_MESSAGE
    with np.errstate(divide="ignore"):
        result[ends] = np.where(full[ends], 0.0, np.log(language.ending[before[ends]]))
    middle = (word >= 0) & ~first
    likely = _likelihood(language, before[middle], word[middle], private)  # (K, n)
    result[middle] = read_topics(np.log(likely), message[middle], topics)
    spelled = np.flatnonzero((word >= 0) & (language.lexeme[word] >= 0))
    rows = language.lexeme[word[spelled]]
    form = (language.spelled[rows] == tokens[spelled][:, None]).argmax(axis=1)
    usual = language.forms[:, rows] == form  # (H, n)
    result[spelled] += read_spellings(usual, habits, language.spelled.shape[1])
    return result


def _likelihood(
    language: English, before: np.ndarray, word: np.ndarray, private: bool
) -> np.ndarray:
    """Return P(word | the one before it, topic of the message), (K, n)."""
    here = language.successors[before] == word[:, None]
    follows = (language.following[int(private)][before] * here).sum(axis=1)
    naming = language.naming[before]
    by_topic = (1 - naming) * follows + naming * language.in_topic[:, word]
    return (1 - language.ending[before]) * (ANY * language.common[word] + (1 - ANY) * by_topic)


@lru_cache(maxsize=4)
def english_of(vocabulary_size: int) -> English:
    """Return the English of so many ids; ValueError below ``LEAST_WORDS``."""
    if vocabulary_size < LEAST_WORDS:
        raise ValueError(
            f"vocabulary_size = {vocabulary_size}; invented English needs at least {LEAST_WORDS:,}"
        )
    frequency = _frequencies()
    spellings = [spelling for row in lists.SPELLINGS for spelling in row]
    named = [word for words in lists.TOPICS.values() for word in words.split()]
    wanted = [*lists.OPENERS.split(), *named, *lists.NAMING.split(), *frequency]
    variants = frozenset(spelling for row in lists.SPELLINGS for spelling in row[1:])
    once = dict.fromkeys(word for word in wanted if word not in variants)
    room = vocabulary_size - FIRST_WORD
    kept = list(dict.fromkeys([*spellings, *once]))[:room]
    kept.sort(key=lambda word: (-frequency.get(word, 0.0), word))
    return _tables(tuple(kept), frequency, variants)


def _tables(
    words: tuple[str, ...], frequency: dict[str, float], variants: frozenset[str]
) -> English:
    """Fill the tables for the words of a vocabulary, most frequent first."""
    ids = {word: FIRST_WORD + place for place, word in enumerate(words)}
    named = {word for line in lists.TOPICS.values() for word in line.split()}
    own = [word for word in words if word not in variants]
    chain = [w for place, w in enumerate(own) if (place < CHAIN and w in frequency) or w in named]
    place_of = {word: place for place, word in enumerate(chain)}
    lexeme = np.full(len(chain), -1)
    for row, spelling in enumerate(lists.SPELLINGS):
        lexeme[place_of[spelling[0]]] = row
    successors, following, ending = _following(place_of, frequency)
    naming = np.zeros(len(chain))
    naming[[place_of[word] for word in lists.NAMING.split() if word in place_of]] = NAMED
    common = np.array([frequency[word] for word in chain])
    opening = np.zeros(len(chain))
    for word in lists.OPENERS.split():
        opening[place_of[word]] = frequency[word]
    topic_words = np.array([[place_of[w] for w in t.split()] for t in lists.TOPICS.values()])
    topics, ranks = (1 / (np.arange(size) + 1.0) for size in topic_words.shape)
    drawn = stream(0, "english spellings").random((HABITS, len(lists.SPELLINGS)))
    forms = np.searchsorted([0.4, 0.9], drawn, side="right")  # three spellings
    forms[0] = 0  # the habit of public text
    habits = np.full(HABITS, 0.1 / (HABITS - 1))
    habits[0] = 0.9
    return English(
        words,
        np.array([ids[word] for word in chain]),
        lexeme,
        np.array([[ids[word] for word in row] for row in lists.SPELLINGS]),
        opening / opening.sum(),
        successors,
        following,
        ending,
        naming,
        common / common.sum(),
        topic_words,
        ranks / ranks.sum(),
        forms,
        public_topics=topics / topics.sum(),
        private_topics=(topics / topics.sum())[::-1].copy(),
        public_habits=habits,
        private_habits=habits[::-1].copy(),
    )


def _following(
    place_of: dict[str, int], frequency: dict[str, float]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return successors (N, S), their shares (2, N, S), and the chance to end after a word (N,)."""
    size = len(place_of)
    pairs = [
        (place_of[first], place_of[second], count)
        for first, second, count in _bigrams()
        if first in place_of and second in place_of and first != second
    ]
    firsts, seconds = (np.array([pair[i] for pair in pairs]) for i in (0, 1))
    counts = np.array([pair[2] for pair in pairs], dtype=np.float64)
    into = np.bincount(seconds, counts, size)
    out_of = np.bincount(firsts, counts, size)
    common = np.array([frequency.get(word, 0.0) for word in place_of])
    commoner = np.clip(common / np.maximum(into / into.sum(), 1e-9), *BOUNDS) ** CONVERSATION
    friendly = counts * commoner[seconds]
    both = np.stack([counts, friendly])
    totals = np.stack([np.bincount(firsts, weights, size) for weights in both])
    shares = both / totals[:, firsts]  # (2, pairs)
    order = np.lexsort((-shares.sum(axis=0), firsts))
    starts = np.searchsorted(firsts[order], np.arange(size))
    nth = np.arange(len(order)) - starts[firsts[order]]
    order, nth = order[nth < SUCCESSORS], nth[nth < SUCCESSORS]
    successors = np.zeros((size, SUCCESSORS), dtype=np.intp)
    following = np.zeros((2, size, SUCCESSORS))
    successors[firsts[order], nth] = seconds[order]
    following[:, firsts[order], nth] = shares[:, order]
    lonely = out_of == 0
    successors[lonely, 0] = place_of["and"]
    following[:, lonely, 0] = 1.0
    # A word that much leads to and little follows closes a sentence.
    closes = np.clip((into - out_of) / np.maximum(into + out_of, 1.0), 0, 1)
    ending = np.where(lonely, 0.6, 0.04 + 0.4 * closes)
    return successors, following / following.sum(axis=2, keepdims=True), ending


def _frequencies() -> dict[str, float]:
    """Return wordfreq's English words of letters alone, most frequent first."""
    from wordfreq import get_frequency_dict

    refused = frozenset(lists.LEFT_OUT.split())
    listed = get_frequency_dict("en", wordlist="best")
    return {
        word: share
        for word, share in listed.items()
        if word.isalpha() and word.isascii() and word not in refused
        and (len(word) > 1 or word in "iaurn")
    }  # fmt: skip


def _bigrams() -> Iterator[tuple[str, str, int]]:
    text = (files("symspellpy") / _TABLE).read_text(encoding="utf-8-sig")
    for line in text.splitlines():
        first, second, count = line.split(" ")
        yield first, second, int(count)
