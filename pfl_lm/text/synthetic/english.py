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
H habits, F spellings, n tokens. Where the tables come from: ``english_tables``.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np

from pfl_lm.streams import stream
from pfl_lm.text.synthetic.language import BOS_ID, EOS_ID, FIRST_WORD, KEEP_HABIT, cumulated
from pfl_lm.text.synthetic.process import read_spellings, read_topics

MOST_IN_A_MESSAGE = 20
ANY = 0.03  # chance that the next word is any word


class Text(NamedTuple):
    """A text in tokens, int32[n], and the tokens of each message, int (M,)."""

    tokens: np.ndarray
    lengths: np.ndarray


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
        drawn = drawn_for(random, len(topics))
        return len(write(self, drawn, topics, 0, private=True).tokens) / len(topics)


def drawn_for(random: np.random.Generator, messages: int) -> np.ndarray:
    """Draw what messages are written from, float64 (W, 5, M)."""
    return random.random((MOST_IN_A_MESSAGE, 5, messages))


def write(
    language: English,
    drawn: np.ndarray,
    topics: np.ndarray,
    habit: np.ndarray | int,
    private: bool,
) -> Text:
    """Write one message per entry of ``topics`` (M,), by a user, or users, of ``habit``.

    A message follows from its own part of ``drawn`` (W, 5, M), whichever are written beside it.
    """
    messages = len(topics)
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
    tokens = np.concatenate([BOS_ID * edge, ids, EOS_ID * edge], 1)[keep].astype(np.int32)
    return Text(tokens, keep.sum(axis=1))


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
