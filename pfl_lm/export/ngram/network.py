"""The trained network as an n-gram model: its own probabilities, averaged over histories.

The network's text is sampled from the network. Every position of it is a history, and the n-gram
probability of a word after a context is the mean of what the network says after all histories
that end in that context. That is the n-gram closest to the network in relative entropy. A history
tells the probability of all words and not of one, which is why few histories are enough. What is
computed from a model's parameters and public text alone is post-processing: it costs no ε.

Source: Suresh, Roark, Riley & Schogol 2019, "Approximating probabilistic models as weighted
finite automata", arXiv:1905.08701, sections 3.1 (the mean minimises the divergence) and 4.2
(counts are expectations under samples of the source).

Legend: N histories, P width of hidden vectors, V words, m histories of one last word.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
import torch

from pfl_lm.export.ngram.backoff import NEVER_PREDICTED, BackoffModel
from pfl_lm.export.ngram.tables import Table, model_of
from pfl_lm.models.file import Model
from pfl_lm.models.models import hidden_of, longest_text, merge, scores
from pfl_lm.text.tokenizer import Tokenizer

TEXTS = 256  # sampled side by side: (256, V) scores are made at each word
BLOCK = 512  # histories whose (n, V) probabilities are held
LEAST_TOLD = 1e-3  # nats over all histories: n-grams that tell less are not held
CANDIDATES = 1_000_000  # n-grams of one length that are held
PRIOR = 1.0  # histories' worth of the pair's row that a triple's row begins with
LEAST_CHANCE = 3e-4  # a triple's words below it are left to the pair
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Histories:
    """What the network read and knew, sorted by the last word and the one before.

    Attributes:
        before, last: int64[N], the last two words; −1 where a message begins with ``last``, −2 for
            a history that was made up to have one of each word.
        hidden: float32[N, P].
        unigram: float64[V], mean probability of each word over the sampled histories.
        sampled: histories that were sampled.
    """

    before: np.ndarray
    last: np.ndarray
    hidden: np.ndarray
    unigram: np.ndarray
    sampled: int


class Network:
    """A model's next-word probabilities; blocked words' are given to ``<unk>``."""

    def __init__(self, model: Model, hidden: tuple[int, ...] = ()) -> None:
        self.spec, self.parameters = merge(model.spec, model.parameters)
        self.hidden = np.array(hidden, np.int64)

    def read(self, words: np.ndarray) -> torch.Tensor:
        """Return the hidden vectors after the last words of texts, int64[n, T] → (n, P)."""
        longest = longest_text(self.spec) or words.shape[1]
        return hidden_of(self.spec, self.parameters, words[:, -longest:])[:, -1]

    def read_all(self, text: np.ndarray) -> torch.Tensor:
        """Return the hidden vectors after each word of one text, int64[1, T] → (T, P)."""
        return hidden_of(self.spec, self.parameters, text)[0]

    @torch.inference_mode()
    def chances(self, vectors: torch.Tensor) -> torch.Tensor:
        """Return the probabilities of all words, (n, V)."""
        logits = scores(self.spec, self.parameters, vectors)
        logits[:, list(NEVER_PREDICTED)] = -torch.inf
        found = logits.softmax(-1)
        if len(self.hidden):
            blocked = torch.from_numpy(self.hidden)
            found[:, Tokenizer.unk_id] += found[:, blocked].sum(-1)
            found[:, blocked] = 0.0
        return found


@torch.inference_mode()
def sample(
    network: Network, words: int, window: int, seed: int = 0, progress: Progress | None = None
) -> Histories:
    """Let the network write about ``words`` words, in texts of ``window``, and keep what it knew.

    The same model and seed give the same histories. After ``</s>`` comes ``<s>``.
    """
    draw = torch.Generator().manual_seed(seed)
    turns = max(1, -(-words // (TEXTS * window)))
    unigram = np.zeros(network.spec.vocabulary_size)
    texts, hidden = [], []
    for turn in range(turns):
        written = np.full((TEXTS, 1), Tokenizer.bos_id)
        for _ in range(window):
            vectors = network.read(written)
            chances = network.chances(vectors)
            ends = written[:, -1] == Tokenizer.eos_id
            unigram += chances.numpy()[~ends].sum(0, dtype=np.float64)
            hidden.append(vectors.numpy())
            following = _draw(chances, draw)
            written = np.hstack([written, np.where(ends, Tokenizer.bos_id, following)[:, None]])
        texts.append(written[:, :window].T)
        if progress:
            progress(turn + 1, turns)
    last = np.concatenate(texts)  # (turns · window, TEXTS), in the order of ``hidden``
    before = np.concatenate([np.vstack([np.full(TEXTS, -1), text[:-1]]) for text in texts])
    return _sorted(network, before.ravel(), last.ravel(), np.concatenate(hidden), unigram)


def _draw(chances: torch.Tensor, draw: torch.Generator) -> np.ndarray:
    """Draw a word of each row, int64[n]."""
    upto = chances.cumsum(-1)
    at = torch.rand((len(chances), 1), generator=draw) * upto[:, -1:]
    # The first word whose sum exceeds the draw has a probability above 0.
    found = torch.searchsorted(upto, at, right=True)[:, 0].clamp(max=chances.shape[1] - 1)
    return found.numpy()


def _sorted(
    network: Network, before: np.ndarray, last: np.ndarray, hidden: np.ndarray, unigram: np.ndarray
) -> Histories:
    """Leave out what nothing follows, add a history of each word that has none, and sort."""
    follows = last != Tokenizer.eos_id
    before, last, hidden = before[follows], last[follows], hidden[follows]
    before = np.where(last == Tokenizer.bos_id, -1, before)
    never = (*NEVER_PREDICTED, Tokenizer.eos_id)
    absent = np.setdiff1d(np.flatnonzero(unigram), [*last, *never])
    made_up = [hidden[:0]]
    for first in range(0, len(absent), TEXTS):
        words = absent[first : first + TEXTS]
        texts = np.stack([np.full(len(words), Tokenizer.bos_id), words], axis=1)
        made_up.append(network.read(texts).numpy())
    sampled = len(last)
    before = np.concatenate([before, np.full(len(absent), -2)])
    last = np.concatenate([last, absent])
    order = np.lexsort((before, last))
    rows = np.concatenate([hidden, *made_up])[order]
    return Histories(before[order], last[order], rows, unigram / unigram.sum(), sampled)


@dataclass
class _Best:
    """The n-grams that tell most so far: numbers, probabilities, and nats that they tell."""

    ids: list[np.ndarray] = field(default_factory=list)
    chances: list[np.ndarray] = field(default_factory=list)
    told: list[np.ndarray] = field(default_factory=list)
    held: int = 0

    def add(self, ids: np.ndarray, chances: np.ndarray, told: np.ndarray) -> None:
        self.ids.append(ids)
        self.chances.append(chances)
        self.told.append(told)
        self.held += len(ids)
        if self.held > 2 * CANDIDATES:
            self._cut()

    def _cut(self) -> None:
        told = np.concatenate(self.told)
        best = np.argsort(-told, kind="stable")[:CANDIDATES]
        self.ids = [np.concatenate(self.ids)[best]]
        self.chances = [np.concatenate(self.chances)[best]]
        self.told, self.held = [told[best]], len(best)

    def table(self) -> Table:
        if self.held > CANDIDATES:
            self._cut()
        none = [np.zeros(0, np.int64)], [np.zeros(0)]
        return Table.of(
            np.concatenate(self.ids or none[0]), np.concatenate(self.chances or none[1])
        )


@torch.inference_mode()
def fit_network(
    network: Network, histories: Histories, order: int, progress: Progress | None = None
) -> BackoffModel:
    """Return the n-gram model closest to the network on these histories.

    Of pairs and triples it lists those that tell most: a context's frequency times the divergence
    between the probability and the shorter context's.
    """
    size, best = network.spec.vocabulary_size, [_Best() for _ in range(order - 1)]
    runs = _runs(histories.last)
    for number, (first, end) in enumerate(runs):
        blocks = _Blocks(network, histories, first, end)
        for word, start, stop in _words(histories.last, first, end):
            row = sum(part.sum(0, dtype=np.float64) for _, part in blocks(start, stop))
            row = np.asarray(row) / (stop - start)
            frequency = histories.unigram[Tokenizer.eos_id if word == Tokenizer.bos_id else word]
            told = frequency * histories.sampled * _divergence(row, histories.unigram)
            near = np.flatnonzero(told > LEAST_TOLD)
            best[0].add(word * size + near, row[near], told[near])
            for before, times, mean in _means(blocks(start, stop)) if order > 2 else ():
                if before >= 0:
                    _add_triples(best[1], (before * size + word) * size, times, mean, row)
        if progress:
            progress(number + 1, len(runs))
    return model_of(histories.unigram, [found.table() for found in best])


def _runs(last: np.ndarray) -> list[tuple[int, int]]:
    """Cut sorted histories into runs of whole words: at most ``BLOCK`` long, or one word's."""
    runs: list[tuple[int, int]] = []
    for _, start, stop in _words(last, 0, len(last)):
        if runs and stop - runs[-1][0] <= BLOCK:
            runs[-1] = (runs[-1][0], stop)
        else:
            runs.append((start, stop))
    return runs


def _words(last: np.ndarray, first: int, end: int) -> list[tuple[int, int, int]]:
    """Return (word, start, stop) of every last word among sorted histories."""
    edges = first + np.flatnonzero(np.diff(last[first:end], prepend=-1, append=-1))
    return [(int(last[a]), int(a), int(b)) for a, b in pairwise(edges)]


class _Blocks:
    """The probabilities after a run's histories, (n, V) at a time; short runs are kept."""

    def __init__(self, network: Network, histories: Histories, first: int, end: int) -> None:
        self._network, self._histories, self._first = network, histories, first
        self._kept = self._compute(first, end) if end - first <= BLOCK else None

    def __call__(self, start: int, stop: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield (words before int64[n], probabilities float32[n, V])."""
        before = self._histories.before
        if self._kept is not None:
            yield before[start:stop], self._kept[start - self._first : stop - self._first]
            return
        for place in range(start, stop, BLOCK):
            end = min(place + BLOCK, stop)
            yield before[place:end], self._compute(place, end)

    def _compute(self, start: int, stop: int) -> np.ndarray:
        vectors = torch.from_numpy(self._histories.hidden[start:stop])
        return self._network.chances(vectors).numpy()


def _means(
    blocks: Iterable[tuple[np.ndarray, np.ndarray]],
) -> Iterator[tuple[int, int, np.ndarray]]:
    """Yield (word before, histories, mean probabilities) of each word before, from sorted ones."""
    held: tuple[int, int, np.ndarray] | None = None
    for before, chances in blocks:
        edges = np.flatnonzero(np.diff(before, prepend=before[0] - 1, append=before[-1] + 1))
        sums = np.add.reduceat(chances, edges[:-1], axis=0)
        for total, start, stop in zip(sums, edges[:-1], edges[1:], strict=True):
            word, times = int(before[start]), int(stop - start)
            if held and held[0] == word:
                held = word, held[1] + times, held[2] + total
                continue
            if held:
                yield held[0], held[1], held[2] / held[1]
            held = word, times, total
    if held:
        yield held[0], held[1], held[2] / held[1]


def _add_triples(best: _Best, context: int, times: int, mean: np.ndarray, row: np.ndarray) -> None:
    """Offer the words after one context of two words, whose row begins as the pair's ``row``."""
    near = np.flatnonzero(mean > LEAST_CHANCE)
    chances = (times * mean[near] + PRIOR * row[near]) / (times + PRIOR)
    told = times * _divergence(chances, row[near])
    useful = told > LEAST_TOLD
    best.add(context + near[useful], chances[useful], told[useful])


def _divergence(chances: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Return the divergence, in nats, of a word's being next or not; 0 where it never is."""
    seen = (chances > 0) & (others > 0)
    p, q = np.where(seen, chances, 0.5), np.where(seen, others, 0.5)
    p, q = np.minimum(p, 1 - 1e-9), np.minimum(q, 1 - 1e-9)
    return p * np.log(p / q) + (1 - p) * (np.log1p(-p) - np.log1p(-q))
