"""``Ranks``: the collective operations of a run's processes; ``ALONE``: a run of one process."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from numpy.typing import NDArray

T = TypeVar("T")


class Ranks:
    """The processes of a run, seen from one of them; this class itself has one process only.

    All ranks call every method but ``shard`` and ``mark_begun``, in the same order.

    Args:
        rank: the number of this process, from 0.
        count: the number of processes.
        begun: whether this run is a restart: an earlier start of the same launch had opened the
            run folder (``mark_begun``) before one of its processes was killed. Only then may the
            run be resumed without ``--resume``; rank 0 alone needs to know.
    """

    def __init__(self, rank: int = 0, count: int = 1, begun: bool = False) -> None:
        self.rank, self.count, self.begun = rank, count, begun

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def shard(self, items: NDArray[Any]) -> NDArray[Any]:
        """Return this rank's part of a list: every ``count``-th item."""
        return items[self.rank :: self.count]

    def work_queue(self, count: int) -> Iterator[int]:
        """Yield the numbers below ``count`` that fall to this rank; together all of them, once.

        A rank takes the next number when it has finished the last one, so a slow processor takes
        fewer.
        """
        yield from range(count)

    def on_rank_zero(self, action: Callable[..., T], *arguments: Any) -> T:
        """Call ``action`` on rank 0 and return its result on every rank.

        Raises:
            Exception: what ``action`` raised, on every rank.
        """
        error: Exception | None = None
        result: Any = None
        if self.is_first:
            try:
                result = action(*arguments)
            except Exception as raised:
                error = raised
        error, result = self._broadcast((error, result))
        if error is not None:
            raise error
        return result  # type: ignore[no-any-return]

    def all_gather(self, own: T) -> list[T]:
        """Return what every rank passed, in the order of ranks, on every rank."""
        parts: list[T] = self._broadcast(self.gather(own))
        return parts

    def gather(self, own: T) -> list[T]:
        """Return what every rank passed, in the order of ranks, on rank 0; [] on the others."""
        return [own]

    def reduce_sum(self, own: NDArray[Any]) -> NDArray[Any]:
        """Return the sum of int32[n] or int64[n] over all ranks, on rank 0; it wraps at its width.

        The other ranks must not use what they get. ``own`` may be overwritten.
        """
        return own

    def mark_begun(self) -> None:
        """Note, on rank 0, that the run folder is open: a restart resumes it (see ``begun``)."""

    def _broadcast(self, content: Any) -> Any:
        """Return what rank 0 passed, on every rank."""
        return content


ALONE = Ranks()
