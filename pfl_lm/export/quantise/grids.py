"""Integer grids for word tables: which codes and scales stand for a matrix.

One rule for all formats, so that a matrix which lies on a grid is stored exactly by every
toolchain's own quantiser: symmetric codes, the peak of a group is the grid's last code, scales of
4-bit groups are bfloat16 numbers (XNNPACK and LiteRT store them so).

Legend: O rows of a matrix, I columns, G groups of a row.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class QuantisationGrid:
    """Symmetric integers of ``bits``, one scale for each ``group`` of a row; 0: for a whole row."""

    bits: int
    group: int = 0

    @property
    def most(self) -> int:
        return (1 << (self.bits - 1)) - 1

    def __str__(self) -> str:
        return f"{self.bits} bits {f'in groups of {self.group}' if self.group else 'by row'}"


INT8, INT4 = QuantisationGrid(8), QuantisationGrid(4, 32)
GRIDS = {"int8": INT8, "int4": INT4}  # of the word tables, by precision


@dataclass(frozen=True)
class Quantised:
    """A matrix as codes int8 (O, I) and scales float32 (O, G)."""

    grid: QuantisationGrid
    codes: np.ndarray
    scales: np.ndarray

    def values(self) -> np.ndarray:
        """Return the matrix that the codes stand for, float32 (O, I)."""
        group = self.codes.shape[1] // self.scales.shape[1]
        return self.codes * np.repeat(self.scales, group, axis=1)


def quantise(matrix: np.ndarray, grid: QuantisationGrid) -> Quantised:
    """Round a matrix to a grid; one that lies on it comes back exactly, zeros stay zeros.

    Raises:
        ValueError: the columns are no multiple of the group.
    """
    rows, columns = matrix.shape
    group = grid.group or columns
    if columns % group:
        raise ValueError(
            f"a matrix of {columns} columns does not divide into groups of {group}; "
            "choose widths that are multiples of 32"
        )
    groups = matrix.reshape(rows, -1, group).astype(np.float32)  # (O, G, group)
    scales = scales_of(np.abs(groups).max(-1), grid)
    codes = codes_of(groups, scales[..., None], grid)
    return Quantised(grid, codes.reshape(rows, columns), scales)


def scales_of(peaks: np.ndarray, grid: QuantisationGrid) -> np.ndarray:
    """Return the scales float32 of groups with these peaks; 1 for a group of zeros."""
    scales = np.where(peaks > 0, peaks / np.float32(grid.most), 1).astype(np.float32)
    if grid.bits == 8:
        return scales
    bits = scales.view(np.uint32)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) & np.uint32(0xFFFF0000)  # to bfloat16, to even
    return rounded.view(np.float32)


def codes_of(values: np.ndarray, scales: np.ndarray, grid: QuantisationGrid) -> np.ndarray:
    """Round values to codes int8."""
    return np.rint(values / scales).clip(-grid.most, grid.most).astype(np.int8)
