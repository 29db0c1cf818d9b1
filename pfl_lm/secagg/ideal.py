"""The ideal functionality: what secure aggregation computes, without the protocol.

The protocol (``pfl_lm.secagg.server``) is proved to show the server nothing that this class would
not: the sum, who took part, and nothing at all below the threshold. Large simulations run it in
place of the protocol; given the same survivors both open the same bytes and fail at the same
thresholds.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Union

import numpy as np
from numpy.typing import NDArray

from pfl_lm.distributed import Ranks
from pfl_lm.secagg.errors import Refused, TooFewReports, WrongState
from pfl_lm.secagg.ring import Ring

if TYPE_CHECKING:
    from torch import Tensor

PAST_GOAL = ("drop", "refuse")
_CHUNK = 1 << 14  # entries summed at a time: the running sum stays in the nearest cache


# Reports of K devices, integers (K, d): an array, or a tensor on a graphics card.
Reports = Union[NDArray[Any], "Tensor"]


@dataclass(frozen=True)
class OpenedSum:
    """The sum of a round: ``vector`` int64[d], centred, over ``reports`` reports."""

    vector: NDArray[np.int64]
    reports: int


class IdealAggregator:
    """Sum integer vectors modulo 2^bits; open the sum once, and only at the threshold.

    Args:
        dim: entries of every vector, at least 1.
        bits: of the ring; sums beyond ``±(2^(bits-1) - 1)`` wrap.
        threshold: the least number of reports that may be opened, at least 2: the sum of one
            report is that report.
        goal: the most reports that are summed (rotation), or None for no limit (Poisson
            sampling, where a cap would break the amplification).
        past_goal: what happens to reports after the goal: "drop" leaves them out, "refuse"
            raises ``Refused``.

    Raises:
        ValueError: a number outside its range, or a goal below the threshold.

    Guarantees:
        The opened vector depends on the multiset of summed vectors alone: addition modulo 2^b
        is commutative and associative, so order, batching and partition cannot show. No method
        returns anything about the vectors before ``close``, and below the threshold never.
    """

    def __init__(
        self,
        dim: int,
        bits: int,
        threshold: int,
        goal: int | None = None,
        past_goal: Literal["drop", "refuse"] = "drop",
    ) -> None:
        if dim < 1:
            raise ValueError(f"dim must be at least 1: {dim}")
        if threshold < 2:
            raise ValueError(f"threshold must be at least 2: {threshold}")
        if goal is not None and goal < threshold:
            raise ValueError(f"goal ({goal}) must not be below the threshold ({threshold})")
        if past_goal not in PAST_GOAL:
            raise ValueError(f'past_goal must be "drop" or "refuse": {past_goal!r}')
        self.dim = dim
        self.ring = Ring(bits)
        self.threshold = threshold
        self.goal = goal
        self.past_goal = past_goal
        self.reports = 0
        self._open = True
        self._total = np.zeros(dim, dtype=self.ring.word)

    def submit(self, vectors: Reports) -> int:
        """Add K reports, integers (K, d), and return how many of them were summed.

        Args:
            vectors: an array, or a tensor of torch on a graphics card, which adds up its own.

        Raises:
            ValueError: another shape or dtype (a float would round above 2^53).
            Refused: reports past the goal where the aggregator refuses them; none is summed.
            WrongState: the round is closed.
        """
        if not self._open:
            raise WrongState("the round is closed: a late report is not summed")
        room = None if self.goal is None else self.goal - self.reports
        summed = within_goal(vectors, self.dim, self.ring, room, self.past_goal)
        rows = summed if isinstance(summed, np.ndarray) else _added_up(summed)
        rows = rows.view(np.dtype(f"<u{rows.itemsize}"))
        for start in range(0, self.dim, _CHUNK):
            part = slice(start, start + _CHUNK)
            for row in rows:
                words = row[part].astype(self.ring.word, copy=False)
                np.add(self._total[part], words, out=self._total[part])
        self.reports += len(summed)
        return len(summed)

    def merge(self, ranks: Ranks) -> None:
        """Bring the sums of all processes together on the first; the others' end unopened.

        Sums modulo 2^32 or 2^64 are sums modulo 2^bits too, so half of the bytes travel where
        the ring has at most 32 bits.
        """
        self.reports = sum(ranks.gather(self.reports))
        own = self._total.view(np.dtype(f"<i{self.ring.word.itemsize}"))
        together = ranks.reduce_sum(own).view(self.ring.word)
        if not ranks.is_first:
            self._total.fill(0)
            self._open = False
            return
        self._total = together

    def close(self) -> OpenedSum:
        """End the round and open its sum.

        Raises:
            TooFewReports: below the threshold; the sum is erased unopened.
            Refused: several processes merged more reports than the goal: which of them to drop
                is a matter of their order, which several processes do not have.
            WrongState: closed before: a sum is opened once.
        """
        if not self._open:
            raise WrongState("the round is closed already: a sum is opened once")
        self._open = False
        total, self._total = self._total, np.zeros(0, dtype=self.ring.word)
        if self.reports < self.threshold:
            total.fill(0)
            raise TooFewReports(self.reports, self.threshold)
        if self.goal is not None and self.reports > self.goal:
            raise Refused(f"{self.reports} reports of several processes, the goal is {self.goal}")
        return OpenedSum(self.ring.centre(self.ring.reduce(total)), self.reports)


def within_goal(
    vectors: Reports, dim: int, ring: Ring, room: int | None, past_goal: str
) -> Reports:
    """Check a batch of reports, (K, dim), and return those for which the goal leaves room.

    Raises:
        ValueError: another shape; no integers of 64 bits, or of 32 in a ring of at most 32 bits.
        Refused: more reports than ``room``, where reports past the goal are refused.
    """
    if vectors.ndim != 2 or vectors.shape[1] != dim:
        raise ValueError(f"vectors must have shape (K, {dim}): {tuple(vectors.shape)}")
    ring.check_integers(vectors.dtype if isinstance(vectors, np.ndarray) else _dtype_of(vectors))
    if room is not None and len(vectors) > room and past_goal == "refuse":
        raise Refused(f"{len(vectors)} reports where the goal leaves room for {room}")
    return vectors[:room]


def in_memory(vectors: Reports) -> NDArray[Any]:
    """Bring reports to main memory, where they are not there yet."""
    return vectors if isinstance(vectors, np.ndarray) else vectors.cpu().numpy()


def _added_up(vectors: Tensor) -> NDArray[np.int64]:
    """Return the sum of a card's reports modulo 2^64, as the one row of int64 (1, d)."""
    return in_memory(vectors.long().sum(0, keepdim=True))


def _dtype_of(vectors: Tensor) -> np.dtype[Any]:
    return np.dtype(str(vectors.dtype).removeprefix("torch."))
