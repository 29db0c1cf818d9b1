"""What a keyboard asks of all words' scores: log Σ e^score and the three best, no score stored.

Used for float32 on the CPU if ``pfl_lm/native/top_words.c`` compiles, with one thread; elsewhere
evaluation makes tiles of scores.

Legend: N rows, V words, P width of vectors.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pfl_lm import native
from pfl_lm.models.compiled.softmax import LOG2_E
from pfl_lm.native import products
from pfl_lm.native.bindings import TopWords

BEST = 3


def supports(*tensors: Tensor | None) -> bool:
    """Whether the kernel takes these tensors."""
    return products.supports_contiguous("top_words", *tensors)


def rank(
    states: Tensor, table: Tensor, bias: Tensor | None, silent: Tensor
) -> tuple[Tensor, Tensor]:
    """Return log Σ e^score over all words, float64[N], and the ids of the best, int64[N, 3].

    Of words with the same score the first in the table comes first; an id is −1 where there is no
    word left. Where the sum overflows float32, or a score is NaN, the logarithm is inf or NaN.

    Args:
        states: (N, P).
        table: (V, P); bias (V,).
        silent: bool[V], words that may not be among the best, though they count in the sum.
    """
    rows = len(states)
    columns = products.pack((states * LOG2_E).mT)
    padded = len(columns) // table.shape[1]
    total = torch.zeros(padded, dtype=torch.float64)
    best = torch.full((BEST, padded), -torch.inf)
    words = torch.full((BEST, padded), -1, dtype=torch.int32)
    held = (columns, table, bias, silent, total, best, words)
    library: Any = native.load("top_words")
    library.rank_words(TopWords(rows, *table.shape, *map(products.address, held)))
    return total[:rows].log(), words[:, :rows].mT.long()
