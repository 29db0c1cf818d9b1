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
from functools import lru_cache
from itertools import pairwise
from typing import NamedTuple

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

    def __post_init__(self) -> None:
        cumulated = {
            name: np.cumsum(getattr(self, name), axis=-1)
            for name in ("opening", "following", "ranks")
        }
        for table in cumulated.values():
            table[..., -1] = 1.0
        object.__setattr__(self, "cumulated", cumulated)

    cumulated: dict[str, np.ndarray] = None  # type: ignore[assignment]

    @property
    def topics(self) -> int:
        """K."""
        return len(self.public_topics)

    @property
    def first_content(self) -> int:
        """Smallest id of a content word."""
        return FIRST_WORD + self.forms.shape[1] * VARIANTS

    @property
    def tokens_per_message(self) -> float:
        """Roughly how many tokens a message has, ``<s>`` and ``</s>`` included."""
        clauses = sum(GO_ON**j for j in range(MOST_CLAUSES))
        return 2.0 + clauses * float(self.opening @ (self.kinds != END).sum(axis=1))


class Trace(NamedTuple):
    """A text and how it came about; arrays over its n tokens unless stated otherwise."""

    tokens: np.ndarray  # int32
    message: np.ndarray  # which message
    grammar: np.ndarray  # float64, log probability of what does not depend on habit or topic
    lexeme: np.ndarray  # −1 where the token is no opener or particle
    variant: np.ndarray
    topic: np.ndarray  # list of a content word: 0 … K−1, K the common words, −1 no content word
    rank: np.ndarray
    partner: np.ndarray  # −1 no partner slot, 0 another word, 1 the very partner


def generate(
    language: Language, random: np.random.Generator, topics: np.ndarray, habit: np.ndarray | int
) -> Trace:
    """Write one message per entry of ``topics`` (M,), by a user, or users, of ``habit``."""
    messages = len(topics)
    more = np.cumprod(random.random((messages, MOST_CLAUSES - 1)) < GO_ON, axis=1).sum(axis=1)
    templates = _templates(language, random.random((MOST_CLAUSES, messages)))  # (M, 4)
    present = np.arange(MOST_CLAUSES) <= more[:, None]
    message, place = np.nonzero(present)  # (C,) each
    template = templates[present]
    before = np.where(place > 0, templates[message, place - 1], -1)
    drawn = random.random((4, len(template), SLOTS))
    habits = np.broadcast_to(habit, messages)[message]
    slots = _fill(language, template, topics[message], habits, drawn)
    slots["grammar"] = _grammar(language, template, before)
    slots["message"] = np.broadcast_to(message[:, None], (*template.shape, SLOTS))
    last = place == more[message]
    return _flatten(language, slots, language.kinds[template] != END, place, last)


def _templates(language: Language, drawn: np.ndarray) -> np.ndarray:
    """Run the chain of templates for all messages at once: (4, M) uniform → (M, 4)."""
    chain = [np.searchsorted(language.cumulated["opening"], drawn[0], side="right")]
    for uniform in drawn[1:]:
        rows = language.cumulated["following"][chain[-1]]  # (M, S)
        chain.append((rows <= uniform[:, None]).sum(axis=1))
    return np.stack(chain, axis=1)


def _fill(
    language: Language,
    template: np.ndarray,
    topic: np.ndarray,
    habit: np.ndarray,
    drawn: np.ndarray,
) -> dict[str, np.ndarray]:
    """Put a word into every slot of every clause; all arrays are (C, L)."""
    kinds, values = language.kinds[template], language.values[template]
    rank = np.searchsorted(language.cumulated["ranks"], drawn[0], side="right")
    elsewhere = (drawn[1] - TOPICAL - GENERAL) / (1 - TOPICAL - GENERAL) * language.topics
    chosen = np.where(drawn[1] < TOPICAL + GENERAL, language.topics, elsewhere.astype(np.intp))
    chosen = np.where(drawn[1] < TOPICAL, topic[:, None], chosen)
    first = np.argmax(kinds == CONTENT, axis=1)[:, None]  # (C, 1)
    first_rank = np.take_along_axis(rank, first, axis=1)
    first_chosen = np.take_along_axis(chosen, first, axis=1)
    follow = (kinds == PARTNER) & (drawn[2] < PARTNERED)
    rank = np.where(follow, first_rank, rank)
    chosen = np.where(follow, first_chosen, chosen)
    content = (kinds == CONTENT) | (kinds == PARTNER)
    lexeme = np.where(kinds == AGREEING, values + first_rank % GENDERS, values)
    lexeme = np.where(content, 0, lexeme)
    usual = language.forms[habit[:, None], lexeme]
    unusual = (drawn[3] - KEEP_HABIT) / (1 - KEEP_HABIT) * VARIANTS
    variant = np.where(drawn[3] < KEEP_HABIT, usual, unusual.astype(np.intp))
    content_id = (rank * CLASSES + values) * (language.topics + 1) + chosen
    same = (rank == first_rank) & (chosen == first_chosen)
    return {
        "tokens": np.where(
            content, language.first_content + content_id, FIRST_WORD + lexeme * VARIANTS + variant
        ),
        "lexeme": np.where(content, -1, lexeme),
        "variant": variant,
        "topic": np.where(content, chosen, -1),
        "rank": rank,
        "partner": np.where(kinds == PARTNER, same, -1),
    }


def _grammar(language: Language, template: np.ndarray, before: np.ndarray) -> np.ndarray:
    """Return log probabilities (C, L): an opener's choice; 0 where the template leaves none."""
    opening = language.opening[template]
    going_on = GO_ON * language.following[before, template]
    grammar = np.zeros((len(template), SLOTS))
    grammar[:, 0] = np.log(np.where(before < 0, opening, going_on))
    return grammar


def _flatten(
    language: Language,
    slots: dict[str, np.ndarray],
    filled: np.ndarray,
    place: np.ndarray,
    last: np.ndarray,
) -> Trace:
    """Join clauses (C, L) to one stream, ``<s>`` before a first clause, ``</s>`` after a last."""
    keep = np.concatenate([(place == 0)[:, None], filled, last[:, None]], axis=1)
    end = np.where(place < MOST_CLAUSES - 1, np.log(1 - GO_ON), 0.0)
    edges: dict[str, tuple[object, object]] = {
        "tokens": (BOS_ID, EOS_ID),
        "grammar": (0.0, end),
    }
    flat = {}
    for name, middle in slots.items():
        wide = np.empty(keep.shape, dtype=np.float64 if name == "grammar" else np.int32)
        left, right = edges.get(name, (middle[:, 0] if name == "message" else -1,) * 2)
        wide[:, 0], wide[:, 1:-1], wide[:, -1] = left, middle, right
        flat[name] = wide[keep]
    return Trace(**flat)


def log_probability(
    language: Language, trace: Trace, topics: np.ndarray, habits: np.ndarray
) -> np.ndarray:
    """Return float64[n]: log P(token | all tokens before it), habit and topic being unknown.

    Args:
        topics, habits: what the reader knows of users: prior (K,) and (H,).
    """
    result = trace.grammar.copy()
    function = trace.lexeme >= 0
    usual = language.forms[:, trace.lexeme[function]] == trace.variant[function]  # (H, n)
    seen = np.log(KEEP_HABIT * usual + (1 - KEEP_HABIT) / VARIANTS)
    result[function] += _filter(np.log(habits)[:, None], seen)
    content = trace.topic >= 0
    likely = np.log(_content_likelihood(language, trace, content))  # (K, n)
    message = trace.message[content]
    favourite = topics.copy()  # P(favourite topic | messages so far)
    found = np.zeros(len(message))
    edges = np.flatnonzero(np.diff(message, prepend=-1, append=-1))
    for start, end in pairwise(edges):
        prior = LOYAL * favourite + (1 - LOYAL) * topics
        found[start:end] = _filter(np.log(prior)[:, None], likely[:, start:end])
        whole = likely[:, start:end].sum(axis=1)
        whole = np.exp(whole - whole.max())
        favourite = favourite * (LOYAL * whole + (1 - LOYAL) * (topics @ whole))
        favourite /= favourite.sum()
    result[content] += found
    return result


def _filter(prior: np.ndarray, seen: np.ndarray) -> np.ndarray:
    """Return the predictive log probabilities (n,) of a static hidden cause.

    Args:
        prior: log P(cause) (causes, 1).
        seen: log P(observation | cause) (causes, n).
    """
    joint = np.logaddexp.reduce(np.cumsum(np.hstack([prior, seen]), axis=1), axis=0)
    return np.diff(joint)


def _content_likelihood(language: Language, trace: Trace, content: np.ndarray) -> np.ndarray:
    """Return P(content word | topic of the message), (K, n)."""
    topics = language.topics
    chosen, rank, partner = trace.topic[content], trace.rank[content], trace.partner[content]
    mine = np.arange(topics)[:, None] == chosen  # (K, n)
    by_list = np.where(chosen == topics, GENERAL, TOPICAL * mine + (1 - TOPICAL - GENERAL) / topics)
    drawn = by_list * language.ranks[rank]
    return np.where(partner < 0, drawn, PARTNERED * (partner == 1) + (1 - PARTNERED) * drawn)


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
