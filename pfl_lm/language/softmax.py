"""The exact softmax's blocks of words in compiled loops: what ``losses`` has in torch.

Taken for float32 on the processor where the loops compile (``pfl_lm/native/softmax.c``), with one
thread; many are better used by torch's products.

Legend: N rows, V words, P width of vectors.
"""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from pfl_lm import native
from pfl_lm.native import products

LOG2_E = 1.4426950408889634
_NAMES = ("columns", "table", "bias", "shift", "scratch")


class _Softmax(ctypes.Structure):
    """``softmax`` in softmax.c."""

    _fields_ = (
        *((name, ctypes.c_long) for name in ("rows", "words", "width", "kept")),
        *((name, ctypes.c_void_p) for name in _NAMES),
    )


def suits(*tensors: Tensor | None) -> bool:
    """Whether the compiled loops may work on these tensors."""
    return products.suits_whole("softmax", *tensors)


def scratch_for(rows: int, table: Tensor, kept: bool) -> Tensor:
    """Make room for the powers of all words, or of one block."""
    loops = _loops()
    assert loops is not None
    return torch.empty(loops.scratch_size(rows, *table.shape, kept))


class Blocks:
    """Powers 2^(score · log2 e) of blocks of words, as ``losses`` asks for them."""

    def __init__(
        self, vectors: Tensor, table: Tensor, bias: Tensor | None, scratch: Tensor, kept: bool
    ) -> None:
        self.table, self.bias, self.scratch, self.kept = table, bias, scratch, kept
        self.rows = len(vectors)
        self.columns = products.pack((vectors * LOG2_E).mT)
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
        self, into: tuple[Tensor | None, Tensor | None], scaled: Tensor, share: Tensor, rate: float
    ) -> None:
        """Add ``rate`` · powers · ``scaled`` (N, P), or ``share`` (N, 1) for the bias."""
        packed, shares = products.pack(scaled * rate), share.squeeze(1) * rate
        self._run("softmax_gradients", packed, shares, *into, self._numbers(0.0))

    def _numbers(self, value: float) -> Tensor:
        """One number a row, and as many more as fill the last panel."""
        return self.table.new_full((len(self.columns) // self.table.shape[1],), value)

    def _run(self, name: str, *tensors: Tensor | None) -> None:
        shift = None
        if self.shift is not None:
            shift = self._numbers(0.0)
            shift[: self.rows] = self.shift
        held = (self.columns, self.table, self.bias, shift, self.scratch)
        about = _Softmax(self.rows, *self.table.shape, self.kept, *map(products.address, held))
        getattr(_loops(), name)(about, *map(products.address, tensors))


def _loops() -> ctypes.CDLL | None:
    about, pointer = ctypes.POINTER(_Softmax), ctypes.c_void_p
    return native.functions(
        "softmax",
        scratch_size=(ctypes.c_long,) * 5,
        softmax_sums=(None, about, pointer, pointer),
        softmax_gradients=(None, about, *(pointer,) * 5),
    )
