"""The memory of a BLT stream: a few buffers of every coordinate, which decay from round to round.

Legend: D coordinates that ever travel, d of them in this round; m buffers of each.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

import numpy as np

from pfl_lm.dp.correlated.history import Past, index
from pfl_lm.dp.correlated.strategy import Strategy
from pfl_lm.dp.sampler.arrays import Doubles, Int64s

_HEAD = struct.Struct("<8sQQQd")  # magic, m, D, round, error
_MAGIC = b"pfl-lm s"


@dataclass(frozen=True)
class Buffers:
    """What a stream remembers of its past; of independent noise nothing (m = 0).

    Attributes:
        sums: float64[m, D], SECRET: of the true sums, without noise.
        released: float64[m, D], the same of what was released.
        round: the next round that the stream may have.
        error: bound on the rounding errors in ``sums``, in units of the sums.
    """

    sums: Doubles
    released: Doubles
    round: int = 0
    error: float = 0.0

    @classmethod
    def begin(cls, memory: int, size: int) -> Buffers:
        """Return the memory before the first round, of D = ``size`` coordinates."""
        return cls(np.zeros((memory, size)), np.zeros((memory, size)))

    @property
    def size(self) -> int:
        """How many coordinates ever travel."""
        return int(self.sums.shape[1])

    @property
    def largest(self) -> float:
        """A bound on the sums' magnitude."""
        return float(np.abs(self.sums).max(initial=0.0))

    def look_back(self, strategy: Strategy, own_time: bool, places: Int64s | None) -> Past:
        """Return what the past adds to a round with these coordinates."""
        weights, here = np.array(strategy.weights), index(places)
        return Past(weights @ self.sums[:, here], weights @ self.released[:, here])

    def pass_by(self, strategy: Strategy, error: float) -> Buffers:
        """Return the memory after a round that summed and released nothing, in time of rounds."""
        decays = np.array(strategy.decays)[:, None]
        return Buffers(decays * self.sums, decays * self.released, self.round + 1, error)

    def remember(
        self,
        strategy: Strategy,
        own_time: bool,
        round: int,
        places: Int64s | None,
        pair: tuple[Doubles, Doubles],
        past: Past,
        error: float,
    ) -> Buffers:
        """Return the memory after a round that adds a pair of float64[d] to it."""
        decays, here = np.array(strategy.decays)[:, None], index(places)
        after = []
        for memory, value in zip((self.sums, self.released), pair, strict=True):
            if own_time:
                decayed = memory.copy()
                decayed[:, here] *= decays
            else:
                decayed = decays * memory
            decayed[:, here] += value
            after.append(decayed)
        return Buffers(after[0], after[1], round + 1, error)

    def to_bytes(self) -> bytes:
        """Return the memory as bytes; SECRET."""
        head = _HEAD.pack(_MAGIC, *self.sums.shape, self.round, self.error)
        return b"".join((head, self.sums.tobytes(), self.released.tobytes()))

    @classmethod
    def from_bytes(cls, content: bytes) -> Buffers:
        """Read what :meth:`to_bytes` wrote.

        Raises:
            ValueError: it is no state of a stream.
        """
        if content[: len(_MAGIC)] != _MAGIC or len(content) < _HEAD.size:
            raise ValueError("this is no state of correlated noise")
        _, memory, size, round, error = _HEAD.unpack_from(content)
        if len(content) != _HEAD.size + 16 * memory * size:
            raise ValueError("the state of the correlated noise is damaged: it was cut off")
        values = np.frombuffer(content, np.float64, offset=_HEAD.size).reshape(2, memory, size)
        return cls(values[0], values[1], round, error)
