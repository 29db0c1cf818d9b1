"""Integer grids for weights: which codes and scales stand for a matrix.

Legend: O rows of a matrix, I columns, G groups of a row.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Grid:
    """Symmetric integers of ``bits``, one scale for each ``group`` of a row."""

    bits: int
    group: int

    @property
    def most(self) -> int:
        return (1 << (self.bits - 1)) - 1

    def __str__(self) -> str:
        return f"{self.bits} bits in groups of {self.group}"


INT8, INT4 = Grid(8, 32), Grid(4, 32)


@dataclass(frozen=True)
class Quantised:
    """A matrix as codes int8 (O, I) and scales float32 (O, G)."""

    grid: Grid
    codes: np.ndarray
    scales: np.ndarray

    def values(self) -> np.ndarray:
        """Return the matrix that the codes stand for, float32 (O, I)."""
        return self.codes * np.repeat(self.scales, self.grid.group, axis=1)


def grid_of(precision: str, is_table: bool) -> Grid:
    """Choose the grid: int4 is 4 bits for the word tables, which are the size, 8 for the rest."""
    return INT4 if precision == "int4" and is_table else INT8


def quantise(matrix: np.ndarray, grid: Grid) -> Quantised:
    """Round a matrix to a grid, each group with the scale that loses least (squared error).

    A group that already lies on such a grid comes back exactly; a group of zeros stays 0.

    Raises:
        ValueError: the columns are no multiple of the group.
    """
    rows, columns = matrix.shape
    if columns % grid.group:
        raise ValueError(
            f"a matrix of {columns} columns does not divide into groups of {grid.group}; "
            "choose widths that are multiples of 32"
        )
    groups = matrix.reshape(rows, -1, grid.group).astype(np.float32)  # (O, G, group)
    scales = best_scales(groups, grid)
    codes = np.rint(groups / scales[..., None]).clip(-grid.most, grid.most).astype(np.int8)
    return Quantised(grid, codes.reshape(rows, columns), scales)


def best_scales(groups: np.ndarray, grid: Grid) -> np.ndarray:
    """Return the scale of each group (…, group) that loses least, float32 (…)."""
    peak = np.abs(groups).max(-1)
    peak = np.where(peak > 0, peak, 1.0).astype(np.float32)
    if grid.bits == 8:
        return peak / np.float32(grid.most)
    # From a peak far beyond the grid's end to one that uses half of it; whole steps first, so
    # that a group which lies on a grid is found exactly.
    steps = [7.0, 6.0, 5.0, 4.0, 3.0, 2.0, 1.0, 7.25, 7.5, 7.75, 8.0, 8.25, 8.5, 9.0, 9.5]
    best, least = peak / np.float32(grid.most), np.full(peak.shape, np.inf, np.float32)
    for step in steps:
        scale = peak / np.float32(step)
        codes = np.rint(groups / scale[..., None]).clip(-grid.most, grid.most)
        loss = np.square(codes * scale[..., None] - groups).sum(-1)
        better = loss < least * (1 - 1e-5)
        best, least = np.where(better, scale, best), np.where(better, loss, least)
    return best
