"""A query: K public cells, and what one device may put into them.

Legend: K cells of a query, d ≥ K coordinates that travel, n devices at once.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from pfl_lm.validate import at_least, positive

Cells = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Answer:
    """What one device puts into a query.

    Attributes:
        cells: int64[e], which cells.
        values: float32[e], what into each.
    """

    cells: Cells
    values: Floats


NOTHING = Answer(np.zeros(0, np.int64), np.zeros(0, np.float32))


@dataclass(frozen=True)
class Query:
    """A public question, the same for all devices that it reaches.

    Every device answers once, also one that has nothing to say: it sends zeros and its share of
    the noise, so that who answered tells nothing.

    Attributes:
        name: what it asks, for the ledger's reader.
        labels: what each cell stands for; K of them, all different.
        entries: m, the most cells that one device fills.
        norm: ℓ2 bound on a device's answer: the sensitivity, in the unit of the cells.
        bound: the most that one entry is, either sign.
        least_dim: coordinates that travel, at least: what the policy covers. Cells beyond K stay
            empty.
        groups: cells of each public group, [begin, end) and apart from one another; a device fills
            cells of one group at most. Empty: no cell belongs to a group.

    Guarantees:
        Zeroing one device's answer moves the sum by at most ``norm`` in ℓ2. An accepted answer has
        at most m entries of at most ``bound`` in different cells, so its norm is at most
        bound·√m; ``norm`` may be smaller, and the clip of ``dp.encoding.protect`` enforces it
        whatever the answer is. The proof of the guarantee needs the clip alone; the rule for
        entries keeps one device from shouting in many cells.

    Raises:
        ValueError: at construction, naming the field.
    """

    name: str
    labels: Sequence[str]
    entries: int
    norm: float = 1.0
    bound: float = 1.0
    least_dim: int = 1
    groups: tuple[tuple[int, int], ...] = ()

    def __post_init__(self) -> None:
        at_least(1, entries=self.entries, least_dim=self.least_dim, cells=len(self.labels))
        positive(norm=self.norm, bound=self.bound)
        if self.entries > len(self.labels):
            raise ValueError(
                f"entries = {self.entries}, but the query has {len(self.labels)} cells"
            )
        if len(set(self.labels)) < len(self.labels):
            raise ValueError("labels: a cell is listed twice; each must have a label of its own")
        if self.norm > self.bound * math.sqrt(self.entries) * (1 + 1e-9):
            raise ValueError(
                f"norm = {self.norm:g} is above bound·√entries = "
                f"{self.bound * math.sqrt(self.entries):g}, which no answer reaches: noise would "
                "be added for nothing"
            )
        ends = [0, *(end for pair in sorted(self.groups) for end in pair), len(self.labels)]
        if ends != sorted(ends):
            raise ValueError("groups: their cells overlap, or lie outside of the query's cells")

    @property
    def dim(self) -> int:
        """Coordinates that travel: d."""
        return max(len(self.labels), self.least_dim)

    @cached_property
    def digest(self) -> str:
        """SHA-256 over all that the query states: equal digests, the same question."""
        stated = [self.name, list(self.labels), self.entries, self.norm, self.bound, self.dim]
        stated += [self.groups] if self.groups else []
        return hashlib.sha256(json.dumps(stated, ensure_ascii=True).encode()).hexdigest()

    def refusal(self, answer: Answer) -> str | None:
        """Return why a device must not give this answer, or None.

        | answer | why |
        |---|---|
        | more than m entries | "6 entries; the query allows 5" |
        | a cell twice | "cell 7 is filled twice" |
        | a cell below 0 or from K on | "cell 9 is outside of the query's 9" |
        | cells of two groups | "cells of 2 groups are filled" |
        | an entry beyond ±bound, NaN or infinite | "an entry is above 1" |
        """
        cells, values = answer.cells, answer.values
        if len(cells) > self.entries:
            return f"{len(cells)} entries; the query allows {self.entries}"
        if len(cells) != len(values):
            return f"{len(cells)} cells and {len(values)} values"
        if len(outside := cells[(cells < 0) | (cells >= len(self.labels))]):
            return f"cell {outside[0]} is outside of the query's {len(self.labels)}"
        listed, times = np.unique(cells, return_counts=True)
        if (times > 1).any():
            return f"cell {listed[times > 1][0]} is filled twice"
        filled = sum(bool(((cells >= low) & (cells < high)).any()) for low, high in self.groups)
        if filled > 1:
            return f"cells of {filled} groups are filled"
        if not (np.abs(values) <= self.bound * (1 + 1e-6)).all():  # NaN is not
            return f"an entry is above {self.bound:g}"
        return None

    def vectors(self, answers: Sequence[Answer]) -> Floats:
        """Lay out the answers of n devices as float32[n, d]; a refused one becomes zeros."""
        rows = np.zeros((len(answers), self.dim), dtype=np.float32)
        for row, answer in zip(rows, answers, strict=True):
            if self.refusal(answer) is None:
                row[answer.cells] = answer.values
        return rows


def equal_weights(cells: Sequence[int], norm: float = 1.0) -> Answer:
    """Return the answer that fills these cells alike and is ``norm`` long: norm ÷ √n each."""
    if not cells:
        return NOTHING
    values = np.full(len(cells), norm / math.sqrt(len(cells)), dtype=np.float32)
    return Answer(np.array(cells, dtype=np.int64), values)
