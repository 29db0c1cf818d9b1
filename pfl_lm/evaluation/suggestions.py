"""Which words a keyboard would suggest after a text: what a person can judge without a figure."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from pfl_lm.evaluation.composing import Reader, Speller, Wanted, as_read, reader_of
from pfl_lm.evaluation.evaluate import ModelScorer
from pfl_lm.evaluation.interfaces import TokenizerLike
from pfl_lm.evaluation.keystrokes import SUGGESTIONS
from pfl_lm.evaluation.vocabulary import Vocabulary
from pfl_lm.models import models
from pfl_lm.models.spec import ModelSpec, Parameters
from pfl_lm.text.normalisation import beginnings
from pfl_lm.text.tokenizer import Tokenizer

# A dozen ways to begin, none of them from anybody's text.
PROMPTS = (
    "how are",
    "i want",
    "thank",
    "see you",
    "what do",
    "i am",
    "it was",
    "do you",
    "we can",
    "that is a",
    "have a good",
    "let me",
)
LONGEST = 64  # words of a text that are looked at, its last ones


def suggest(
    spec: ModelSpec,
    parameters: Parameters,
    tokenizer: Tokenizer,
    text: str,
    count: int = SUGGESTIONS,
    letters: str = "",
    compose: bool = True,
    chances: np.ndarray | None = None,
) -> list[tuple[str, float]]:
    """Return the words that the model finds likeliest next, as shown, each with its probability.

    Args:
        text: what was typed, one message; empty: its first word is suggested.
        count: how many words, at most.
        letters: what was typed of the next word; only words that begin so are suggested.
        compose: suggest words that pieces spell beside those of the list (``composing.py``).
            Without subwords there are none.
        chances: what :func:`chances_after` returns for the text, where it has been read already.
    """
    if chances is None:
        chances = chances_after(spec, parameters, tokenizer, text)
    places = np.flatnonzero(suggestible(tokenizer) & begins_with(tokenizer, letters))
    best = places[np.argsort(-chances[places], kind="stable")[:count]]
    listed = [(tokenizer.shown(place), float(chances[place])) for place in best]
    speller = Speller.of(tokenizer) if compose else None
    if speller is None:
        return listed
    read = reader_of(ModelScorer(spec, parameters), speller)
    return with_composed(listed, speller, read, _context(spec, tokenizer, text), letters, count)


def with_composed(
    listed: Sequence[tuple[str, float]],
    speller: Speller,
    read: Reader,
    text: Sequence[int],
    letters: str,
    count: int,
) -> list[tuple[str, float]]:
    """Return the best of some listed words and of those that pieces spell.

    Args:
        listed: words as shown with their probabilities, best first.
        text: ids of what was typed, ``<s>`` first.
        letters: what was typed of the next word.
        count: how many words, at most; so many listed words if there are.
    """
    floor = np.log(max(listed[-1][1], 1e-300)) if len(listed) == count else -np.inf
    wanted = Wanted(tuple(text), speller.typed(letters), floor)
    found = speller.compose(read, [wanted], count)[0]
    composed = [(speller.shown(one.word), float(np.exp(one.log_probability))) for one in found]
    return sorted([*listed, *composed], key=lambda pair: -pair[1])[:count]


def suggest_emoji(tokenizer: Tokenizer, chances: np.ndarray) -> tuple[str, float] | None:
    """Return the emoji for a keyboard's fourth place, and its probability; None without emoji.

    Args:
        chances: float64[V], what :func:`chances_after` returns.
    """
    emoji = Vocabulary.of(tokenizer).is_emoji
    if not emoji.any():
        return None
    best = int(np.where(emoji, chances, -1.0).argmax())
    return tokenizer.words[best], float(chances[best])


def chances_after(
    spec: ModelSpec, parameters: Parameters, tokenizer: Tokenizer, text: str
) -> np.ndarray:
    """Return the probability of each id after a text, float64[V]."""
    context = _context(spec, tokenizer, text)
    hidden = models.hidden_of(spec, parameters, np.array([context]))[0, -1:]  # (1, P)
    logits = models.scores(spec, parameters, hidden)[0].double()
    chances: np.ndarray = torch.softmax(logits, 0).numpy()
    return chances


def begins_with(tokenizer: Tokenizer, letters: str) -> np.ndarray:
    """Say which ids are words that begin with some letters, whatever their capitals, bool[V]."""
    begin = beginnings(as_read(tokenizer, letters))
    return np.array([word.lower().startswith(begin) for word in tokenizer.words])


def suggestible(tokenizer: TokenizerLike) -> np.ndarray:
    """Say which ids are words that a keyboard may suggest, bool[V]."""
    return Vocabulary.of(tokenizer).is_word


def prompts_of(tokenizer: Tokenizer) -> Sequence[str]:
    """Return a dozen texts to look at suggestions after; outside English, frequent words."""
    if tokenizer.manifest.get("locale", "").startswith("en"):
        return PROMPTS
    words = suggestible(tokenizer)
    order = np.argsort(-np.where(words, tokenizer.unigram, -1.0), kind="stable")
    return [tokenizer.words[place] for place in order[: len(PROMPTS)]]


def _context(spec: ModelSpec, tokenizer: Tokenizer, text: str) -> list[int]:
    longest = models.longest_text(spec) or LONGEST + 1
    return message_of(tokenizer, text, longest)


def message_of(tokenizer: Tokenizer, text: str, longest: int) -> list[int]:
    """Return ``<s>`` and the last ids of a text, at most ``longest`` ids in all."""
    ids, room = tokenizer.encode(text), min(LONGEST, longest - 1)
    return [tokenizer.bos_id, *ids[max(0, len(ids) - room) :]]
