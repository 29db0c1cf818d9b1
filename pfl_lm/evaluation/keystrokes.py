"""Keystrokes saved by a keyboard that shows three suggestions.

The keyboard shows the three most probable words, before any letter and after each one among the
words that begin with the letters typed so far, the typed word itself included. A user who sees
the wanted word taps it: one keystroke, and the space after it is free. A word of ``n`` letters
that is shown after ``p`` of them costs ``p + 1`` keystrokes; one that is never shown, ``n + 1``
with its space. Savings are ``n - p``; the share saved is the sum of these over the sum of
``n + 1``. The user is perfect (sees every suggestion, never mistypes), so this is the potential
of the model, as is usual in the field, not what people gain.

Source: keystroke savings as in Trnka & McCoy 2008, "Evaluating word prediction: framing keystroke
savings" (ACL-08 short papers), for its keys ÷ keys without prediction; the suggestion bar of
three next words and completions as in Hard et al. 2018, "Federated learning for mobile keyboard
prediction", section 1.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from pfl_lm.evaluation.interfaces import Scorer

SUGGESTIONS = 3
_ROWS = 256  # predictions scored at once against one initial letter's words
_LONGEST_PREFIX = 24  # nobody reads the bar after so many letters; bounds the two tables below


@dataclass(frozen=True)
class Completions:
    """Which words complete which letters: the vocabulary in lexicographic order.

    Words that share a prefix are neighbours there, so that counting the better ones among them
    is a difference of two cumulative counts.

    Attributes:
        order: int64[W], ids of the words that may be suggested, lexicographically.
        letters: int64[V], length of each word in characters.
        first, last: int64[V, P]; the words that share the first ``p + 1`` letters of word ``w``
            are ``order[first[w, p]:last[w, p]]``. Empty for words that are never suggested.
    """

    order: np.ndarray
    letters: np.ndarray
    first: np.ndarray
    last: np.ndarray

    @classmethod
    def of(cls, words: Sequence[str], never_suggested: np.ndarray) -> Completions:
        """Sort a vocabulary given by id; O(V log V), once per evaluation."""
        letters = np.array([len(word) for word in words], dtype=np.int64)
        excluded = set(never_suggested.tolist())
        order = np.array(
            sorted((i for i in range(len(words)) if i not in excluded), key=words.__getitem__),
            dtype=np.int64,
        )
        depth = max(1, min(_LONGEST_PREFIX, int(letters.max(initial=1))))
        characters = np.array([words[i][:depth] for i in order] or [""], dtype=f"<U{depth}")
        spelled = characters.view(np.uint32).reshape(-1, depth)  # (W, P), zero beyond the end
        changed = np.logical_or.accumulate(spelled[1:] != spelled[:-1], axis=1)  # (W - 1, P)
        first = np.zeros((len(words), depth), dtype=np.int64)
        last = np.zeros_like(first)
        for prefix in range(depth if len(order) else 0):
            starts = np.concatenate([[0], np.flatnonzero(changed[:, prefix]) + 1])
            ends = np.append(starts[1:], len(order))
            first[order, prefix] = np.repeat(starts, ends - starts)
            last[order, prefix] = np.repeat(ends, ends - starts)
        return cls(order, letters, first, last)

    def letters_typed(
        self, scorer: Scorer, states: torch.Tensor, targets: np.ndarray
    ) -> np.ndarray:
        """Count the letters typed before each word is among the three shown.

        For words that were not shown before any letter: the answer is at least 1, and the
        word's whole length when it is never shown. The words of one initial letter are scored
        together, so that only that letter's part of the vocabulary is computed again.

        Args:
            scorer: the model; see ``pfl_lm.evaluation.evaluate.Scorer``.
            states: (m, ...), what the scorer knows before each of the words.
            targets: int64[m], the words that were typed; all of them may be suggested.

        Returns:
            int64[m].
        """
        typed = self.letters[targets].copy()
        several = np.flatnonzero(typed > 1)  # a tap is no cheaper than a single letter's space
        for rows in self._by_initial(targets, several):
            shown = self._ahead(scorer, states[rows], targets[rows]) < SUGGESTIONS  # (m, P)
            letters = self.letters[targets[rows]]
            first = np.minimum(shown.argmax(axis=1) + 1, letters)
            typed[rows] = np.where(shown.any(axis=1), first, letters)
        return typed

    def ahead(self, scorer: Scorer, states: torch.Tensor, targets: np.ndarray) -> np.ndarray:
        """Count the words ahead of each word after its first letter, its second and so on.

        Args:
            scorer, states, targets: as of ``letters_typed``.

        Returns:
            int32[m, P].
        """
        counts = np.zeros((len(targets), self.first.shape[1]), dtype=np.int32)
        for rows in self._by_initial(targets, np.arange(len(targets))):
            counts[rows] = self._ahead(scorer, states[rows], targets[rows])
        return counts

    def _by_initial(self, targets: np.ndarray, rows: np.ndarray) -> Iterator[np.ndarray]:
        """Yield rows whose targets share their first letter, a few at a time."""
        rows = rows[np.argsort(self.first[targets[rows], 0], kind="stable")]
        initials = self.first[targets[rows], 0]
        for group in np.split(rows, np.flatnonzero(np.diff(initials)) + 1):
            for start in range(0, len(group), _ROWS):
                yield group[start : start + _ROWS]

    def _ahead(self, scorer: Scorer, states: torch.Tensor, targets: np.ndarray) -> np.ndarray:
        """Do the work of ``ahead`` for targets that share their first letter."""
        begin, end = self.first[targets[0], 0], self.last[targets[0], 0]
        words = torch.from_numpy(self.order[begin:end])
        scores = scorer.scores(states, words).cpu()  # (m, k), lexicographic
        wanted = torch.from_numpy(targets)[:, None]
        own = scores[words[None, :] == wanted][:, None]
        better = (scores > own) | ((scores == own) & (words[None, :] < wanted))
        ahead = torch.zeros((len(targets), len(words) + 1), dtype=torch.int32)
        torch.cumsum(better, dim=1, dtype=torch.int32, out=ahead[:, 1:])
        first = torch.from_numpy(self.first[targets] - begin)
        last = torch.from_numpy(self.last[targets] - begin)
        counts: np.ndarray = (ahead.gather(1, last) - ahead.gather(1, first)).numpy()
        return counts
