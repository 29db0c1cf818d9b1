"""From noisy votes to weights, and the table that holds both.

Everything here is post-processing of a released sum: it costs no privacy.

Legend: K cells, σ deviation of the noise on a cell.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple, dataclass
from pathlib import Path

import numpy as np

from pfl_lm.dp.sampler.arrays import Doubles
from pfl_lm.queries.table import TabTable, numbers

RESULT_FILE = "mixture.tsv"
_COLUMNS = ("cell", "public_text", "noisy_sum", "deviations", "weight")
_TABLE = TabTable("table of shares", _COLUMNS)


@dataclass(frozen=True)
class CellShare:
    """What the phones said of one cell: a cluster or a word.

    Attributes:
        label: of the cell.
        expected: what as many passages of public text would have said.
        sum: the noisy sum of what the phones said, in the unit of a device's norm.
        deviations: the same in standard deviations of the noise.
        weight: how much oftener the phones name it than public text would.
    """

    label: str
    expected: float
    sum: float
    deviations: float
    weight: float


def weights_of(sums: Doubles, expected: Doubles, deviation: float) -> Doubles:
    """Return how much oftener phones name each cell than public text would: float64[K], above 0.

    (max(sum, 0) + σ) ÷ (expected + σ): one deviation of the noise counts on both sides, so a cell
    that the noise hides weighs about 1, and with few phones all do.

    Args:
        sums, expected: float64[K].
        deviation: σ, above 0.
    """
    weights: Doubles = (np.maximum(sums, 0.0) + deviation) / (expected + deviation)
    return weights


def shares_of(
    labels: Sequence[str], sums: Doubles, expected: Doubles, deviation: float
) -> list[CellShare]:
    """Return what the phones said of each cell, in the order of the cells."""
    weights = weights_of(sums, expected, deviation)
    rows = zip(labels, expected, sums, sums / deviation, weights, strict=True)
    return [CellShare(label, *map(float, figures)) for label, *figures in rows]


def write_shares(path: Path, shares: Sequence[CellShare]) -> None:
    """Write the table, in the order of the cells, whole or not at all."""
    rows = map(astuple, shares)
    _TABLE.write(path, ([cell, *(f"{x:.6g}" for x in figures)] for cell, *figures in rows))


def read_shares(path: Path) -> list[CellShare]:
    """Read the table; raises ValueError where it is damaged."""
    rows = _TABLE.read(path)
    return [CellShare(cell, *numbers(place, figures)) for place, (cell, *figures) in rows]
