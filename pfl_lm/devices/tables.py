"""Word tables as K devices hold them: the payload's rows their own, every other row frozen.

The table (V, P) is neither copied per device nor given a dense gradient; a device has its k rows
in the flat payload vector, and gradients are summed into them row by row.

Legend: K devices, V words, k rows of the payload, P width, C words common to all devices.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor


class Table:
    """One table (V, P), or bias (V,), at one local step.

    Args:
        parameters: the model as it lies on the devices, with ``name`` of shape (V, P) or (V,).
        held: (K, k, P) by name, the payload's rows as trained so far. A table that does not
            travel is not there.
        sums: (K, k, P) by name, where gradients are added.
        name: which table.
        slots: int64[V], each word's place among the k rows, −1 outside; None: k = V.
    """

    def __init__(
        self,
        parameters: Mapping[str, Tensor],
        held: Mapping[str, Tensor],
        sums: Mapping[str, Tensor],
        name: str,
        slots: Tensor | None,
    ) -> None:
        self.frozen, self.now, self.grad_out = parameters[name], held.get(name), sums.get(name)
        self.slots = slots

    def read(self, words: Tensor) -> Tensor:
        """Rows of each device's own words: int64 (K, …) → (K, …, P)."""
        if self.now is None:
            return _rows(self.frozen, words)
        slot = words if self.slots is None else self.slots[words]
        own = self._own_rows(slot.clamp_min(0))
        if self.slots is None:
            return own
        inside = (slot >= 0).view(*slot.shape, *(1,) * (self.frozen.dim() - 1))
        return torch.where(inside, own, _rows(self.frozen, words))

    def _own_rows(self, slot: Tensor) -> Tensor:
        """Each device's rows at places int64 (K, …): (K, …, P); on a card by one operation."""
        assert self.now is not None
        if slot.device.type == "cpu":
            return torch.stack([_rows(*pair) for pair in zip(self.now, slot, strict=False)])
        return self.now[_device_of(slot), slot]

    def columns(self, words: Tensor) -> Tensor:
        """Rows of C words of the payload: (K, C, P); (C, P) where all devices hold the same."""
        if self.now is None:
            return self.frozen[words]
        slot = words if self.slots is None else self.slots[words]
        if self.now.stride(0) == 0:
            return self.now[0][slot].unsqueeze(0).expand(len(self.now), *(-1,) * self.frozen.dim())
        return self.now[:, slot]

    def add(self, words: Tensor, gradient: Tensor, rate: float) -> None:
        """Add ``rate`` · gradient (K, …, P) to the rows of each device's own words (K, …)."""
        if self.grad_out is None:
            return
        if words.device.type != "cpu":
            self._add_at_once(words, gradient, rate)
            return
        for grad_out, own, rows in zip(self.grad_out, words, gradient, strict=False):
            own, rows = own.reshape(-1), rows.reshape(own.numel(), *self.frozen.shape[1:])
            slot = own if self.slots is None else self.slots[own]
            if self.slots is not None:
                inside = slot >= 0
                slot, rows = slot[inside], rows[inside]
            grad_out.index_add_(0, slot, rows, alpha=rate)

    def _add_at_once(self, words: Tensor, gradient: Tensor, rate: float) -> None:
        """Add as :meth:`add` does, by one operation for all devices and no wait for a card."""
        assert self.grad_out is not None
        flat, width = words.flatten(1), self.frozen.shape[1:]
        slot = flat if self.slots is None else self.slots[flat]
        inside = (slot >= 0).view(*slot.shape, *(1,) * len(width))
        rows = torch.where(inside, gradient.reshape(*slot.shape, *width) * rate, 0.0)
        places = (_device_of(slot), slot.clamp_min(0))
        self.grad_out.index_put_(places, rows, accumulate=True)

    def add_columns(self, words: Tensor, gradient: Tensor, rate: float) -> None:
        """Add ``rate`` · gradient (K, C, P) to the rows of C distinct words of the payload."""
        if self.grad_out is None:
            return
        slot = words if self.slots is None else self.slots[words]
        if slot.device.type != "cpu":
            self.grad_out.index_add_(1, slot, gradient, alpha=rate)
            return
        for grad_out, rows in zip(self.grad_out, gradient, strict=False):
            grad_out.index_add_(0, slot, rows, alpha=rate)


def slots_of(rows: Tensor | None, vocabulary_size: int) -> Tensor | None:
    """Invert the payload's rows: int64[V] place of each word, −1 outside; None for all rows."""
    if rows is None:
        return None
    slots = torch.full((vocabulary_size,), -1, dtype=torch.int64, device=rows.device)
    slots[rows] = torch.arange(len(rows), device=rows.device)
    return slots


def _device_of(slot: Tensor) -> Tensor:
    """Number the devices of places (K, …): int64 of the same shape."""
    numbers = torch.arange(len(slot), device=slot.device)
    return numbers.view(-1, *(1,) * (slot.dim() - 1)).expand_as(slot)


def _rows(table: Tensor, words: Tensor) -> Tensor:
    """Rows (…, P) of one table (k, P) at words (…): whole rows are copied, as indexing does not."""
    return table.index_select(0, words.reshape(-1)).view(*words.shape, *table.shape[1:])
