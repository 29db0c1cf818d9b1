"""The exact softmax's blocks of words in C: what ``losses`` has in torch.

Used for float32 on the CPU if ``pfl_lm/native/softmax.c`` compiles, with one thread: torch's
products use several better.

Legend: N rows, V words, P width of vectors.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pfl_lm import native
from pfl_lm.native import products
from pfl_lm.native.bindings import Softmax

LOG2_E = 1.4426950408889634
FILLED = 32  # rows that fill a panel, or two of a processor with shorter vectors


def supports(precision: torch.dtype, *tensors: Tensor | None) -> bool:
    """Whether the kernel takes these tensors; bfloat16 only where the processor multiplies it."""
    fast = precision == torch.float32 or products.has_bfloat16()
    return fast and products.supports_contiguous("softmax", *tensors)


def scratch_for(rows: int, table: Tensor, kept: bool, precision: torch.dtype) -> Tensor:
    """Make room for the powers of all words, or of one block."""
    library: Any = native.load("softmax")
    low = precision == torch.bfloat16
    return torch.empty(library.scratch_size(rows, *table.shape, kept, low))


class Blocks:
    """Powers 2^(score · log2 e) of blocks of words, as ``exact_softmax`` asks for them.

    In bfloat16 the table is rounded a block at a time, and powers when they have been summed.
    """

    def __init__(
        self,
        vectors: Tensor,
        table: Tensor,
        bias: Tensor | None,
        scratch: Tensor,
        kept: bool,
        precision: torch.dtype,
    ) -> None:
        self.table, self.bias, self.scratch, self.kept = table, bias, scratch, kept
        self.rows, self.precision = len(vectors), precision
        self.columns = products.pack((vectors * LOG2_E).to(precision).mT)
        self.shift: Tensor | None = None  # (N,), taken off the scaled scores

    def sums(self) -> tuple[Tensor, Tensor]:
        """Return the powers' sum over all words (N,), and powersᵀ · table (N, P)."""
        total, mixed = self._numbers(0.0), self.table.new_zeros(self.rows, self.table.shape[1])
        self._run("softmax_sums", total, mixed)
        return total[: self.rows], mixed

    def largest_scores(self) -> Tensor:
        """Return each row's largest scaled score (N,)."""
        largest = self._numbers(-torch.inf)
        self._run("softmax_sums", largest, None)
        return largest[: self.rows]

    def add_gradients(
        self,
        grad_out: tuple[Tensor | None, Tensor | None],
        scaled: Tensor,
        share: Tensor,
        rate: float,
    ) -> None:
        """Add ``rate`` · powers · ``scaled`` (N, P), or ``share`` (N, 1) for the bias."""
        packed = products.pack((scaled * rate).to(self.precision))
        shares = share.squeeze(1) * rate
        self._run("softmax_gradients", packed, shares, *grad_out, self._numbers(0.0))

    def _numbers(self, value: float) -> Tensor:
        """One number a row, and as many more as fill the last panel."""
        return self.table.new_full((-self.rows % FILLED + self.rows,), value)

    def _run(self, name: str, *tensors: Tensor | None) -> None:
        shift = None
        if self.shift is not None:
            shift = self._numbers(0.0)
            shift[: self.rows] = self.shift
        held = (self.columns, self.table, self.bias, shift, self.scratch)
        low = self.precision == torch.bfloat16
        about = Softmax(self.rows, *self.table.shape, self.kept, low, *map(products.address, held))
        getattr(native.load("softmax"), name)(about, *map(products.address, tensors))
