"""Keystrokes saved by a keyboard that composes words of pieces beside those of its list.

``keystrokes.py`` says what a suggestion saves. Here the three words shown are the likeliest among
the listed words and those that pieces spell (``composing.py``), before any letter and after each.
A listed word may so be shown a letter later than it would alone, and a spelled word is shown at
all. Words composed are looked for only where they can change what is counted: a listed word is
passed only by words likelier than itself, and a spelled one must be likelier than the third best
listed word.

Legend: n windows, T window, N predictions, m of them.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch

from pfl_lm.evaluation.composing import LAST, Speller, Wanted, log_total, reader_of
from pfl_lm.evaluation.interfaces import Scorer, TokenizerLike
from pfl_lm.evaluation.keystrokes import SUGGESTIONS, Completions
from pfl_lm.evaluation.vocabulary import Vocabulary
from pfl_lm.text.tokenizer import Tokenizer

_TOGETHER = 64  # predictions whose searches run at once, and whose texts are remembered
_SLACK = 1e-5  # nats: how exact float32 log-probabilities of a few pieces are, summed


class Offered(NamedTuple):
    """When each of N words is offered.

    Attributes:
        place: int64[N], 0 to 2 among the suggestions before any letter, 3 for none.
        typed: int64[N], letters typed before the word is shown; all of them if it never is.
        spelled: int64[N], letters of a word that pieces spell, at its first piece; else 0.
    """

    place: np.ndarray
    typed: np.ndarray
    spelled: np.ndarray


@dataclass(frozen=True)
class _Word:
    """A word to be typed: where it stands among the predictions, and what is before it."""

    at: int
    text: tuple[int, ...]
    word: str
    ids: tuple[int, ...]


class Composing:
    """A vocabulary whose words may be composed, as an evaluation needs it."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        speller: Speller,
        vocabulary: Vocabulary,
        completions: Completions,
    ) -> None:
        self._tokenizer, self._speller = tokenizer, speller
        self._vocabulary, self._completions = vocabulary, completions
        self._sorted = [tokenizer.words[i] for i in completions.order]
        self._subword = np.zeros(tokenizer.vocabulary_size, dtype=bool)
        self._subword[speller.ids] = True
        self._goes_on = np.zeros(tokenizer.vocabulary_size, dtype=bool)
        self._goes_on[speller.ids[speller.goes_on]] = True

    @classmethod
    def of(
        cls, tokenizer: TokenizerLike, vocabulary: Vocabulary, completions: Completions
    ) -> Composing:
        """Return what composes the words of a tokenizer.

        Raises:
            ValueError: it has no subwords.
        """
        speller = Speller.of(tokenizer)
        if speller is None or not isinstance(tokenizer, Tokenizer):
            raise ValueError(
                "--compose: the vocabulary has no subwords to compose words of; leave --compose "
                "out, or build a vocabulary with `subwords` (docs/languages.md)"
            )
        return cls(tokenizer, speller, vocabulary, completions)

    def offered(
        self,
        scorer: Scorer,
        owners: np.ndarray,
        tokens: np.ndarray,
        states: torch.Tensor,
        nats: np.ndarray,
        place: np.ndarray,
    ) -> Offered:
        """Say when each word of some windows is offered.

        Args:
            owners: int64[n], the users; a user's windows follow one another.
            tokens: int64[n, T + 1].
            states: (N, ...), what the scorer knows before each prediction.
            nats: float64[N], −log of the probability each was given.
            place: int64[N], among the listed words before any letter.
        """
        predicted = self._vocabulary.is_predicted[tokens[:, 1:]]
        targets = tokens[:, 1:][predicted]
        found = Offered(
            place.copy(), self._completions.letters[targets].copy(), np.zeros_like(targets)
        )
        words = list(self._words(owners, tokens, predicted, np.isfinite(nats)))
        listed = [word for word in words if not self._subword[word.ids[0]]]
        spelled = [word for word in words if self._subword[word.ids[0]]]
        for start in range(0, len(listed), _TOGETHER):
            some = listed[start : start + _TOGETHER]
            self._offer_listed(scorer, some, states, targets, nats, found)
        for start in range(0, len(spelled), _TOGETHER):
            self._offer_spelled(scorer, spelled[start : start + _TOGETHER], states, found)
        return found

    def _words(
        self, owners: np.ndarray, tokens: np.ndarray, predicted: np.ndarray, usable: np.ndarray
    ) -> Iterator[_Word]:
        """Yield the words typed; one that is cut where a text or a batch ends is left out."""
        length = tokens.shape[1] - 1
        flat = tokens[:, 1:].reshape(-1)
        owner = np.repeat(owners, length)
        at = np.cumsum(predicted.reshape(-1)) - 1
        is_word, goes_on = self._vocabulary.is_word, self._goes_on
        starts = is_word[flat] | (self._subword[flat] & ~goes_on[flat])
        for place in np.flatnonzero(starts & predicted.reshape(-1)).tolist():
            end = place + 1
            if not is_word[flat[place]]:
                while end < len(flat) and owner[end] == owner[place] and goes_on[flat[end]]:
                    end += 1
                if end == len(flat) or owner[end] != owner[place] or not flat[end]:
                    continue
            if usable[at[place]]:
                row, column = divmod(place, length)
                ids = tuple(flat[place:end].tolist())
                text = tuple(tokens[row, : column + 1].tolist())
                yield _Word(int(at[place]), text, self._tokenizer.decode(ids), ids)

    def _offer_listed(
        self,
        scorer: Scorer,
        words: list[_Word],
        states: torch.Tensor,
        targets: np.ndarray,
        nats: np.ndarray,
        found: Offered,
    ) -> None:
        """Find the first letter after which fewer than three words, of either kind, are ahead."""
        at = np.array([word.at for word in words])
        read = reader_of(scorer, self._speller)
        ahead = self._completions.ahead(scorer, states[torch.from_numpy(at)], targets[at])
        ahead = np.concatenate([found.place[at][:, None], ahead], axis=1)  # (m, 1 + P)
        typed = [0] * len(words)
        waiting = list(range(len(words)))
        found.place[at] = SUGGESTIONS
        while waiting:
            for i in waiting:
                typed[i] = _first_shown(ahead[i], typed[i], len(words[i].word))
            asked = [i for i in waiting if typed[i] < len(words[i].word)]
            wanted = [
                Wanted(words[i].text, words[i].word[: typed[i]], -float(nats[at[i]]) + _SLACK)
                for i in asked
            ]
            better = self._speller.compose(read, wanted, SUGGESTIONS)
            ranks = [int(ahead[i, typed[i]]) + len(b) for i, b in zip(asked, better, strict=True)]
            waiting = []
            for i, rank in zip(asked, ranks, strict=True):
                if rank >= SUGGESTIONS:
                    typed[i] += 1
                    waiting.append(i)
                elif typed[i] == 0:
                    found.place[at[i]] = rank
        found.typed[at] = typed

    def _offer_spelled(
        self, scorer: Scorer, words: list[_Word], states: torch.Tensor, found: Offered
    ) -> None:
        """Find the first letter after which a composed word is among the best three."""
        read = reader_of(scorer, self._speller)
        before = states[torch.tensor([word.at for word in words])]
        order = torch.from_numpy(self._completions.order)
        scores = scorer.scores(before, order).double().cpu()
        listed = (scores - log_total(scorer, before).cpu()[:, None]).numpy()  # (m, W)
        own = [self._speller.log_probability(read, word.text, word.ids) for word in words]
        waiting = list(range(len(words)))
        for word in words:
            found.typed[word.at] = found.spelled[word.at] = len(word.word)
        letters = 0
        while waiting := [i for i in waiting if letters < len(words[i].word)]:
            tops = {i: self._best_listed(listed[i], words[i].word[:letters]) for i in waiting}
            asked = [i for i in waiting if own[i] > tops[i][-1]]
            wanted = [
                Wanted(words[i].text, words[i].word[:letters], own[i] - _SLACK) for i in asked
            ]
            composed = self._speller.compose(read, wanted, SUGGESTIONS)
            for i, better in zip(asked, composed, strict=True):
                names = [one.word for one in better]
                if words[i].word not in names:
                    continue
                rank = int((tops[i] >= own[i]).sum()) + names.index(words[i].word)
                if rank < SUGGESTIONS:
                    found.typed[words[i].at] = letters
                    if letters == 0:
                        found.place[words[i].at] = rank
                    waiting.remove(i)
            letters += 1

    def _best_listed(self, row: np.ndarray, letters: str) -> np.ndarray:
        """Return the log-probabilities of the best three listed words that begin so, falling."""
        low = bisect_left(self._sorted, letters)
        high = bisect_left(self._sorted, letters + LAST, lo=low)
        best = -np.sort(-_largest(row[low:high]))
        return np.concatenate([best, np.full(SUGGESTIONS - len(best), -np.inf)])


def _first_shown(ahead: np.ndarray, typed: int, letters: int) -> int:
    """Return after how many letters, from ``typed`` on, fewer than three listed words are ahead.

    Args:
        ahead: int64[1 + P], listed words ahead before any letter, after the first and so on.
        letters: of the whole word; returned where three are always ahead.
    """
    shown = np.flatnonzero(ahead[typed:letters] < SUGGESTIONS)
    return typed + int(shown[0]) if len(shown) else letters


def _largest(values: np.ndarray) -> np.ndarray:
    if len(values) <= SUGGESTIONS:
        return values
    return np.partition(values, -SUGGESTIONS)[-SUGGESTIONS:]
