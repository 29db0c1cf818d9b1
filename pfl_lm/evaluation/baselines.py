"""Public baselines: what a keyboard predicts that learnt nothing from its users.

Both are scorers (``pfl_lm.evaluation.evaluate.Scorer``), fitted on public text only.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import scipy.sparse as sparse
import torch

_BLOCK = 4_000_000  # word pairs counted before they are merged into the table


class UnigramScorer:
    """Every word as often as it is in public text, whatever came before."""

    def __init__(self, probabilities: np.ndarray) -> None:
        """Take float64[V], all positive."""
        if not (probabilities > 0).all():
            raise ValueError("unigram probabilities must all be positive; smooth them first")
        self._log = torch.from_numpy(np.log(probabilities)).float()

    def states(self, inputs: np.ndarray) -> torch.Tensor:
        """Remember nothing: an empty state per token, (n, T, 0)."""
        return torch.empty((*inputs.shape, 0))

    def scores(self, states: torch.Tensor, words: slice | torch.Tensor) -> torch.Tensor:
        """Return log p(word), the same for each state, (m, k)."""
        return self._log[words].repeat(len(states), 1)


class KneserNeyBigram:
    """The next word from the last one: interpolated Kneser-Ney.

    With c(u, w) the times that w followed u, N₁₊ the number of distinct words counted, D the
    absolute discount of pairs and D′ that of their kinds::

        p(w | u)  = max(c(u, w) − D, 0) / c(u) + D · N₁₊(u •) / c(u) · p₁(w)
        p₁(w)     = max(N₁₊(• w) − D′, 0) / N₁₊(• •) + D′ · #{w: N₁₊(• w) > 0} / N₁₊(• •) · base(w)

    and p(w | u) = p₁(w) where u was never seen. The discounts are estimated as n₁ / (n₁ + 2 n₂)
    from the number of pairs (words) with count one and two.

    Source: Kneser & Ney 1995, "Improved backing-off for m-gram language modeling"; the
    interpolated form and the estimate as in Chen & Goodman 1999, "An empirical study of smoothing
    techniques for language modeling", equations 4 to 6 and section 3.
    """

    def __init__(
        self,
        counts: sparse.csr_array,
        base: np.ndarray,
        discount: float | None = None,
        unigram_discount: float | None = None,
    ) -> None:
        """Smooth a table of pair counts.

        Args:
            counts: (V, V), how often the column's word followed the row's.
            base: float64[V], positive, sums to one: what is known about words never seen.
            discount, unigram_discount: D and D′, in [0, 1]; estimated when absent.

        Raises:
            ValueError: there is not one pair, or a discount is out of range.
        """
        if counts.nnz == 0:
            raise ValueError("the public text holds no pair of words: a bigram needs more text")
        kinds = np.bincount(counts.indices, minlength=len(base)).astype(np.float64)  # N₁₊(• w)
        discount = _discount(counts.data) if discount is None else discount
        lower = _discount(kinds) if unigram_discount is None else unigram_discount
        for name, value in (("discount", discount), ("unigram_discount", lower)):
            if not 0 <= value <= 1:
                raise ValueError(f"{name} = {value} must lie in [0, 1]")
        discounted = np.maximum(kinds - lower, 0)
        unseen = 1 - discounted.sum() / kinds.sum()
        self._unigram = torch.from_numpy(discounted / kinds.sum() + unseen * base).float()
        followed = np.asarray(counts.sum(axis=1), dtype=np.float64).ravel()  # c(u)
        repeats = np.diff(counts.indptr)
        shares = np.maximum(counts.data - discount, 0) / np.repeat(followed, repeats)
        self._pairs = sparse.csr_array(
            (shares.astype(np.float32), counts.indices, counts.indptr), shape=counts.shape
        )
        spare = np.where(followed > 0, discount * repeats / np.maximum(followed, 1), 1.0)
        self._spare = torch.from_numpy(spare).float()

    @classmethod
    def fit(
        cls, texts: Iterable[np.ndarray], base: np.ndarray, never_predicted: tuple[int, ...] = ()
    ) -> KneserNeyBigram:
        """Count the pairs of a public token stream and smooth them.

        Args:
            texts: int arrays of token ids; no pair spans two of them.
            base: float64[V], the public unigram.
            never_predicted: tokens not to be counted as a next word: <pad> and <s>.
        """
        return cls(count_pairs(texts, len(base), never_predicted), base)

    def states(self, inputs: np.ndarray) -> torch.Tensor:
        """Remember the last word: int64 (n, T)."""
        return torch.from_numpy(np.ascontiguousarray(inputs, dtype=np.int64))

    def scores(self, states: torch.Tensor, words: slice | torch.Tensor) -> torch.Tensor:
        """Return log p(word | last word), (m, k)."""
        last, row = np.unique(states.numpy(), return_inverse=True)
        columns = words if isinstance(words, slice) else words.numpy()
        seen = torch.from_numpy(self._pairs[last][:, columns].toarray())
        spare = self._spare[torch.from_numpy(last)][:, None]
        return (seen + spare * self._unigram[words]).log_()[torch.from_numpy(row)]


def count_pairs(
    texts: Iterable[np.ndarray], vocabulary_size: int, never_predicted: tuple[int, ...] = ()
) -> sparse.csr_array:
    """Count which word follows which, (V, V); memory grows with the distinct pairs only."""
    shape = (vocabulary_size, vocabulary_size)
    counts = sparse.csr_array(shape, dtype=np.int64)
    skipped = np.zeros(vocabulary_size, dtype=bool)
    skipped[list(never_predicted)] = True
    for tokens in _blocks(texts):
        pairs = tokens[:-1], tokens[1:]
        keep = (tokens[:-1] >= 0) & (tokens[1:] >= 0)
        keep[keep] &= ~skipped[tokens[1:][keep]]
        first, second = pairs[0][keep], pairs[1][keep]
        ones = np.ones(len(first), dtype=np.int64)
        counts = counts + sparse.coo_array((ones, (first, second)), shape=shape).tocsr()
    counts.sort_indices()
    return counts


def _blocks(texts: Iterable[np.ndarray]) -> Iterable[np.ndarray]:
    """Join texts into long arrays with −1 between them, which is no word."""
    gap = np.array([-1])
    held: list[np.ndarray] = []
    size = 0
    for text in texts:
        held += [np.asarray(text, dtype=np.int64), gap]
        size += len(text) + 1
        if size >= _BLOCK:
            yield np.concatenate(held)
            held, size = [], 0
    if held:
        yield np.concatenate(held)


def _discount(counts: np.ndarray) -> float:
    """Estimate an absolute discount from the counts of counts."""
    once, twice = int((counts == 1).sum()), int((counts == 2).sum())
    return once / (once + 2 * twice) if once else 0.5
