"""Build, combine and prune backoff models from plain tables of n-grams.

A table holds n-grams of one length: each is one number, its words as digits in base V, so that
sorting the numbers sorts the n-grams; beside it stands its probability after its context.

Legend: V words, n n-grams.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pfl_lm.export.ngram.backoff import BackoffModel, Level
from pfl_lm.text.tokenizer import Tokenizer

LEAST_MASS = 1e-12  # left to words that a context does not list, so that no logarithm is infinite


@dataclass(frozen=True)
class Table:
    """n-grams of one length.

    Attributes:
        ids: int64[n], rising: the words as digits in base V.
        chances: float64[n], probability of the last word after the others.
    """

    ids: np.ndarray
    chances: np.ndarray

    @classmethod
    def of(cls, ids: np.ndarray, chances: np.ndarray) -> Table:
        """Sort n-grams, each of which occurs once."""
        order = np.argsort(ids, kind="stable")
        return cls(ids[order], np.asarray(chances, np.float64)[order])

    def find(self, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return where n-grams stand, and whether they do (int64[m], bool[m])."""
        if not len(self.ids):
            return np.zeros(len(ids), np.int64), np.zeros(len(ids), bool)
        at = np.minimum(np.searchsorted(self.ids, ids), len(self.ids) - 1)
        return at, self.ids[at] == ids


def model_of(unigram: np.ndarray, tables: Sequence[Table]) -> BackoffModel:
    """Return the model that lists these n-grams, its backoff weights such that rows sum to one.

    A context that is no n-gram of its table is added to it, with the probability that it has
    anyway.

    Args:
        unigram: float64[V], sums to one; 0 for what is never predicted.
        tables: of pairs, of triples, …
    """
    size = len(unigram)
    with np.errstate(divide="ignore"):
        single = np.log(unigram)
    model = BackoffModel((Level(np.arange(size), single, np.zeros(size)),))
    for place, table in enumerate(tables):
        if place + 1 < len(tables):
            table = _with_contexts(model, table, tables[place + 1 :], place + 2)
        model = _extended(model, table)
    return model


def _with_contexts(
    model: BackoffModel, table: Table, longer: Sequence[Table], length: int
) -> Table:
    """Add the contexts of longer n-grams that a table does not list."""
    size = model.words
    needed = [t.ids // size ** (i + 1) for i, t in enumerate(longer)]
    wanted = np.unique(np.concatenate(needed))
    absent = wanted[~table.find(wanted)[1]]
    if not len(absent):
        return table
    chances = np.exp(log_chances(_extended(model, table), digits(absent, length, size)))
    return Table.of(np.concatenate([table.ids, absent]), np.concatenate([table.chances, chances]))


def _extended(model: BackoffModel, table: Table) -> BackoffModel:
    """Put one more level on a model and set the weights of its contexts."""
    size, length = model.words, model.order + 1
    contexts = digits(table.ids // size, length - 1, size)
    places = places_of(model, contexts)
    assert (places >= 0).all()
    lower = np.exp(log_chances(model, digits(table.ids, length, size)[:, 1:]))
    top = model.levels[-1]
    listed = np.bincount(places, table.chances, len(top.keys))
    below = np.bincount(places, lower, len(top.keys))
    weights = np.log(np.maximum(1 - listed, LEAST_MASS) / np.maximum(1 - below, LEAST_MASS))
    weights[np.bincount(places, minlength=len(top.keys)) == 0] = 0.0
    level = Level(places * size + table.ids % size, np.log(table.chances), np.zeros(len(table.ids)))
    return BackoffModel(
        (*model.levels[:-1], Level(top.keys, top.logs, weights), level),
    )


def digits(ids: np.ndarray, length: int, size: int) -> np.ndarray:
    """Return the words of n-grams, int64[n, length]."""
    return np.stack([ids // size**power % size for power in range(length - 1, -1, -1)], axis=1)


def numbers(words: np.ndarray, size: int) -> np.ndarray:
    """Return n-grams, int64[n, length], as one number each."""
    ids = words[:, 0].astype(np.int64)
    for column in words.T[1:]:
        ids = ids * size + column
    return ids


def places_of(model: BackoffModel, words: np.ndarray) -> np.ndarray:
    """Return where n-grams, int64[n, length], are listed; −1: nowhere."""
    found = words[:, 0].astype(np.int64)
    for length, word in enumerate(words.T[1:], start=1):
        keys = model.levels[length].keys
        wanted = np.where(found >= 0, found * model.words + word, -1)
        at = np.minimum(np.searchsorted(keys, wanted), max(len(keys) - 1, 0))
        found = np.where((keys[at] == wanted) if len(keys) else False, at, -1)
    return found


def log_chances(model: BackoffModel, words: np.ndarray) -> np.ndarray:
    """Return log p(last word | the others) of n-grams, int64[n, length ≤ order]."""
    logs = model.levels[0].logs[words[:, -1]]
    for length in range(2, words.shape[1] + 1):
        if not model.sizes[length - 2]:
            break  # no context of this length is listed, so nothing longer is either
        grams = words[:, -length:]
        contexts = places_of(model, grams[:, :-1])
        weights = model.levels[length - 2].weights[np.maximum(contexts, 0)]
        logs = logs + np.where(contexts >= 0, weights, 0.0)
        listed = places_of(model, grams)
        level = model.levels[length - 1]
        if len(level.keys):
            logs = np.where(listed >= 0, level.logs[np.maximum(listed, 0)], logs)
    return logs


def tables_of(model: BackoffModel) -> tuple[np.ndarray, list[Table]]:
    """Return a model's unigram and tables; :func:`model_of` puts them together again."""
    tables = [
        Table(numbers(model.ngrams(length), model.words), np.exp(model.levels[length - 1].logs))
        for length in range(2, model.order + 1)
    ]
    return np.exp(model.levels[0].logs), tables


def mixed(one: BackoffModel, other: BackoffModel, share: float) -> BackoffModel:
    """Return (1 − share) of one model and ``share`` of another of the same order.

    Every n-gram that either lists gets the exact mean; the others back off.
    """
    weights = np.log([1 - share, share])
    unigram = (1 - share) * np.exp(one.levels[0].logs) + share * np.exp(other.levels[0].logs)
    tables: list[Table] = []
    for mine, theirs in zip(tables_of(one)[1], tables_of(other)[1], strict=True):
        ids = np.union1d(mine.ids, theirs.ids)
        words = digits(ids, len(tables) + 2, one.words)
        logs = np.logaddexp(
            weights[0] + log_chances(one, words), weights[1] + log_chances(other, words)
        )
        tables.append(Table(ids, np.exp(logs)))
    return model_of(unigram, tables)


def pruned(
    model: BackoffModel, costs: Sequence[np.ndarray], budget: int, weight_cost: int = 0
) -> BackoffModel:
    """Return the model with the n-grams that tell most, as many as ``budget`` bytes hold.

    What an n-gram tells is the relative entropy between the model with it and the model without
    it, whose context's weight then takes its probability in. Single words stay.

    Args:
        costs: bytes of each n-gram by level, single words first.
        budget: bytes for all of them.
        weight_cost: bytes that an n-gram of two words or more takes in addition, as a context.

    Source: Stolcke 1998, "Entropy-based pruning of backoff language models", equations 4 and 5;
    as there, contexts are as frequent as the model itself says.
    """
    unigram, tables = tables_of(model)
    left = budget - int(costs[0].sum())
    told = [losses(model, length) for length in range(2, model.order + 1)]
    every, bytes_each = np.concatenate(told), np.concatenate(costs[1:])
    order = np.argsort(-every, kind="stable")
    fitting = int(np.searchsorted(np.cumsum(bytes_each[order]), left, side="right"))
    while True:
        keep = np.zeros(len(every), bool)
        keep[order[:fitting]] = True
        kept = np.split(keep, np.cumsum([len(part) for part in told])[:-1])
        spent = 0
        for place in range(len(kept) - 1, 0, -1):  # contexts of what is kept
            contexts = np.unique(model.levels[place + 1].keys[kept[place]] // model.words)
            kept[place - 1][contexts] = True
            spent += weight_cost * len(contexts)
        spent += int(bytes_each[np.concatenate(kept)].sum())
        if spent <= left or fitting == 0:
            break
        fitting = min(fitting - 1, int(fitting * left / spent))
    return model_of(
        unigram,
        [Table(t.ids[k], t.chances[k]) for t, k in zip(tables, kept, strict=True)],
    )


def losses(model: BackoffModel, length: int) -> np.ndarray:
    """Return what the model would lose without each n-gram of a length, nats per word."""
    level, below = model.levels[length - 1], model.levels[length - 2]
    words = model.ngrams(length)
    places = level.keys // model.words
    chance, lower = np.exp(level.logs), np.exp(log_chances(model, words[:, 1:]))
    rest = np.maximum(1 - np.bincount(places, chance, len(below.keys)), LEAST_MASS)[places]
    rest_lower = np.maximum(1 - np.bincount(places, lower, len(below.keys)), LEAST_MASS)[places]
    weight, without = np.log(rest / rest_lower), np.log((rest + chance) / (rest_lower + lower))
    change = chance * (np.log(lower) + without - level.logs) + rest * (without - weight)
    return -_frequency(model, words[:, :-1]) * change


def _frequency(model: BackoffModel, contexts: np.ndarray) -> np.ndarray:
    """Return how often contexts come, by the model; a message begins as often as one ends."""
    single = np.exp(model.levels[0].logs)
    single[Tokenizer.bos_id] = single[Tokenizer.eos_id]
    frequency = single[contexts[:, 0]]
    for length in range(2, contexts.shape[1] + 1):
        frequency = frequency * np.exp(log_chances(model, contexts[:, :length]))
    return frequency
