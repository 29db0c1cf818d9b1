"""The exact softmax over all words, with hand-derived gradients, by blocks of words.

(N, V) is at most one buffer. Blocks are made by a C kernel (``compiled/softmax``) where there is
one, else by torch.

Legend: N rows (batch · time), P width of hidden vectors, V words, w words of a block.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pfl_lm.models.compiled import softmax

BLOCK_BYTES = 1 << 20  # of scores at a time: a block stays in the cache between its passes
LEAST_BLOCK = 256  # words, however many rows
KEEP_BYTES = 512 << 20  # of powers kept between the two passes; beyond it they are made twice
SAFE_SUM = (1e-30, 1e30)  # of powers: no addend that counts has been lost, none has overflowed


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
    if softmax.supports(precision, table):
        return softmax.scratch_for(rows, table, _keeps(rows, words), precision)
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
    if softmax.supports(precision, table, bias, *grad_out) and scratch.dim() == 1:
        kept = _keeps(len(vectors), len(table))
        return softmax.Blocks(vectors, table, bias, scratch, kept, precision)
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
