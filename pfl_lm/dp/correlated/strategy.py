"""The strategies that a policy may choose, each one linear filter with a few numbers.

    kind                  C                                         memory of a coordinate
    blt                   a sum of geometric sequences              a buffer for each, 1 to 4
    banded                Toeplitz with few diagonals               one for each but the first
    banded_inverse_root   C⁻¹ = the first coefficients of (1−x)^½   the same
    identity              fresh noise in every round                none

All have c₀ = 1, so that the noise of the first round is z itself.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, get_args

import numpy as np

from pfl_lm.dp.correlated import banded, blt, toeplitz
from pfl_lm.dp.sampler.arrays import Doubles

StrategyKind = Literal["blt", "banded", "banded_inverse_root", "identity"]
KINDS: tuple[str, ...] = get_args(StrategyKind)

_BUFFERS = 4
_ENOUGH = 1e-3  # one buffer more must lower error × sensitivity by this share
# What is recorded is what is used. Of numbers that a search found few digits are kept: the optimum
# is flat, and two machines whose searches end a hair apart then record the same.
_SEARCHED, _COMPUTED = 5, 12  # significant digits


@dataclass(frozen=True)
class Strategy:
    """A lower-triangular Toeplitz matrix C with c₀ = 1, and how its past is remembered.

    Attributes:
        kind: which family.
        weights: what each remembered value adds to (Cx)_t.
        decays: of the buffers of a BLT; empty where the memory is a shift register.

    Raises:
        ValueError: an unknown kind, or numbers that do not describe one.
    """

    kind: StrategyKind
    weights: tuple[float, ...] = ()
    decays: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"kind must be one of {', '.join(KINDS)}, got {self.kind!r}")
        if not all(math.isfinite(number) for number in (*self.weights, *self.decays)):
            raise ValueError("a strategy's numbers must be finite")
        if self.kind == "blt":
            blt.Blt(self.decays, self.weights)
        elif self.decays or (self.kind == "identity") != (not self.weights):
            raise ValueError(f"{len(self.weights)} weights and {len(self.decays)} decays do not "
                             f"describe a strategy of kind {self.kind!r}")  # fmt: skip

    @property
    def memory(self) -> int:
        """Values of each coordinate that are kept between rounds."""
        return len(self.weights)

    @property
    def is_banded(self) -> bool:
        """Whether a round looks back at past rounds themselves, and not at buffers of them."""
        return self.kind in ("banded", "banded_inverse_root")

    @property
    def remembers_products(self) -> bool:
        """Whether the memory holds (Cx)_t, for a C whose inverse is banded, and not x_t."""
        return self.kind == "banded_inverse_root"

    def coefficients(self, n: int) -> Doubles:
        """Return the first column of C: float64[n]."""
        if self.kind == "blt":
            return blt.Blt(self.decays, self.weights).coefficients(n)
        column = np.concatenate([[1.0], self.weights])
        if self.remembers_products:
            return toeplitz.inverse(np.concatenate([[1.0], -np.array(self.weights)]), n)
        return np.pad(column, (0, max(0, n - len(column))))[:n]

    def squared_sensitivity(self, n: int, min_separation: int, participations: int) -> float:
        """Return (an upper bound of) ‖Cx − Cx′‖² for clip norm 1; see ``toeplitz``."""
        column = self.coefficients(n)
        return toeplitz.squared_sensitivity(column, n, min_separation, participations)

    def prefix_errors(self, n: int) -> Doubles:
        """Return the variance of the noise on each prefix sum, for z = 1: float64[n]."""
        return toeplitz.prefix_errors(self.coefficients(n), n)


@lru_cache(maxsize=64)
def choose(
    kind: StrategyKind,
    rounds: int,
    min_separation: int,
    participations: int,
    memory: int | None = None,
) -> Strategy:
    """Return the strategy that follows from a policy's numbers: the same on every machine.

    Args:
        kind: which family.
        rounds: of the whole run.
        min_separation, participations: which rounds a user may be in.
        memory: buffers of a BLT or remembered diagonals; None chooses: buffers until another one
            gains less than a thousandth, diagonals up to the separation, at most 32.

    Guarantees:
        Deterministic; sensitivities are computed from exactly the numbers that are stored and
        used.
    """
    if kind == "identity" or rounds == 1:
        return Strategy("identity")
    if kind == "blt":
        return _best_blt(rounds, min_separation, participations, memory)
    widest = min(rounds, min_separation if kind == "banded" else rounds)
    bands = min(widest, 33 if memory is None else memory + 1)
    if bands == 1:
        return Strategy("identity")
    if kind == "banded":
        column = banded.optimise(rounds, bands)
        return Strategy("banded", _rounded(column[1:] / column[0], _SEARCHED))
    weights = _rounded(-banded.inverse_square_root(bands)[1:], _COMPUTED)
    return Strategy("banded_inverse_root", weights)


def _best_blt(
    rounds: int, min_separation: int, participations: int, buffers: int | None
) -> Strategy:
    best, least = Strategy("identity"), math.inf
    for count in range(1, _BUFFERS + 1) if buffers is None else (buffers,):
        optimum = blt.optimise(rounds, min_separation, participations, count)
        scales = _rounded(np.array(optimum.scales), _SEARCHED)
        gaps = _rounded(1 - np.array(optimum.decays), _SEARCHED)  # decays are near 1
        strategy = Strategy("blt", scales, tuple(1 - gap for gap in gaps))
        loss = float(strategy.prefix_errors(rounds).mean())
        loss = math.sqrt(
            loss * strategy.squared_sensitivity(rounds, min_separation, participations)
        )
        if loss > least * (1 - _ENOUGH):
            break
        best, least = strategy, loss
    return best


def _rounded(numbers: Doubles, digits: int) -> tuple[float, ...]:
    return tuple(float(f"{number:.{digits - 1}e}") for number in numbers)
