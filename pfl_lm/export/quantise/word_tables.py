"""How a small file holds the word table: two layers, and a shortlist that is scored again.

Nearly all the size is the table of words, so that alone is rounded to few bits; the layers between
keep 16. Nearly all that is written or suggested is among a few thousand frequent words, which come
first in a vocabulary: for these a second layer of 8 bits holds what the first one rounded away,
where words are read and where they are scored. Runtimes also round the hidden vector before they
multiply it with a table; so the best words are scored again, by float products with their rows.

Legend: V words, P width of a row, F frequent words.

Source: Jégou, Tavenard et al. 2011, "Searching in one billion vectors: re-rank with source
coding" (arXiv:1102.3828): a code for the residual, used on a shortlist.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from pfl_lm.export.quantise.grids import GRIDS, INT8, QuantisationGrid, quantise
from pfl_lm.export.signature import ExportGraph

FREQUENT = 3_000  # F: 0.3 MB for rows of 96; at 8 bits 2,000 or 8,000 agree about as often
SHORTLIST = 32  # words scored again; 16 are as good at 8 bits, 256 no better at 4


@dataclass(frozen=True)
class Layers:
    """The grid of all rows, how many have a second layer, and how many words are scored again.

    Attributes:
        first: float32 (V, P), values on the grid for the first layer; None: the nearest ones.
    """

    grid: QuantisationGrid
    frequent: int = FREQUENT
    shortlist: int = SHORTLIST
    first: np.ndarray | None = None

    def split(self, table: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return both layers' values: (V, P), and (F + 1, P) whose last row is all zeros.

        The row of word v is first[v] + second[min(v, F)].
        """
        first = quantise(table if self.first is None else self.first, self.grid).values()
        count = min(self.frequent, len(table) // 2)
        rest = quantise(table[:count] - first[:count], INT8).values()
        return first, np.vstack([rest, np.zeros((1, table.shape[1]), np.float32)])


def layers_of(precision: str) -> Layers | None:
    """Return how a precision holds word tables; None for those that do not round to integers."""
    return Layers(GRIDS[precision]) if precision in GRIDS else None


@dataclass(frozen=True)
class WordTables:
    """The word tables of a graph, float32 (rows, P), each with its grid."""

    held: tuple[tuple[np.ndarray, QuantisationGrid], ...]

    def grid(self, matrix: np.ndarray) -> QuantisationGrid | None:
        """Return the grid of a matrix of a converted graph if it is a word table; else None.

        Its values tell it from the layers between: these may have as many rows as there are words.
        """
        for table, grid in self.held:
            if np.array_equal(table.astype(matrix.dtype), matrix):
                return grid
        return None


def tables_of(graph: ExportGraph, precision: str) -> WordTables:
    """Return the word tables of ``predict`` with their grids."""
    module: Any = graph.module
    layers = [(module.rows.first, GRIDS[precision]), (module.output, GRIDS[precision])]
    layers += [
        (part, INT8) for part in (module.rows.second, module.frequent_output) if part is not None
    ]
    return WordTables(tuple((layer.weight.detach().numpy(), grid) for layer, grid in layers))
