"""Words that pieces spell: what a keyboard offers beside the words of its list.

A vocabulary with subwords spells a word that it lacks by several ids: one that begins a word
(``▁пере``), then pieces that go on with it. A composed word is a sequence of pieces that the
tokenizer itself makes of the word's letters; any other sequence of the same letters counts for
nothing. Its probability is that of its pieces and of the word's end after them::

    p(w) = Π p(piece | text, pieces before) · (1 − Σ p(piece that goes on | text, all its pieces))

The probability of a listed word is that of its id, so both can be ranked together.

The search keeps the ``BEAM`` likeliest beginnings that agree with the letters typed, and reads all
of them at once: one step of the model for each further piece. A beginning is at least as likely as
every word that goes on from it, so a beginning less likely than the third best word known
(``floor``) is dropped. A higher floor changes nothing about the words above it.

Legend: n texts, S subwords, V ids.
"""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import islice
from typing import Protocol, runtime_checkable

import numpy as np
import torch

from pfl_lm.evaluation.interfaces import Scorer
from pfl_lm.text.letters import same_letters
from pfl_lm.text.normalisation import beginnings, is_word
from pfl_lm.text.tokenizer import Tokenizer

BEAM = 8  # beginnings of words that are gone on with at once
MOST_PIECES = 6  # of a composed word
_TEXTS = 64  # read at once
LAST = chr(0x10FFFF)  # sorts behind every letter
_BYTE = re.compile("<0x[0-9A-F]{2}>")
_BEGINS = "\u2581"  # sentencepiece's mark of a piece that begins a word

Reader = Callable[[Sequence[tuple[int, ...]]], np.ndarray]
"""Reads n texts; returns the log-probability of each subword after each, float32[n, S]."""


@dataclass(frozen=True)
class Composed:
    """A word, the ids that spell it, and the logarithm of its probability."""

    word: str
    ids: tuple[int, ...]
    log_probability: float


@dataclass(frozen=True)
class Wanted:
    """What a search is for.

    Attributes:
        text: ids of the text before the word, ``<s>`` first.
        letters: what was typed of the word, as the vocabulary reads it; capitals do not count.
        floor: the least log-probability that is of use.
    """

    text: tuple[int, ...]
    letters: str
    floor: float = -np.inf


class Speller:
    """The pieces of a vocabulary, and the words that they spell."""

    def __init__(self, tokenizer: Tokenizer, blocked: Collection[str] = ()) -> None:
        """Take a tokenizer with subwords.

        Args:
            blocked: letters, as ``text.letters.same_letters`` writes them, that no composed word
                may have.
        """
        self._tokenizer, self._blocked = tokenizer, frozenset(blocked)
        self.ids = np.flatnonzero([kind == "subword" for kind in tokenizer.kinds])
        pieces = [tokenizer.words[i] for i in self.ids]
        begins = np.array([piece.startswith(_BEGINS) for piece in pieces])
        raw = np.array([_BYTE.fullmatch(piece) is not None for piece in pieces])
        self.goes_on = np.flatnonzero(~begins)  # places among the subwords, bytes among them
        self._letters = [piece.removeprefix(_BEGINS) for piece in pieces]
        self._usable = {
            True: self._by_letters(np.flatnonzero(begins)),
            False: self._by_letters(np.flatnonzero(~begins & ~raw)),
        }
        self.fitting = lru_cache(maxsize=1 << 14)(self._fitting)

    @classmethod
    def of(cls, tokenizer: object, blocked: Collection[str] = ()) -> Speller | None:
        """Return the speller of a tokenizer; None where it has no subwords."""
        spells = isinstance(tokenizer, Tokenizer) and "subword" in tokenizer.kinds
        return cls(tokenizer, blocked) if spells else None  # type: ignore[arg-type]

    def letters(self, place: int) -> str:
        """Return the letters that a piece adds to a word."""
        return self._letters[place]

    def typed(self, letters: str) -> str:
        """Return letters typed of a word as the vocabulary reads them."""
        return as_read(self._tokenizer, letters)

    def _by_letters(self, places: np.ndarray) -> tuple[list[str], np.ndarray]:
        """Return the letters of some pieces in lower case, sorted, and their places in order."""
        small = [letters.lower() for letters in self._letters]
        order = sorted(places.tolist(), key=small.__getitem__)
        return [small[place] for place in order], np.array(order, dtype=np.int64)

    def _fitting(self, begins: bool, rest: str) -> np.ndarray:
        """Return the places of the pieces that agree with letters still to come, int64[k]."""
        letters, places = self._usable[begins]
        found: list[int] = []
        for whole in beginnings(rest):
            found += range(bisect_left(letters, whole), bisect_left(letters, whole + LAST))
        for end in range(len(rest)):  # pieces that are a part of these letters
            found += range(bisect_left(letters, rest[:end]), bisect_right(letters, rest[:end]))
        return places[found]

    def log_end(self, row: np.ndarray) -> float:
        """Return the log-probability that no piece goes on, from a row of a reader."""
        return float(np.log(max(1e-300, 1.0 - np.exp(row[self.goes_on]).sum())))

    def may_show(self, word: str, ids: tuple[int, ...]) -> bool:
        """Say whether these ids are the word's own spelling, and no list blocks it."""
        own = is_word(word) and tuple(self._tokenizer.encode(word)) == ids
        return own and same_letters(word) not in self._blocked

    def shown(self, word: str) -> str:
        """Return a word as a person is shown it inside of a sentence."""
        return self._tokenizer.forms.get(word, word)

    def compose(self, read: Reader, wanted: Sequence[Wanted], count: int) -> list[list[Composed]]:
        """Return the likeliest words that pieces spell above each floor, at most ``count``."""
        searches = [_Search(self, one, count) for one in wanted]
        while texts := [text for search in searches for text in search.texts()]:
            rows = iter(read(texts))
            for search in searches:
                search.go_on(list(islice(rows, len(search.beam))))
        return [search.found for search in searches]

    def log_probability(self, read: Reader, text: tuple[int, ...], ids: tuple[int, ...]) -> float:
        """Return the log-probability of one word after a text."""
        rows = read([text + ids[:k] for k in range(len(ids) + 1)])
        places = np.searchsorted(self.ids, ids)
        return float(rows[np.arange(len(ids)), places].sum(dtype=np.float64)) + self.log_end(
            rows[-1]
        )


def as_read(tokenizer: Tokenizer, letters: str) -> str:
    """Return letters typed of a word as a vocabulary reads them, in lower case."""
    return "".join(tokenizer.normalisation.pieces(letters)).lower()


@dataclass(frozen=True)
class _Beginning:
    log_probability: float
    letters: str
    ids: tuple[int, ...]


@dataclass
class _Search:
    """One beam, from piece to piece."""

    speller: Speller
    wanted: Wanted
    count: int
    beam: list[_Beginning] = field(default_factory=lambda: [_Beginning(0.0, "", ())])
    found: list[Composed] = field(default_factory=list)

    def texts(self) -> list[tuple[int, ...]]:
        return [self.wanted.text + beginning.ids for beginning in self.beam]

    def go_on(self, rows: list[np.ndarray]) -> None:
        """End the beginnings that may end, and add a piece to those that may go on."""
        longer: list[tuple[float, _Beginning, int]] = []
        for beginning, row in zip(self.beam, rows, strict=True):
            rest = self.wanted.letters.lower()[len(beginning.letters.lower()) :]
            if beginning.letters and not rest:
                self._end(beginning, row)
            if len(beginning.ids) < MOST_PIECES:
                places = self.speller.fitting(not beginning.ids, rest)
                likely = beginning.log_probability + row[places]
                best = _best(likely, BEAM)
                longer += [(likely[i], beginning, int(places[i])) for i in best]
        longer.sort(key=lambda found: -found[0])
        self.beam = [
            _Beginning(
                float(likely),
                before.letters + self.speller.letters(place),
                (*before.ids, int(self.speller.ids[place])),
            )
            for likely, before, place in longer[:BEAM]
            if likely > self._floor
        ]

    def _end(self, beginning: _Beginning, row: np.ndarray) -> None:
        likely = beginning.log_probability + self.speller.log_end(row)
        if likely > self._floor and self.speller.may_show(beginning.letters, beginning.ids):
            self.found.append(Composed(beginning.letters, beginning.ids, likely))
            self.found.sort(key=lambda word: -word.log_probability)
            del self.found[self.count :]

    @property
    def _floor(self) -> float:
        full = len(self.found) == self.count
        return max(self.wanted.floor, self.found[-1].log_probability if full else -np.inf)


def _best(likely: np.ndarray, count: int) -> np.ndarray:
    """Return the places of the largest values, in no order."""
    if len(likely) <= count:
        return np.arange(len(likely))
    return np.argpartition(-likely, count)[:count]


@runtime_checkable
class SummingScorer(Scorer, Protocol):
    """A scorer with a quick way to the sum of all words' powers, and a limit to what it reads."""

    @property
    def longest(self) -> int | None:
        """Return how many ids it reads at once, at most; None: any number."""
        ...

    def log_total(self, states: torch.Tensor) -> torch.Tensor:
        """Return its logarithm after states (m, ...), float64[m]."""
        ...


def log_total(scorer: Scorer, states: torch.Tensor) -> torch.Tensor:
    """Return the logarithm of the sum of all words' powers after states (m, ...), float64[m]."""
    if isinstance(scorer, SummingScorer):
        return scorer.log_total(states)
    return torch.logsumexp(scorer.scores(states, slice(None)).double(), dim=1)


def reader_of(scorer: Scorer, speller: Speller) -> Reader:
    """Return what reads texts with a model; it keeps every row, for the next letter's search."""
    longest = scorer.longest if isinstance(scorer, SummingScorer) else None
    rows: dict[tuple[int, ...], np.ndarray] = {}
    ids = slice(int(speller.ids[0]), int(speller.ids[-1]) + 1)  # a tokenizer's last ones

    def read(texts: Sequence[tuple[int, ...]]) -> np.ndarray:
        new = [text for text in dict.fromkeys(texts) if text not in rows]
        for start in range(0, len(new), _TEXTS):
            some = new[start : start + _TEXTS]
            rows.update(zip(some, _read(scorer, ids, some, longest), strict=True))
        return np.stack([rows[text] for text in texts])

    return read


def _read(
    scorer: Scorer, ids: slice, texts: Sequence[tuple[int, ...]], longest: int | None
) -> np.ndarray:
    cut = [text if longest is None else text[-longest:] for text in texts]
    ends = np.array([len(text) for text in cut]) - 1
    inputs = np.zeros((len(cut), ends.max() + 1), dtype=np.int64)  # <pad> behind the text
    for row, text in zip(inputs, cut, strict=True):
        row[: len(text)] = text
    states = scorer.states(inputs)[torch.arange(len(cut)), torch.from_numpy(ends)]
    scores = scorer.scores(states, ids).double().cpu()
    logs = scores - log_total(scorer, states).cpu()[:, None]
    read: np.ndarray = logs.float().numpy()
    return read
