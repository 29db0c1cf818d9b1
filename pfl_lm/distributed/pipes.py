"""``PipeRanks``: the ranks of one machine, and what goes through the pipes between them.

Rank 0 has one pipe to each of the others. The pipes have no name and are inherited, and the work
queue is a counter in shared memory without a name: no socket listens, nobody else can connect, and
pickles come from the processes of the run alone.
"""

from __future__ import annotations

import pickle
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from pfl_lm.distributed.ranks import Ranks

T = TypeVar("T")


class LostRankError(RuntimeError):
    """Another process of the run has ended."""


class PipeRanks(Ranks):
    """The ranks of one machine.

    Args:
        peers: on rank 0 the pipes to ranks 1, 2, …; on the others the pipe to rank 0.
        queue: int64[2] in shared memory: the number of the work queue that is being shared out,
            from 1, and the next item of it.
        supervisor: the pipe to the process that called ``launch``.

    Raises:
        LostRankError: (every method that waits for other ranks) one of them has ended.
    """

    def __init__(
        self,
        rank: int,
        count: int,
        begun: bool,
        peers: list[Connection],
        queue: Any,
        supervisor: Connection,
    ) -> None:
        super().__init__(rank, count, begun)
        self._peers, self._queue, self._supervisor = peers, queue, supervisor
        self._queues = 0  # how many this rank has been through

    def work_queue(self, count: int) -> Iterator[int]:
        self._queues += 1
        while (item := self._next_item()) < count:
            yield item

    def _next_item(self) -> int:
        """Take the next item of this rank's queue.

        When another rank is in a later queue already, this one is empty.
        """
        with self._queue.get_lock():
            if self._queue[0] > self._queues:
                return sys.maxsize
            if self._queue[0] < self._queues:
                self._queue[:] = [self._queues, 0]
            self._queue[1] += 1
            return int(self._queue[1]) - 1

    def gather(self, own: T) -> list[T]:
        with _losing():
            if self.is_first:
                return [own, *(_receive(peer) for peer in self._peers)]
            _send(self._peers[0], own)
            return []

    def reduce_sum(self, own: NDArray[Any]) -> NDArray[Any]:
        with _losing():
            if not self.is_first:
                self._peers[0].send_bytes(np.ascontiguousarray(own).data)
                return own
            for peer in self._peers:
                own += np.frombuffer(peer.recv_bytes(), own.dtype)
        return own

    def mark_begun(self) -> None:
        if self.is_first:
            self._supervisor.send(("begun", None))

    def _broadcast(self, content: Any) -> Any:
        if not self.is_first:
            with _losing():
                return _receive(self._peers[0])
        for peer in self._peers:
            try:
                _send(peer, content)
            except OSError:
                # That rank has ended. What rank 0 did, a round it paid for, shall not be undone by
                # that; the next ``gather`` raises.
                continue
        return content


def _send(pipe: Connection, content: Any) -> None:
    """Send a plain pickle.

    ``Connection.send`` would share the memory of torch's tensors, by a socket that listens for it.
    """
    pipe.send_bytes(pickle.dumps(content, pickle.HIGHEST_PROTOCOL))


def _receive(pipe: Connection) -> Any:
    return pickle.loads(pipe.recv_bytes())


@contextmanager
def _losing() -> Iterator[None]:
    """Turn the error of a pipe whose other end is gone into ``LostRankError``."""
    try:
        yield
    except (EOFError, OSError) as error:
        raise LostRankError("another process of the run has ended") from error
