"""An invented language whose every probability is known: grammar, topics, habits.

A message is one to four clauses on one topic. A clause follows a template: an opener that belongs
to this template alone, then particles and content words. What makes it worth a recurrent model:

* the next template depends on the one before, some six words back;
* what follows a content word depends on the opener, not on that word;
* agreement: some particles take the gender of the clause's first content word;
* partners: a second content word is often the fixed partner of the first;
* topic: content words come mostly from the message's topic, messages mostly from the user's;
* habit: users write openers and particles each in their own way ("you", "u", "ya").

Public text has other topics and other habits than private text. As a template shows in its opener
and a word in its id, no parse is ambiguous, and the probability of a text under the process
follows exactly by filtering over the two things a reader cannot see: habit and topic.

Legend of shapes: M messages, C clauses, L slots of a template, K topics, H habits, V words.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np

from pfl_lm.streams import stream

FIRST_WORD = 4  # after <pad> <unk> <s> </s>
BOS_ID, EOS_ID = 2, 3
CLASSES, GENDERS, VARIANTS, SLOTS, MOST_CLAUSES = 3, 2, 3, 8, 4
HABITS = 8
GO_ON = 0.55  # chance of one more clause
SUCCESSOR = 0.85  # chance that the next template is one of the few that follow this one
KEEP_HABIT = 0.9  # chance that a user writes a form the usual way
TOPICAL, GENERAL = 0.70, 0.25  # content from the message's topic; from all topics' common words
PARTNERED = 0.4
LOYAL = 0.7  # chance that a message is on its user's favourite topic
_LANGUAGE_SEED = 0
END, LEXEME, CONTENT, AGREEING, PARTNER = range(5)  # kinds of slot


@dataclass(frozen=True, eq=False)
class Language:
    """The tables of the process; they depend on the vocabulary's size alone.

    Attributes:
        kinds, values: int (S, L), the slots of each template; ``values`` is a lexeme, or a class.
        opening: float64 (S,), template of a message's first clause; ``following``: (S, S).
        ranks: float64 (R,), how content words of one list are distributed.
        forms: int (H, lexemes), the usual variant of each lexeme.
        public_topics, private_topics: float64 (K,); public_habits, private_habits: (H,).
    """

    vocabulary_size: int
    kinds: np.ndarray
    values: np.ndarray
    opening: np.ndarray
    following: np.ndarray
    ranks: np.ndarray
    forms: np.ndarray
    public_topics: np.ndarray
    private_topics: np.ndarray
    public_habits: np.ndarray
    private_habits: np.ndarray

    @cached_property
    def cumulated(self) -> dict[str, np.ndarray]:
        """Cumulative shares, to draw from by their inverse."""
        return {name: cumulated(getattr(self, name)) for name in ("opening", "following", "ranks")}

    @property
    def topics(self) -> int:
        """K."""
        return len(self.public_topics)

    @property
    def first_content(self) -> int:
        """Smallest id of a content word."""
        return FIRST_WORD + self.forms.shape[1] * VARIANTS

    @cached_property
    def tokens_per_message(self) -> float:
        """Roughly how many tokens a message has, ``<s>`` and ``</s>`` included."""
        clauses = sum(GO_ON**j for j in range(MOST_CLAUSES))
        return 2.0 + clauses * float(self.opening @ (self.kinds != END).sum(axis=1))


def cumulated(shares: np.ndarray) -> np.ndarray:
    """Return the cumulative shares along the last axis, the last exactly 1."""
    sums = np.cumsum(shares, axis=-1)
    sums[..., -1] = 1.0
    return sums


@lru_cache(maxsize=8)
def language_of(vocabulary_size: int) -> Language:
    """Return the language with so many ids; ValueError below 200."""
    if vocabulary_size < 200:
        raise ValueError(f"vocabulary_size = {vocabulary_size}; the language needs at least 200")
    random = stream(_LANGUAGE_SEED, "synthetic language", vocabulary_size)
    templates = min(max(vocabulary_size // 80, 6), 96)
    particles = min(max(vocabulary_size // 120, 8), 64)
    topics = min(max(vocabulary_size // 400, 2), 24)
    kinds, values = _template_tables(random, templates, particles)
    lexemes = templates + particles
    room = vocabulary_size - FIRST_WORD - lexemes * VARIANTS
    opening = _falling(templates, offset=1.5)
    forms = random.integers(1, VARIANTS, size=(HABITS, lexemes))
    forms[random.random(forms.shape) < 0.3] = 0
    forms[0] = 0  # the habit of public text
    habits = np.full(HABITS, 0.1 / (HABITS - 1))
    habits[0] = 0.9
    return Language(
        vocabulary_size,
        kinds,
        values,
        opening,
        _successors(random, opening),
        _falling(room // (CLASSES * (topics + 1)), offset=1.0, power=1.2),
        forms,
        public_topics=_falling(topics, offset=1.0),
        private_topics=_falling(topics, offset=1.0)[::-1].copy(),
        public_habits=habits,
        private_habits=habits[::-1].copy(),
    )


def _falling(count: int, offset: float, power: float = 1.0) -> np.ndarray:
    """Return the shares of a Zipf-Mandelbrot law, float64 (count,)."""
    weights = (np.arange(count) + offset) ** -power
    return weights / weights.sum()


def _successors(random: np.random.Generator, opening: np.ndarray) -> np.ndarray:
    """Return P(next template | this one), (S, S): mostly one of a few."""
    templates = len(opening)
    few = min(6, templates)
    following = np.tile((1 - SUCCESSOR) * opening, (templates, 1))
    for row in following:
        row[random.choice(templates, few, replace=False)] += SUCCESSOR * _falling(few, 0.5)
    return following


def _template_tables(
    random: np.random.Generator, templates: int, particles: int
) -> tuple[np.ndarray, np.ndarray]:
    """Draw the slots of each template: an opener, then 3 to 7 more; every sixth is an idiom."""
    kinds = np.full((templates, SLOTS), END)
    values = np.zeros((templates, SLOTS), dtype=np.intp)
    for template in range(templates):
        length = int(random.integers(4, SLOTS + 1))
        has_content = template % 6 != 5
        kinds[template, 0], values[template, 0] = LEXEME, template
        seen_content = False
        for slot in range(1, length):
            want_content = has_content and (random.random() < 0.4 or slot == 1)
            if want_content:
                kind = PARTNER if seen_content else CONTENT
                value = int(random.integers(CLASSES))
                seen_content = True
            else:
                kind = AGREEING if seen_content and random.random() < 0.4 else LEXEME
                value = templates + int(random.integers(particles - (kind == AGREEING)))
            kinds[template, slot], values[template, slot] = kind, value
    return kinds, values
