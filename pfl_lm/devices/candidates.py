"""The sampled softmax over candidates in C, for K devices at once.

The same losses and gradients as ``output`` has in torch, to float32's rounding; the gradients of
rows go straight into what collects them. Used for float32 on the CPU if
``pfl_lm/native/candidates.c`` compiles and there is a device for every thread.

Legend: K devices, N rows of a device, P width, V words, k rows of the payload, C candidates.
"""

from __future__ import annotations

import ctypes
from typing import Any

import torch
from torch import Tensor

from pfl_lm import native
from pfl_lm.devices.tables import Table
from pfl_lm.models.compiled import layer as compiled
from pfl_lm.models.losses import Candidates
from pfl_lm.native import bindings
from pfl_lm.native.parallel import run_parallel


def supports(vectors: Tensor, *tables: Table | None) -> bool:
    """Whether the kernel takes these tensors."""
    held = [x for table in tables if table for x in (table.frozen, table.now, table.grad_out)]
    return compiled.supports("candidates", vectors, *held)


def contrast(
    vectors: Tensor,
    targets: Tensor,
    weight: Tensor,
    table: Table,
    bias: Table | None,
    rate: float,
    candidates: Candidates,
    centre: tuple[Tensor, Tensor | None] | None = None,
) -> tuple[Tensor, Tensor]:
    """Return losses (K, N) and the gradient by the vectors (K, N, P); add the rows' own.

    Args:
        vectors: (K, N, P); targets: int64 (K, N).
        weight: (K, N); rows of weight 0 (padding) are not scored, their results are 0.
        table, bias: the output rows; ``rate`` times their gradient is added to them.
        candidates: their words ascending.
        centre: the candidates' rows (K, C, P) and biases (K, C) from which those in ``table`` and
            ``bias`` have been moved; candidates are scored as moved by their ``inclusion`` of it.
    """
    vectors, targets, weight = vectors.contiguous(), targets.contiguous(), weight.contiguous()
    words, log_weight = map(torch.from_numpy, (candidates.words, candidates.log_weight))
    loss, gradient = torch.empty_like(weight), torch.empty_like(vectors)
    task = bindings.Candidates(vectors.shape[1], len(words), vectors.shape[2], rate=rate)
    task.scoring = _describe(table)
    if bias is not None:
        task.bias = _describe(bias)
    held = {"vectors": vectors, "targets": targets, "weight": weight, "words": words}
    held |= {"log_weight": log_weight, "loss": loss, "gradient": gradient}
    if candidates.inclusion is not None:
        held["inclusion"] = torch.from_numpy(candidates.inclusion)
    if centre is not None:
        rows, biases = centre
        held |= {"centre": rows} | ({} if biases is None else {"centre_bias": biases})
    for name, tensor in held.items():
        setattr(task, name, tensor.data_ptr())
    library: Any = native.load("candidates")

    def call(first: int, end: int) -> int:
        slopes = vectors.new_empty(library.slopes_size(task.rows, task.count))
        room = ctypes.c_void_p(slopes.data_ptr())
        count: int = library.contrast_candidates(ctypes.byref(task), room, first, end)
        return count

    run_parallel(len(vectors), call)
    return loss, gradient


def _describe(table: Table) -> bindings.Table:
    width = table.frozen[0].numel()
    now, grad_out = table.now, table.grad_out
    described = bindings.Table(width, table.frozen.data_ptr())
    if now is not None:
        described.now, described.now_device_stride = now.data_ptr(), now.stride(0)
    if grad_out is not None:
        described.into, described.into_device_stride = grad_out.data_ptr(), grad_out.stride(0)
    if table.slots is not None:
        described.slots = table.slots.data_ptr()
    return described
