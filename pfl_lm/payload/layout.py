"""The payload: coordinates of the model that travel in a round, as a flat vector.

Partial embedding updates, LoRA factors, biases only, the whole model: they differ in the payload
and in nothing else. The choice is public (``choice``), so noise is added to these ``d`` coordinates
only: against the full model the norm of the noise falls to √(d / total).

Legend: V words, D width of a row, k rows of this round, d coordinates of the payload.

Source: partial embedding updates, Xu et al. 2023, "Training large-vocabulary neural language
models by private federated learning for resource-constrained devices" (arXiv:2207.08988);
FFA-LoRA, Sun et al. 2024, "Improving LoRA in privacy-preserving federated learning".
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from pfl_lm.payload.directions import Directions

IDs = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


class ParameterRole(Protocol):
    """What a parameter is: ``rows`` (its first axis is the word), or a kind of dense parameter."""

    @property
    def kind(self) -> str: ...

    @property
    def shape(self) -> tuple[int, ...]: ...


@dataclass(frozen=True)
class Segment:
    """One parameter's stretch of the flat vector: ``values[offset : offset + size]``.

    ``shape`` is that of what travels: (k, D) for k rows of a table, else the parameter's own.
    ``start`` is where the parameter begins among all coordinates that ever travel under the plan.
    """

    name: str
    shape: tuple[int, ...]
    rows: IDs | None  # int64[k], sorted; None: the parameter whole
    offset: int
    size: int
    start: int = 0


@dataclass(frozen=True)
class Payload:
    """The coordinates of one round.

    Args:
        round: which round drew it.
        segments: stretches of the flat vector, in the model's order of parameters.
        rows: int64[k] sorted words whose rows travel; None: all of them.
        inclusion: float64[k], probability with which the draw includes each of ``rows``. With
            it, Σ f(w) / inclusion(w) over the round's rows is an unbiased estimate of Σ f(w)
            over the vocabulary, which is what the losses over rows need. None: rows is None.
        outside: see :class:`pfl_lm.payload.plan.PayloadPlan`.
        directions: of the segments' coordinates, where coefficients travel in their place.
        reach: how many coordinates ever travel under the plan, in this round or another.
        fewest: no round under the plan has fewer coordinates; 0: unknown.
    """

    round: int
    segments: tuple[Segment, ...]
    rows: IDs | None
    inclusion: Floats | None
    outside: str
    directions: Directions | None = None
    reach: int = 0
    fewest: int = 0

    @cached_property
    def dim(self) -> int:
        """How many coordinates travel: d."""
        return self.whole_dim if self.directions is None else self.directions.count

    @cached_property
    def whole_dim(self) -> int:
        """How many coordinates of the model the segments hold: d, unless directions travel."""
        return sum(segment.size for segment in self.segments)

    @property
    def some_rows(self) -> bool:
        """Whether some rows of the word tables travel: neither none nor all."""
        return self.rows is not None and len(self.rows) > 0

    @cached_property
    def whole(self) -> Payload:
        """The payload of the segments' own coordinates."""
        return self if self.directions is None else replace(self, directions=None)

    @cached_property
    def digest(self) -> str:
        """SHA-256 over what is selected: names, shapes and words; equal digests, equal layout."""
        digest = hashlib.sha256()
        for segment in self.segments:
            digest.update(f"{segment.name}|{segment.shape}|{segment.rows is None};".encode())
        rows = b"all" if self.rows is None else self.rows.astype("<i8").tobytes()
        digest.update(rows + self.outside.encode())
        if self.directions is not None:
            digest.update(repr(self.directions).encode())
        return digest.hexdigest()

    @cached_property
    def places(self) -> IDs | None:
        """Where the coordinates stand among all that ever travel: int64[d]; None: those are all."""
        if self.whole_dim == self.reach:
            return None
        parts = []
        for segment in self.segments:
            width = int(np.prod(segment.shape[1:]))
            rows = np.arange(segment.shape[0]) if segment.rows is None else segment.rows
            parts.append(segment.start + (rows[:, None] * width + np.arange(width)).reshape(-1))
        return np.concatenate(parts)

    def views(self, values: Any) -> dict[str, Any]:
        """Split flat values (..., d), numpy or torch, into views ``(..., *shape)`` by name."""
        lead = tuple(values.shape[:-1])
        return {
            s.name: values[..., s.offset : s.offset + s.size].reshape(*lead, *s.shape)
            for s in self.segments
        }


@dataclass(frozen=True)
class Cost:
    """What a payload saves against sending the whole model, in one direction."""

    coordinates: int
    bytes: int
    noise_norm_ratio: float  # √(d / total): norm of the noise against the full payload's


def gather(parameters: Mapping[str, Any], payload: Payload) -> npt.NDArray[np.float32]:
    """Read the payload's coordinates from the model, as float32[d].

    Coefficients of directions are counted from where the model stands: zeros.

    Args:
        parameters: numpy arrays or torch tensors in main memory, by name.
    """
    if payload.directions is not None:
        return np.zeros(payload.dim, np.float32)
    values = np.empty(payload.dim, np.float32)
    for segment in payload.segments:
        array = np.asarray(parameters[segment.name])
        chosen = array if segment.rows is None else array[segment.rows]
        values[segment.offset : segment.offset + segment.size] = chosen.reshape(-1)
    return values


def scatter_add(
    parameters: Mapping[str, Any], payload: Payload, values: npt.NDArray[np.float32]
) -> None:
    """Add flat values float32[d] to the payload's coordinates of the model, in place.

    Raises:
        ValueError: ``values`` is not of the payload's dimension.
    """
    if values.shape != (payload.dim,):
        raise ValueError(f"values have shape {values.shape}; the payload's is ({payload.dim},)")
    values = expand(payload, values)
    for segment in payload.segments:
        stretch = values[segment.offset : segment.offset + segment.size].reshape(segment.shape)
        array = np.asarray(parameters[segment.name])  # of a torch tensor: its own memory
        if segment.rows is None:
            array += stretch
        else:
            array[segment.rows] += stretch  # rows are distinct


def expand(payload: Payload, values: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Return what values float32[d] mean on the segments' own coordinates, float32[whole_dim]."""
    return values if payload.directions is None else payload.directions.combine(values)


def describe(payload: Payload, total: int) -> Cost:
    """Say what the payload costs against a model of ``total`` coordinates."""
    return Cost(payload.dim, 4 * payload.dim, float(np.sqrt(payload.dim / total)))
