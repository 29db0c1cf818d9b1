"""The sampled softmax over candidates in compiled loops, for K devices at once.

The same losses and gradients as ``output`` has in torch, to float32's rounding; the gradients of
rows go straight into what collects them. Taken for float32 on the processor where the loops compile
(``pfl_lm/native/candidates.c``) and there is a device for every thread.

Legend: K devices, N rows of a device, P width, V words, k rows of the payload, C candidates.
"""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from pfl_lm import native
from pfl_lm.devices.tables import Table
from pfl_lm.language import compiled
from pfl_lm.language.losses import Candidates
from pfl_lm.native import threads


class _Table(ctypes.Structure):
    """``table`` in candidates.c."""

    _fields_ = (
        ("width", ctypes.c_long),
        *((name, ctypes.c_void_p) for name in ("frozen", "now", "into")),
        *((name, ctypes.c_long) for name in ("now_apart", "into_apart")),
        ("slots", ctypes.c_void_p),
    )


class _Candidates(ctypes.Structure):
    """``candidates`` in candidates.c."""

    _fields_ = (
        *((name, ctypes.c_long) for name in ("rows", "count", "width")),
        *((name, _Table) for name in ("scoring", "bias")),
        *((n, ctypes.c_void_p) for n in ("vectors", "targets", "weight", "words", "log_weight")),
        ("rate", ctypes.c_float),
        *((name, ctypes.c_void_p) for name in ("loss", "gradient")),
    )


def suits(vectors: Tensor, *tables: Table | None) -> bool:
    """Whether the compiled loops may work on these tensors."""
    held = [x for table in tables if table for x in (table.frozen, table.now, table.into)]
    return compiled.suits("candidates", vectors, *held)


def contrast(
    vectors: Tensor,
    targets: Tensor,
    weight: Tensor,
    table: Table,
    bias: Table | None,
    rate: float,
    candidates: Candidates,
) -> tuple[Tensor, Tensor]:
    """Return losses (K, N) and the gradient by the vectors (K, N, P); add the rows' own.

    Args:
        vectors: (K, N, P); targets: int64 (K, N); weight: (K, N).
        table, bias: the output rows; ``rate`` times their gradient is added to them.
        candidates: their words ascending.
    """
    vectors, targets, weight = vectors.contiguous(), targets.contiguous(), weight.contiguous()
    words, log_weight = map(torch.from_numpy, (candidates.words, candidates.log_weight))
    loss, gradient = torch.empty_like(weight), torch.empty_like(vectors)
    task = _Candidates(vectors.shape[1], len(words), vectors.shape[2], rate=rate)
    task.scoring = _describe(table)
    if bias is not None:
        task.bias = _describe(bias)
    held = {"vectors": vectors, "targets": targets, "weight": weight, "words": words}
    held |= {"log_weight": log_weight, "loss": loss, "gradient": gradient}
    for name, tensor in held.items():
        setattr(task, name, tensor.data_ptr())
    loops = native.functions("candidates", slopes_size=(ctypes.c_long,) * 3)
    assert loops is not None

    def call(first: int, end: int) -> int:
        slopes = vectors.new_empty(loops.slopes_size(task.rows, task.count))
        room = ctypes.c_void_p(slopes.data_ptr())
        found: int = loops.contrast_candidates(ctypes.byref(task), room, first, end)
        return found

    threads.over(len(vectors), call)
    return loss, gradient


def _describe(table: Table) -> _Table:
    width = table.frozen[0].numel()
    now, into = table.now, table.into
    found = _Table(width, table.frozen.data_ptr())
    if now is not None:
        found.now, found.now_apart = now.data_ptr(), now.stride(0)
    if into is not None:
        found.into, found.into_apart = into.data_ptr(), into.stride(0)
    if table.slots is not None:
        found.slots = table.slots.data_ptr()
    return found
