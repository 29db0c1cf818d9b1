"""Interpolated modified Kneser-Ney of counted text, as a backoff model.

Used on public text, and by the benchmark as the non-private model to be compared with.
"""

from __future__ import annotations

import numpy as np

from pfl_lm.export.ngram.backoff import NEVER_PREDICTED, BackoffModel, Level
from pfl_lm.text.tokenizer import Tokenizer


def fit_text(tokens: np.ndarray, base: np.ndarray, order: int) -> BackoffModel:
    """Fit a stream ``<s> w w </s> <s> …``; no n-gram reaches over ``<s>``.

    With a(h w) the times that w followed h (for shorter n-grams: the number of words before h w,
    unless it begins a message), D one of three discounts by a(h w)::

        p(w | h) = max(a(h w) − D, 0) / Σ a(h •) + γ(h) · p(w | h without its first word)

    γ(h) such that the row sums to one, and ``base`` below the shortest.

    Args:
        tokens: int[m].
        base: float64[V], positive: what is known of words never seen.

    Raises:
        ValueError: the text is too small to have n-grams of that length.

    Source: Chen & Goodman 1999, "An empirical study of smoothing techniques for language
    modeling", section 3, equations 25 to 27.
    """
    size = len(base)
    counted = [_count(np.asarray(tokens), length, size) for length in range(1, order + 1)]
    if not len(counted[-1][0]):
        raise ValueError(f"the text holds no {order} words in a row: it is too small to count")
    floor = np.where(np.isin(np.arange(size), NEVER_PREDICTED), 0.0, base)
    ids, times = _adjusted(counted, 1, size)
    discounts = _discounts(times)[np.minimum(times, 3)]
    chances = np.zeros(size)
    chances[ids] = np.maximum(times - discounts, 0) / times.sum()
    chances += (1 - chances.sum()) * floor / floor.sum()
    with np.errstate(divide="ignore"):
        levels = [Level(np.arange(size), np.log(chances), np.zeros(size))]
    shorter = np.arange(size)  # the n-grams of the level below, and their probabilities
    for length in range(2, order + 1):
        ids, times = _adjusted(counted, length, size)
        contexts, first, held = np.unique(ids // size, return_index=True, return_counts=True)
        discounts = _discounts(times)[np.minimum(times, 3)]
        total = np.add.reduceat(times, first)
        spare = np.add.reduceat(np.minimum(discounts, times), first) / total
        lower = chances[np.searchsorted(shorter, ids % size ** (length - 1))]
        places = np.searchsorted(shorter, contexts)
        levels[-1].weights[places] = np.log(spare)
        chances = np.maximum(times - discounts, 0) / np.repeat(total, held)
        chances += np.repeat(spare, held) * lower
        keys = np.repeat(places, held) * size + ids % size
        levels.append(Level(keys, np.log(chances), np.zeros(len(ids))))
        shorter = ids
    return BackoffModel(tuple(levels))


def _count(tokens: np.ndarray, length: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Count the n-grams of a length that lie within a message: numbers, times."""
    wide = tokens.astype(np.int64)
    width = max(0, len(wide) - length + 1)
    grams = [wide[place : place + width] for place in range(length)]
    inside = grams[0] != Tokenizer.pad_id
    for word in grams[1:]:
        inside &= (word != Tokenizer.pad_id) & (word != Tokenizer.bos_id)
    ids = grams[0][inside]
    for word in grams[1:]:
        ids = ids * size + word[inside]
    return np.unique(ids, return_counts=True)


def _adjusted(
    counted: list[tuple[np.ndarray, np.ndarray]], length: int, size: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return the n-grams of a length with the counts that Kneser-Ney smooths."""
    ids, times = counted[length - 1]
    if length < len(counted):
        begins = ids // size ** (length - 1) == Tokenizer.bos_id
        ends, kinds = np.unique(counted[length][0] % size**length, return_counts=True)
        adjusted = np.zeros(len(ids), np.int64)
        adjusted[np.searchsorted(ids, ends)] = kinds
        times = np.where(begins, times if length > 1 else 0, adjusted)
    return ids[times > 0], times[times > 0]


def _discounts(times: np.ndarray) -> np.ndarray:
    """Estimate the discounts of counts 0, 1, 2 and more; a half of each where none can be."""
    once, twice, thrice, four = (int((times == count).sum()) for count in (1, 2, 3, 4))
    if not (once and twice and thrice):
        return np.array([0.0, 0.5, 0.5, 0.5])
    part = once / (once + 2 * twice)
    found = [0, 1 - 2 * part * twice / once, 2 - 3 * part * thrice / twice,
             3 - 4 * part * four / thrice]  # fmt: skip
    return np.clip(found, [0, 0.05, 0.05, 0.05], [0, 0.95, 1.95, 2.95])
