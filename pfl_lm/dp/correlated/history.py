"""The memory of a banded stream: what past rounds summed and released, where anything travelled.

A record is kept of each round that a later one looks back at, and of the coordinates that
travelled in it: a coordinate that stays at home costs neither memory nor time. Records do not
change, so that a round makes its own durable and leaves the others as they are.

* In the time of rounds a round looks back at the last m rounds, and older records go.
* In own time a coordinate looks back at its last m releases, however long ago they were. A record
  whose entries have mostly had m later releases is written again without those.
* The inverse root in the time of rounds remembers products, which go on changing while a coordinate
  stays at home: there a record has every coordinate that has travelled yet.

Legend: D coordinates that ever travel, d of them in a round; m values of each are looked back at.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from pfl_lm.dp.correlated.strategy import Strategy
from pfl_lm.dp.sampler.arrays import Doubles, Int64s

_HEAD = struct.Struct("<8sQQQd")  # magic, records, D, round, error
_MAGIC = b"pfl-lm h"
_RECORD = struct.Struct("<8sQQQd")  # magic, round, d, runs, largest
_RECORD_MAGIC = b"pfl-lm r"


class Past(NamedTuple):
    """What a round finds in the memory.

    Attributes:
        sums: float64[d], what past sums add to the round's product.
        released: float64[d], the same of what was released.
        ended: of each record, how many entries were looked at for the last time.
    """

    sums: Doubles
    released: Doubles
    ended: Sequence[int] = ()


@dataclass(frozen=True)
class Record:
    """One round.

    Attributes:
        round: its number.
        runs: int64[2, r], which coordinates travelled: the first of each run of neighbours, and its
            length; None: all, in order.
        sums: float64[d], SECRET: their true sums (or C times them), without noise.
        released: float64[d], the same of what was released.
        largest: of the sums' magnitudes.
        name: by which a state names the record; empty until it has one.
    """

    round: int
    runs: Int64s | None
    sums: Doubles
    released: Doubles
    largest: float
    name: bytes = b""

    @property
    def places(self) -> Int64s | None:
        """Which coordinates travelled: int64[d]; None: all, in order."""
        if self.runs is None:
            return None
        first, lengths = self.runs
        before = np.cumsum(lengths) - lengths
        places: Int64s = np.repeat(first - before, lengths) + np.arange(len(self.sums))
        return places

    def only(self, kept: Int64s) -> Record:
        """Return the record with some of its entries."""
        runs = _runs(kept if self.places is None else self.places[kept])
        return Record(self.round, runs, self.sums[kept], self.released[kept], self.largest)

    def to_bytes(self) -> bytes:
        """Return the record as bytes; SECRET."""
        runs = np.zeros((2, 0), np.int64) if self.runs is None else self.runs
        about = (self.round, len(self.sums), runs.shape[1], self.largest)
        head = _RECORD.pack(_RECORD_MAGIC, *about)
        return b"".join((head, runs.tobytes(), self.sums.tobytes(), self.released.tobytes()))

    @classmethod
    def from_bytes(cls, content: bytes | memoryview, name: bytes) -> Record:
        """Read what :meth:`to_bytes` wrote.

        Raises:
            ValueError: it is no record of a stream.
        """
        view = memoryview(content)
        if len(view) < _RECORD.size or view[: len(_RECORD_MAGIC)] != _RECORD_MAGIC:
            raise ValueError("this is no record of correlated noise")
        _, round, size, count, largest = _RECORD.unpack_from(view)
        if len(view) != _RECORD.size + 16 * (count + size):
            raise ValueError("a record of the correlated noise is damaged: it was cut off")
        runs = np.frombuffer(view, np.int64, 2 * count, _RECORD.size).reshape(2, count)
        values = np.frombuffer(view[len(view) - 16 * size :], np.float64).reshape(2, size)
        return cls(round, runs if count else None, values[0], values[1], largest, name)


@dataclass(frozen=True)
class History:
    """What a stream remembers of its past.

    Attributes:
        size: D.
        records: of past rounds, the newest first.
        ended: of each record, how many entries no later round looks at; counted in own time.
        round: the next round that the stream may have.
        error: bound on the rounding errors in the records' sums, in units of the sums.
    """

    size: int
    records: tuple[Record, ...] = ()
    ended: tuple[int, ...] = ()
    round: int = 0
    error: float = 0.0

    @property
    def largest(self) -> float:
        """A bound on the sums' magnitude."""
        return max((record.largest for record in self.records), default=0.0)

    def look_back(self, strategy: Strategy, own_time: bool, places: Int64s | None) -> Past:
        """Return what the past adds to a round with these coordinates: the newest first."""
        width, memory = self.size if places is None else len(places), strategy.memory
        past, ended = Past(np.zeros(width), np.zeros(width)), list[int]()
        weights = np.array([*strategy.weights, 0.0])
        met = np.zeros(width, np.int64)  # own releases of each coordinate so far, at most m
        at = None if places is None else _inverse(places, self.size)
        for record in self.records:
            theirs, ours = _common(record.places, places, at)
            lags: Int64s | int = met[ours] if own_time else self.round - record.round - 1
            weight = weights[lags]
            past.sums[ours] += weight * record.sums[theirs]
            past.released[ours] += weight * record.released[theirs]
            if own_time:
                met[ours] = np.minimum(lags + 1, memory)
                ended.append(int(np.count_nonzero(lags == memory - 1)))
        return past._replace(ended=ended)

    def pass_by(self, strategy: Strategy, error: float) -> History:
        """Return the memory after a round that summed and released nothing, in time of rounds."""
        if strategy.remembers_products:
            nobody, nothing = np.zeros(0, np.int64), (np.zeros(0), np.zeros(0))
            past = Past(*nothing)
            return self.remember(strategy, False, self.round, nobody, nothing, past, error)
        kept = _newer(self.records, self.round + 1 - strategy.memory)
        return History(self.size, kept, (0,) * len(kept), self.round + 1, error)

    def remember(
        self,
        strategy: Strategy,
        own_time: bool,
        round: int,
        places: Int64s | None,
        pair: tuple[Doubles, Doubles],
        past: Past,
        error: float,
    ) -> History:
        """Return the memory after a round.

        Args:
            pair: what is to be remembered of the round's sum and release: each float64[d].
            past: what :meth:`look_back` found for the round.
        """
        sums, released = pair
        if strategy.remembers_products and not own_time and places is not None:
            # What stays at home has a product, too, which moves on.
            home = self._at_home(places)
            moved = self.look_back(strategy, own_time, home)
            places = np.concatenate([places, home])
            sums = np.concatenate([sums, moved.sums])
            released = np.concatenate([released, moved.released])
        largest = float(np.abs(sums).max(initial=0.0))
        new = (Record(round, _runs(places), sums, released, largest),) if len(sums) else ()
        if not own_time:
            kept = _newer((*new, *self.records), round + 1 - strategy.memory)
            return History(self.size, kept, (0,) * len(kept), round + 1, error)
        ended = (a + b for a, b in zip(self.ended, past.ended, strict=True))
        all_ended = (*[0] * len(new), *ended)
        kept, left = _compacted((*new, *self.records), all_ended, strategy.memory, self.size)
        return History(self.size, kept, left, round + 1, error)

    def _at_home(self, places: Int64s) -> Int64s:
        """Return which coordinates have travelled before and do not now: int64[·]."""
        travelled = np.zeros(self.size, bool)
        if self.records:
            travelled[index(self.records[0].places)] = True
        travelled[places] = False
        return np.flatnonzero(travelled)

    def to_bytes(self) -> bytes:
        """Return what it holds beside the records as bytes."""
        head = _HEAD.pack(_MAGIC, len(self.records), self.size, self.round, self.error)
        return head + np.array(self.ended, np.int64).tobytes()

    @classmethod
    def from_bytes(cls, content: bytes, records: Sequence[Record]) -> History:
        """Read what :meth:`to_bytes` wrote.

        Raises:
            ValueError: it is no state of a banded stream, or has not these records.
        """
        if len(content) < _HEAD.size or content[: len(_MAGIC)] != _MAGIC:
            raise ValueError("this is no state of banded noise; start the run again")
        _, count, size, round, error = _HEAD.unpack_from(content)
        if count != len(records) or len(content) != _HEAD.size + 8 * count:
            raise ValueError("the state of the banded noise is damaged: records are missing")
        ended = np.frombuffer(content, np.int64, offset=_HEAD.size)
        return cls(size, tuple(records), tuple(ended.tolist()), round, error)


def _runs(places: Int64s | None) -> Int64s | None:
    """Return the runs of neighbours in int64[d]: the first of each and its length, int64[2, r]."""
    if places is None:
        return None
    begins = np.flatnonzero(np.diff(places, prepend=places[:1] - 2) != 1)
    return np.stack([places[begins], np.diff(begins, append=len(places))])


def index(places: Int64s | None) -> Int64s | slice:
    """Return an index of some coordinates among all; None: of all."""
    return slice(None) if places is None else places


def _inverse(places: Int64s, size: int) -> Int64s:
    """Return where each of D coordinates stands among ``places``, or −1: int64[D]."""
    at = np.full(size, -1, np.int64)
    at[places] = np.arange(len(places))
    return at


def _common(
    theirs: Int64s | None, ours: Int64s | None, at: Int64s | None
) -> tuple[Int64s | slice, Int64s | slice]:
    """Return indices of what two rounds have in common: in the one round, and in the other.

    Args:
        theirs, ours: the rounds' coordinates; None: all.
        at: where each coordinate stands among ours.
    """
    if ours is None or at is None:
        return slice(None), slice(None) if theirs is None else theirs
    if theirs is None:
        return ours, slice(None)
    found = at[theirs]
    both = np.flatnonzero(found >= 0)
    return both, found[both]


def _newer(records: tuple[Record, ...], first: int) -> tuple[Record, ...]:
    return tuple(record for record in records if record.round >= first)


def _compacted(
    records: tuple[Record, ...], ended: tuple[int, ...], memory: int, size: int
) -> tuple[tuple[Record, ...], tuple[int, ...]]:
    """Write records again of which more than half has ended, without that; drop empty ones.

    So what is kept is at most twice what is needed, and a round writes on average at most twice
    what travelled in it.
    """
    if all(2 * gone <= len(record.sums) for record, gone in zip(records, ended, strict=True)):
        return records, ended
    kept, later = list[tuple[Record, int]](), np.zeros(size, np.int64)
    for record, gone in zip(records, ended, strict=True):
        if 2 * gone > len(record.sums):
            record, gone = record.only(np.flatnonzero(later[index(record.places)] < memory)), 0
        later[index(record.places)] += 1
        if len(record.sums):
            kept.append((record, gone))
    return tuple(record for record, _ in kept), tuple(gone for _, gone in kept)
