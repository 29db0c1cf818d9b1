"""A graph and its named inputs and outputs: what every format converts and every runtime runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from torch import nn

Arrays = dict[str, np.ndarray]


class Runner(Protocol):
    """A graph in torch, or a file opened by its runtime: inputs by name → outputs by name."""

    def __call__(self, **given: np.ndarray) -> Arrays: ...


@dataclass(frozen=True)
class TensorSpec:
    """A named input or output of fixed shape; ``dtype`` is ``int32`` or ``float32``."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        return int(np.prod(self.shape))

    def check(self, value: np.ndarray) -> np.ndarray:
        """Return ``value`` as this tensor takes it; raises ValueError for another shape."""
        if np.shape(value) != self.shape:
            raise ValueError(f"{self.name} has shape {np.shape(value)}; it must be {self.shape}")
        return np.ascontiguousarray(value, dtype=self.dtype)


@dataclass(frozen=True)
class Signature:
    """What a graph takes and gives, in order.

    Attributes:
        state: which output becomes which input of the next call.
    """

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    state: dict[str, str] = field(default_factory=dict)

    def ordered(self, given: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        """Return the inputs in order; raises ValueError for one that is missing or misshapen."""
        if missing := [tensor.name for tensor in self.inputs if tensor.name not in given]:
            raise ValueError(f"missing inputs: {', '.join(missing)}")
        return [tensor.check(given[tensor.name]) for tensor in self.inputs]

    def named(self, values: Any) -> Arrays:
        """Name a runtime's outputs, given in order, in the stated shapes."""
        pairs = zip(self.outputs, values, strict=True)
        return {tensor.name: np.asarray(value).reshape(tensor.shape) for tensor, value in pairs}

    def as_dict(self) -> dict[str, Any]:
        """Return plain values for JSON; :meth:`from_dict` reads them back."""
        return {
            "inputs": [[p.name, p.dtype, list(p.shape)] for p in self.inputs],
            "outputs": [[p.name, p.dtype, list(p.shape)] for p in self.outputs],
            "state": self.state,
        }

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> Signature:
        """Rebuild from :meth:`as_dict`."""
        inputs, outputs = (
            tuple(TensorSpec(name, dtype, tuple(shape)) for name, dtype, shape in fields[side])
            for side in ("inputs", "outputs")
        )
        return cls(inputs, outputs, dict(fields["state"]))


@dataclass(frozen=True)
class ExportGraph:
    """A function of fixed shapes, ready to convert.

    Attributes:
        module: torch, takes the inputs in order and returns the outputs in order, as a tuple.
        start: valid first inputs, by name: zero state, the word that begins a message.
    """

    name: str
    module: nn.Module
    signature: Signature
    start: Arrays

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        return self.signature.inputs

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        return self.signature.outputs

    @property
    def state(self) -> dict[str, str]:
        return self.signature.state

    @torch.no_grad()
    def __call__(self, **given: np.ndarray) -> Arrays:
        """Run in torch: the reference that every runtime is compared with."""
        tensors = [torch.from_numpy(value) for value in self.signature.ordered(given)]
        return self.signature.named(self.module(*tensors))

    def examples(self) -> tuple[torch.Tensor, ...]:
        """Return the start as tensors in order, as exporters want it."""
        return tuple(torch.from_numpy(value) for value in self.signature.ordered(self.start))
