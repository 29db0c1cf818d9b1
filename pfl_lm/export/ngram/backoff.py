"""A backoff n-gram model as sorted arrays, and as a scorer of the evaluation.

An n-gram's probability is the listed one where there is one, and else the next shorter context's,
times the backoff weight of the context (1 where the context is not listed)::

    p(w | u v) = listed(u v w)             if u v w is listed
               = weight(u v) · p(w | v)    else

Source: Katz 1987, "Estimation of probabilities from sparse data for the language model component
of a speech recognizer", equation 16, in the form that ARPA files hold.

Legend: V words, m states, k words asked for.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from pfl_lm.text.tokenizer import Tokenizer

NEVER_PREDICTED = (Tokenizer.pad_id, Tokenizer.bos_id)
_HIDDEN_SHARE = 1e-3


@dataclass(frozen=True)
class Level:
    """All listed n-grams of one length.

    Attributes:
        keys: int64, rising: the place of the first n − 1 words in the level below, times V, plus
            the last word. Of single words: 0, 1, …, V − 1.
        logs: float64, natural logarithm of the probability; −∞ for what is never predicted.
        weights: float64, natural logarithm of the weight as a context; 0 where it is none.
    """

    keys: np.ndarray
    logs: np.ndarray
    weights: np.ndarray


@dataclass(frozen=True)
class BackoffModel:
    """An n-gram model over V words: one level for each length of n-gram."""

    levels: tuple[Level, ...]

    @property
    def order(self) -> int:
        return len(self.levels)

    @property
    def words(self) -> int:
        return len(self.levels[0].keys)

    @property
    def sizes(self) -> tuple[int, ...]:
        """Number of n-grams of each length."""
        return tuple(len(level.keys) for level in self.levels)

    def place(self, context: Iterable[int]) -> int:
        """Return where an n-gram is listed in its level, or −1."""
        found = -1
        for length, word in enumerate(context):
            keys = self.levels[length].keys
            wanted = word if length == 0 else found * self.words + word
            at = int(np.searchsorted(keys, wanted))
            if at == len(keys) or keys[at] != wanted:
                return -1
            found = at
        return found

    def row(self, context: tuple[int, ...]) -> np.ndarray:
        """Return log p(· | context), float64[V]; of a long context its last words count."""
        context = context[max(0, len(context) - self.order + 1) :]
        logs = self.levels[0].logs.copy()
        for length in range(1, len(context) + 1):
            at = self.place(context[-length:])
            if at >= 0:
                logs += self.levels[length - 1].weights[at]
                level = self.levels[length]
                first, last = np.searchsorted(level.keys, [at * self.words, (at + 1) * self.words])
                logs[level.keys[first:last] - at * self.words] = level.logs[first:last]
        return logs

    def ngrams(self, length: int) -> np.ndarray:
        """Return the words of all listed n-grams of a length, int64[n, length]."""
        keys = self.levels[length - 1].keys
        columns = []
        for below in range(length - 1, 0, -1):
            columns.append(keys % self.words)
            keys = self.levels[below - 1].keys[keys // self.words]
        return np.stack([keys, *columns[::-1]], axis=1)


class NgramScorer:
    """An n-gram model as the evaluation's ``Scorer``. No context reaches over ``<s>``.

    Words that the model leaves to ``<unk>`` share a thousandth of its probability, so that text
    which has them has a finite perplexity; the rows still sum to one.
    """

    def __init__(self, model: BackoffModel, hidden: Sequence[int] = ()) -> None:
        levels = list(model.levels)
        if hidden:
            logs = levels[0].logs.copy()
            logs[list(hidden)] = logs[Tokenizer.unk_id] + np.log(_HIDDEN_SHARE / len(hidden))
            logs[Tokenizer.unk_id] += np.log1p(-_HIDDEN_SHARE)
            levels[0] = replace(levels[0], logs=logs)
        self.model = BackoffModel(tuple(levels))

    def states(self, inputs: np.ndarray) -> torch.Tensor:
        """Read windows, int64[n, T] → the last words with their places, int64[n, T, order − 1].

        Column j has the place of the last j + 1 words in their level, or −1.
        """
        model, before = self.model, np.asarray(inputs, np.int64)
        found = []
        for length in range(1, model.order):
            found.append(_places(model, before, length))
        return torch.from_numpy(np.stack(found, axis=-1))

    def scores(self, states: torch.Tensor, words: slice | torch.Tensor) -> torch.Tensor:
        """Return log p(word | last words), float32 (m, k)."""
        model = self.model
        asked = np.arange(model.words)[words if isinstance(words, slice) else words.numpy()]
        order = np.argsort(asked, kind="stable")
        kinds, back = np.unique(states.numpy(), axis=0, return_inverse=True)
        logs = np.tile(model.levels[0].logs[asked[order]], (len(kinds), 1))
        for column in range(kinds.shape[1]):
            rows = np.flatnonzero(kinds[:, column] >= 0)
            places = kinds[rows, column]
            logs[rows] += model.levels[column].weights[places, None]
            _list(logs, rows, model.levels[column + 1], places, asked[order], model.words)
        logs[:, order] = logs.copy()
        return torch.from_numpy(logs.astype(np.float32))[torch.from_numpy(back.reshape(-1))]


def _places(model: BackoffModel, tokens: np.ndarray, length: int) -> np.ndarray:
    """Return where the ``length`` words that end at each token are listed, −1: nowhere."""
    places = np.full(tokens.shape, -1, np.int64)
    width = tokens.shape[1] - length + 1
    if width < 1:
        return places
    grams = [tokens[:, i : i + width] for i in range(length)]
    found = grams[0]
    for step, word in enumerate(grams[1:], start=1):
        keys = model.levels[step].keys
        wanted = np.where(found >= 0, found * model.words + word, -1)
        at = np.minimum(np.searchsorted(keys, wanted), max(len(keys) - 1, 0))
        held = len(keys) > 0 and keys[at] == wanted
        # What stands before <s> is another message's.
        found = np.where(held & (word != Tokenizer.bos_id), at, -1)
    places[:, length - 1 :] = found
    return places


def _list(
    logs: np.ndarray,
    rows: np.ndarray,
    level: Level,
    places: np.ndarray,
    asked: np.ndarray,
    vocabulary_size: int,
) -> None:
    """Write the listed probabilities of the words asked for, a rising run, over the backed-off."""
    first = np.searchsorted(level.keys, places * vocabulary_size + asked[0])
    last = np.searchsorted(level.keys, places * vocabulary_size + asked[-1], side="right")
    counts = last - first
    at = np.repeat(first - np.cumsum(counts) + counts, counts) + np.arange(counts.sum())
    row = np.repeat(rows, counts)
    word = level.keys[at] - np.repeat(places, counts) * vocabulary_size
    column = np.searchsorted(asked, word)
    held = asked[column] == word
    logs[row[held], column[held]] = level.logs[at[held]]
