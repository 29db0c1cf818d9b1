"""What a keyboard asks of all words' scores: log Σ e^score and the three best, no score stored.

Taken for float32 on the processor where the loops compile (``pfl_lm/native/ranking.c``), with one
thread; elsewhere evaluation walks through tiles of scores.

Legend: N rows, V words, P width of vectors.
"""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from pfl_lm import native
from pfl_lm.language.softmax import LOG2_E
from pfl_lm.native import products

BEST = 3
_NAMES = ("columns", "table", "bias", "silent", "total", "best", "best_words")


class _Ranking(ctypes.Structure):
    """``ranking`` in ranking.c."""

    _fields_ = (
        *((name, ctypes.c_long) for name in ("rows", "words", "width")),
        *((name, ctypes.c_void_p) for name in _NAMES),
    )


def suits(*tensors: Tensor | None) -> bool:
    """Whether the compiled loops may work on these tensors."""
    return products.suits_whole("ranking", *tensors)


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
    loops = native.functions("ranking", rank_words=(None, ctypes.POINTER(_Ranking)))
    assert loops is not None
    loops.rank_words(_Ranking(rows, *table.shape, *map(products.address, held)))
    return total[:rows].log(), words[:, :rows].mT.long()
