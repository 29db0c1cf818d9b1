"""Next-word losses with hand-derived gradients, for K devices at once.

Three objectives, one optimum: scores s(w) that are log-probabilities of the next word.

* :func:`full_softmax`, exact over V words, by blocks of words; (N, V) is at most one buffer.
* :func:`sampled_softmax`, the softmax over a target and a few candidates, each candidate's score
  corrected by the log of the probability with which it was drawn.
* :func:`noise_contrastive`, one logistic regression for each word: text against noise.

Legend: K devices, N rows of a device (batch · time), P width of hidden vectors, V words,
C candidates (shared by all devices in a step; a public draw), w words of a block.

Source: sampled softmax, Bengio and Senécal 2008, "Adaptive importance sampling to accelerate
training of a neural probabilistic language model"; NCE, Gutmann and Hyvärinen 2012 (JMLR 13),
equations 2 to 8, and for language models Mnih and Teh 2012 (arXiv:1206.6426), equations 8 to 12.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from pfl_lm.models.compiled import softmax

BLOCK_BYTES = 1 << 20  # of scores at a time: a block stays in the cache between its passes
LEAST_BLOCK = 256  # words, however many rows
KEEP_BYTES = 512 << 20  # of powers kept between the two passes; beyond it they are made twice
SAFE_SUM = (1e-30, 1e30)  # of powers: no addend that counts has been lost, none has overflowed


@dataclass(frozen=True)
class Candidates:
    """Words that stand in for the vocabulary in one step.

    Args:
        words: int64[C], distinct.
        log_weight: float32[C]. Sampled softmax: −log of each word's probability of being here.
            NCE: log of the expected number of noise words, log(ν p_noise(w)).
        counts: float32[C], NCE only: how often the noise gave the word.
        inclusion: float32[C], the probability with which the payload includes the word's row: the
            factor on a candidate's slope where it goes into its row and bias
            (``devices/output``). None: 1.
    """

    words: np.ndarray
    log_weight: np.ndarray
    counts: np.ndarray
    inclusion: np.ndarray | None = None


def draw_for_softmax(
    count: int,
    words: np.ndarray,
    inclusion: np.ndarray | None,
    unigram: np.ndarray,
    draw: np.random.Generator,
) -> Candidates:
    """Draw ``count`` of ``words`` without replacement, likelier the more frequent.

    Args:
        words: int64[k], the round's rows, or all words.
        inclusion: float64[k], probability with which each was put among ``words``; None: 1.
        unigram: float64[V].

    The draw is that of the payload's rows: a word of probability q arrives at an Exp(q) time, the
    earliest are taken, and given the first time missed, τ, each was taken with probability
    1 − exp(−q τ). A sum over candidates divided by these probabilities is unbiased.
    """
    travels = np.ones(len(words)) if inclusion is None else inclusion
    known = travels
    if count < len(words):
        rate = unigram[words]
        arrival = draw.exponential(size=len(words)) / rate
        order = np.argpartition(arrival, count)
        missed = arrival[order[count]]
        taken = np.sort(order[:count])
        words, travels = words[taken], travels[taken]
        known = travels * -np.expm1(-rate[taken] * missed)
    return Candidates(
        words,
        -np.log(known).astype(np.float32),
        np.ones(len(words), dtype=np.float32),
        None if inclusion is None else travels.astype(np.float32),
    )


def draw_for_nce(
    count: int, words: np.ndarray, unigram: np.ndarray, draw: np.random.Generator
) -> Candidates:
    """Draw ``count`` noise words from the unigram over ``words``, independently, with replacement.

    With ``count`` at least as large as ``words``, nothing is drawn: every word takes part with
    its expected count, which is the noise of infinitely many draws at the same ν.
    """
    noise = unigram[words] / unigram[words].sum()
    if count >= len(words):
        chosen, counts = np.arange(len(words)), count * noise
    else:
        chosen, counts = np.unique(
            np.searchsorted(np.cumsum(noise)[:-1], draw.random(count), side="right"),
            return_counts=True,
        )
    expected = np.log(count * noise[chosen])
    return Candidates(words[chosen], expected.astype(np.float32), counts.astype(np.float32))


def sampled_softmax(
    target: Tensor, scores: Tensor, log_weight: Tensor, hits: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Softmax cross-entropy against importance-weighted candidates.

    Loss: log(exp s(t) + Σ_{c ≠ t} exp s(c) / π(c)) − s(t), with π(c) the probability of drawing c.
    The sum in the logarithm is an unbiased estimate of the partition function; the loss and its
    gradient are consistent, with a bias that falls as 1/C. All words, π = 1: the full softmax.

    Args:
        target: (K, N) scores of the targets.
        scores: (K, N, C) scores of the candidates; overwritten by their gradient.
        log_weight: (C,) −log π.
        hits: (h,) flat positions in ``scores`` where the candidate is the row's own target.

    Returns:
        Loss (K, N); its gradient by the target's score (K, N); by the candidates' scores.
    """
    scores.add_(log_weight).view(-1)[hits] = -torch.inf
    top = torch.maximum(scores.amax(-1), target)  # (K, N)
    scores.sub_(top.unsqueeze(-1)).exp_()
    own = torch.exp(target - top)
    total = scores.sum(-1).add_(own)
    loss = total.log() + top - target
    return loss, own / total - 1, scores.div_(total.unsqueeze(-1))


def noise_contrastive(
    target: Tensor,
    target_log_noise: Tensor,
    scores: Tensor,
    log_noise: Tensor,
    counts: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Tell the target from ν noise words by their scores alone.

    Loss: −log σ(s(t) − log ν p(t)) − Σ_c n(c) log(1 − σ(s(c) − log ν p(c))) with p the noise
    distribution and n(c) how often it gave c. Each word's optimum is its own: s(w) = log p(w | x),
    normalised without a partition function, whichever other words take part; so rows may change
    every round. As ν → ∞ over all words, the gradient of a normalised model tends to the
    softmax's.

    A target outside the noise's support has ``target_log_noise`` = −inf: it takes no part (a
    positive that can never be a negative would grow without bound), its row's noise words do.

    Args:
        target: (K, N) scores of the targets.
        target_log_noise: (K, N) log ν p(t), or −inf.
        scores: (K, N, C) scores of the noise words; overwritten by their gradient.
        log_noise: (C,) log ν p(c).
        counts: (C,) n(c).

    Returns:
        Loss (K, N); its gradient by the target's score (K, N); by the noise words' scores.
    """
    part = torch.isfinite(target_log_noise)
    margin = torch.where(part, target - target_log_noise, torch.inf)
    scores.sub_(log_noise)
    loss = F.softplus(-margin) + F.softplus(scores) @ counts
    return loss, -torch.sigmoid(-margin), scores.sigmoid_().mul_(counts)


def full_softmax(
    vectors: Tensor,
    table: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    weight: Tensor,
    grad_out: tuple[Tensor | None, Tensor | None] = (None, None),
    rate: float = 1.0,
    scratch: Tensor | None = None,
    precision: torch.dtype = torch.float32,
) -> tuple[Tensor, Tensor]:
    """Exact softmax cross-entropy over all words for one device.

    Blocks of words pass through the cache once: scores, powers, their sum, and the product with
    the table that the vectors' gradient needs. A second pass over the kept powers, scaled on the
    narrow side, gives the table's gradient. Powers are of two, which processors make twice as
    fast as those of e; the factor log2 e goes into the vectors. They are taken as they are, and
    only where a sum leaves float32's safe range once more relative to each row's largest score.

    Args:
        vectors: (N, P) hidden vectors.
        table: (V, P); bias: (V,) or None.
        targets: int64 (N,).
        weight: (N,) each row's share in the loss, Σ weight · cross-entropy.
        grad_out: where ``rate`` times the gradients of table and bias are added; None: not needed.
            It may be the table itself, with rate = −learning rate: every read precedes it.
        scratch: what :func:`scratch_for` made, to spare the memory's renewal at every call.
        precision: bfloat16 makes the three large products in it; the rest stays as it is.

    Returns:
        Loss (N,), unweighted; gradient of the weighted sum by the vectors (N, P).
    """
    held = _blocks(vectors, table, bias, grad_out, scratch, precision)
    total, mixed = held.sums()
    if not bool(((total > SAFE_SUM[0]) & (total < SAFE_SUM[1])).all()):
        held.shift = held.largest_scores()
        total, mixed = held.sums()
    rows = table[targets]
    own = (vectors * rows).sum(1)
    own = own if bias is None else own + bias[targets]
    loss = (
        total.log() - own if held.shift is None else total.log() + held.shift / softmax.LOG2_E - own
    )
    share = weight.unsqueeze(1)
    per_power = share / total.unsqueeze(1)  # (N, 1)
    gradient = mixed.mul_(per_power).addcmul_(share, rows, value=-1)
    if grad_out[0] is not None or grad_out[1] is not None:
        held.add_gradients(grad_out, vectors * per_power, per_power, rate)
        _add_targets(grad_out, targets, vectors, weight, rate)
    return loss, gradient


def scratch_for(vectors: Tensor, table: Tensor, precision: torch.dtype = torch.float32) -> Tensor:
    """Make the buffer that :func:`full_softmax` keeps powers in, for so many rows and words."""
    rows, words = len(vectors), len(table)
    if precision == torch.float32 and softmax.supports(table):
        return softmax.scratch_for(rows, table, _keeps(rows, words))
    return vectors.new_empty(words if _keeps(rows, words) else block_width(rows), rows)


def _blocks(
    vectors: Tensor,
    table: Tensor,
    bias: Tensor | None,
    grad_out: tuple[Tensor | None, Tensor | None],
    scratch: Tensor | None,
    precision: torch.dtype,
) -> _Blocks | softmax.Blocks:
    """The C kernel if it takes these tensors, else torch."""
    scratch = scratch_for(vectors, table, precision) if scratch is None else scratch
    if (
        precision == torch.float32
        and softmax.supports(table, bias, *grad_out)
        and scratch.dim() == 1
    ):
        kept = _keeps(len(vectors), len(table))
        return softmax.Blocks(vectors, table, bias, scratch, kept)
    return _Blocks(vectors, table, bias, scratch, precision)


class _Blocks:
    """Powers 2^(score · log2 e) of blocks of words, (w, N): words first, as the table lies."""

    def __init__(
        self,
        vectors: Tensor,
        table: Tensor,
        bias: Tensor | None,
        scratch: Tensor,
        precision: torch.dtype,
    ) -> None:
        rows, words = len(vectors), len(table)
        self.low = precision == torch.bfloat16
        self.table = table.bfloat16() if self.low else table
        columns = (vectors * softmax.LOG2_E).mT  # (P, N)
        self.columns = columns.bfloat16() if self.low else columns
        self.bias = None if bias is None else (bias * softmax.LOG2_E).unsqueeze(1)
        self.shift: Tensor | None = None  # (N,), taken off the scaled scores
        self.keeps, width = _keeps(rows, words), block_width(rows)
        if vectors.device.type != "cpu" and self.keeps:
            width = words  # a card has no small cache to keep a block in
        self.scratch = scratch
        self.slices = [slice(start, min(start + width, words)) for start in range(0, words, width)]

    def sums(self) -> tuple[Tensor, Tensor]:
        """Return the powers' sum over all words (N,), and powersᵀ · table (N, P)."""
        mixed = torch.zeros_like(self.columns.mT, dtype=self.scratch.dtype)
        total = mixed.new_zeros(len(mixed))
        for block in self.slices:
            powers = self._powers(block)
            total.add_(powers.sum(0))
            if self.low:
                mixed.add_(powers.mT.bfloat16() @ self.table[block])
            else:
                mixed.addmm_(powers.mT, self.table[block])
        return total, mixed

    def largest_scores(self) -> Tensor:
        """Return each row's largest scaled score (N,)."""
        return torch.stack([self._scores(block).amax(0) for block in self.slices]).amax(0)

    def add_gradients(
        self,
        grad_out: tuple[Tensor | None, Tensor | None],
        scaled: Tensor,
        share: Tensor,
        rate: float,
    ) -> None:
        """Add ``rate`` · powers · ``scaled`` (N, P), or ``share`` (N, 1) for the bias."""
        for block in self.slices:
            powers = self._where(block) if self.keeps else self._powers(block)
            if grad_out[0] is not None and self.low:
                grad_out[0][block].add_(powers.bfloat16() @ scaled.bfloat16(), alpha=rate)
            elif grad_out[0] is not None:
                grad_out[0][block].addmm_(powers, scaled, alpha=rate)
            if grad_out[1] is not None:
                grad_out[1][block].addmv_(powers, share.squeeze(1), alpha=rate)

    def _powers(self, block: slice) -> Tensor:
        scores = self._scores(block)
        return (scores if self.shift is None else scores.sub_(self.shift)).exp2_()

    def _scores(self, block: slice) -> Tensor:
        """Scores · log2 e of a block, to be turned into powers in place."""
        where = self._where(block)
        if self.low:
            where.copy_(self.table[block] @ self.columns)
            return where if self.bias is None else where.add_(self.bias[block])
        if self.bias is None:
            return torch.mm(self.table[block], self.columns, out=where)
        return torch.addmm(self.bias[block], self.table[block], self.columns, out=where)

    def _where(self, block: slice) -> Tensor:
        return self.scratch[block] if self.keeps else self.scratch[: block.stop - block.start]


def _keeps(rows: int, words: int) -> bool:
    return 4 * rows * words <= KEEP_BYTES


def block_width(rows: int) -> int:
    """Return how many words are scored at once for so many predictions, within ``BLOCK_BYTES``."""
    return max(LEAST_BLOCK, BLOCK_BYTES // (4 * rows))


def _add_targets(
    grad_out: tuple[Tensor | None, Tensor | None],
    targets: Tensor,
    vectors: Tensor,
    share: Tensor,
    rate: float,
) -> None:
    if grad_out[0] is not None:
        grad_out[0].index_add_(0, targets, vectors * share.unsqueeze(1), alpha=-rate)
    if grad_out[1] is not None:
        grad_out[1].index_add_(0, targets, share, alpha=-rate)
