"""Writing text in the invented language, and its exact probability.

Legend of shapes: M messages, C clauses, L slots of a template, K topics, H habits, n tokens.
"""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

import numpy as np

from pfl_lm.text.synthetic.language import (
    AGREEING,
    BOS_ID,
    CLASSES,
    CONTENT,
    END,
    EOS_ID,
    FIRST_WORD,
    GENDERS,
    GENERAL,
    GO_ON,
    KEEP_HABIT,
    LOYAL,
    MOST_CLAUSES,
    PARTNER,
    PARTNERED,
    SLOTS,
    TOPICAL,
    VARIANTS,
    Language,
)


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
    result[function] += read_spellings(usual, habits, VARIANTS)
    content = trace.topic >= 0
    likely = np.log(_content_likelihood(language, trace, content))  # (K, n)
    result[content] += read_topics(likely, trace.message[content], topics)
    return result


def read_spellings(usual: np.ndarray, habits: np.ndarray, variants: int) -> np.ndarray:
    """Return log P(spelling | those before it), float64[n], the user's habit being unknown.

    Args:
        usual: bool (H, n), whether a spelling is the usual one of each habit.
        habits: prior (H,).
        variants: spellings that a word has.
    """
    seen = np.log(KEEP_HABIT * usual + (1 - KEEP_HABIT) / variants)
    return _filter(np.log(habits)[:, None], seen)


def read_topics(likely: np.ndarray, message: np.ndarray, topics: np.ndarray) -> np.ndarray:
    """Return log P(word | those before it), float64[n], the topics being unknown.

    Args:
        likely: log P(word | topic of its message), (K, n).
        message: (n,) which message a word is in, rising.
        topics: prior (K,) of users' favourite topics, and of the others that they wander to.
    """
    favourite = topics.copy()  # P(favourite topic | messages so far)
    total = np.zeros(len(message))
    edges = np.flatnonzero(np.diff(message, prepend=-1, append=-1))
    for start, end in pairwise(edges):
        prior = LOYAL * favourite + (1 - LOYAL) * topics
        total[start:end] = _filter(np.log(prior)[:, None], likely[:, start:end])
        whole = likely[:, start:end].sum(axis=1)
        whole = np.exp(whole - whole.max())
        favourite = favourite * (LOYAL * whole + (1 - LOYAL) * (topics @ whole))
        favourite /= favourite.sum()
    return total


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
