"""``launch``: the processes of a run on one machine, started and watched.

The process that calls ``launch`` starts the ranks by ``multiprocessing``, watches them, starts them
again when one is killed, and takes no part in the work. What the ranks say to each other goes
through ``pipes``; no port is opened.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import pickle
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import Any, TypeVar

from pfl_lm.distributed.pipes import LostRankError, PipeRanks
from pfl_lm.interrupts import answering, end

T = TypeVar("T")

RESTARTS = 3  # of a run, after one of its processes was killed
GRACE_SECONDS = 60.0  # from SIGTERM to SIGKILL: a rank finishes what has been paid for
_LOST = 75  # exit status of a rank that lost another one
_TERMINATED = 128 + signal.SIGTERM  # exit status of a rank that obeyed SIGTERM


def launch(count: int, work: Callable[..., T], *arguments: Any) -> T:
    """Run ``work`` in ``count`` processes of one thread each; return what it returned on rank 0.

    When a process is killed all of them are started again, at most ``RESTARTS`` times. The
    processes end when this one does, even by SIGKILL.

    Args:
        work: a function that can be imported; it is called with a ``Ranks`` and ``arguments``.

    Raises:
        ValueError, OSError: ``count`` is below 1, or ``work`` raised one on some rank (then it is
            of the same kind).
        KeyboardInterrupt: Ctrl-C; the processes have ended.
        SystemExit: SIGTERM or SIGHUP; the processes have ended.
        ChildProcessError: processes were killed again and again, or ``work`` raised any other
            exception, whose traceback is on standard error.
    """
    if count < 1:
        raise ValueError(f"{count} processes cannot do the work; start 1 or more")
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    signals, note = multiprocessing.Pipe(duplex=False)
    begun = False
    with answering(lambda number, _: note.send(number)):
        for restart in range(1 + RESTARTS):
            group = _Group(count, begun, work, arguments)
            try:
                failed = group.wait(signals)
            finally:
                group.stop()
            if failed is None:
                break
            begun = begun or group.begun
            name = f"process {failed.rank} of {count} {failed.how}"
            if not failed.killed:
                raise ChildProcessError(f"{name}; --resume goes on where the run was")
            if restart == RESTARTS:
                raise ChildProcessError(
                    f"{name}, after {RESTARTS} restarts; --resume goes on where the run was"
                )
            logging.getLogger(__name__).warning("%s; starting all of them again", name)
    if isinstance(group.result, Exception):
        raise group.result
    result: T = group.result
    return result


@dataclass(frozen=True)
class _Failure:
    """A rank that ended though its work had not."""

    rank: int
    status: int  # as multiprocessing has it: below 0 the signal that killed it

    @property
    def killed(self) -> bool:
        return self.status < 0 or self.status == _TERMINATED

    @property
    def how(self) -> str:
        killed = f"was killed by signal {-self.status if self.status < 0 else int(signal.SIGTERM)}"
        return killed if self.killed else f"failed with status {self.status}"


class _Group:
    """The processes of one start, watched from outside.

    Attributes:
        begun: whether this start or an earlier one has opened the run folder.
        result: what the work returned on rank 0; the mistake where some rank raised one.
    """

    def __init__(
        self, count: int, begun: bool, work: Callable[..., Any], arguments: tuple[Any, ...]
    ) -> None:
        self.begun = begun
        self.result: Any = None
        context = multiprocessing.get_context("spawn")
        self._queue = context.Array("q", 2)  # kept: it must exist until each rank has opened it
        pairs = [context.Pipe() for _ in range(1, count)]
        peers = [[near for near, _ in pairs], *([far] for _, far in pairs)]
        self._processes: list[Any] = []
        self._ranks: dict[Any, int] = {}  # by the pipe on which a rank is heard
        try:
            for rank in range(count):
                heard, supervisor = context.Pipe(duplex=False)
                place = (rank, count, begun, peers[rank], self._queue, supervisor)
                process = context.Process(target=_run, args=(place, work, arguments))
                process.name = f"rank {rank}"
                with _ctrl_c_blocked():
                    process.start()
                supervisor.close()
                self._processes.append(process)
                self._ranks[heard] = rank
        except BaseException:
            self.stop()
            raise
        finally:
            for pipe in (pipe for pair in pairs for pipe in pair):
                pipe.close()  # held by the ranks alone, so that each hears when another ends

    def wait(self, signals: Connection) -> _Failure | None:
        """Wait until every rank has ended, or one has failed; return the failure.

        A mistake of the user's ends the ranks one after the other: each hears that one is gone.

        Raises:
            KeyboardInterrupt, SystemExit: a signal was heard on ``signals``.
        """
        lost = None
        while self._ranks:
            for pipe in wait([signals, *self._ranks]):
                assert isinstance(pipe, Connection)
                if pipe is signals:
                    number = signals.recv()
                    raise KeyboardInterrupt if number == signal.SIGINT else SystemExit(128 + number)
                try:
                    self._hear(self._ranks[pipe], *pipe.recv())
                except EOFError:
                    rank = self._ranks.pop(pipe)
                    self._processes[rank].join()
                    status = self._processes[rank].exitcode
                    if status == _LOST:
                        lost = _Failure(rank, status)
                    elif status != 0:
                        return _Failure(rank, status)
        return None if isinstance(self.result, Exception) else lost

    def _hear(self, rank: int, kind: str, content: Any) -> None:
        if kind == "begun":
            self.begun = True
        elif kind == "mistake" or rank == 0:
            self.result = content

    def stop(self) -> None:
        """End the ranks that still run: by SIGTERM, and by SIGKILL after ``GRACE_SECONDS``."""
        for process in self._processes:
            process.terminate()
        deadline = time.monotonic() + GRACE_SECONDS
        for process in self._processes:
            process.join(max(0.0, deadline - time.monotonic()))
            process.kill()
            process.join()
        for pipe, rank in self._ranks.items():  # what they said last
            with suppress(EOFError):
                while pipe.poll():
                    self._hear(rank, *pipe.recv())
        self._ranks.clear()


@contextmanager
def _ctrl_c_blocked() -> Iterator[None]:
    """Block SIGINT for this process, and for those that it starts in the block until ``_run``."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})


def _run(place: tuple[Any, ...], work: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    """Work as one of the ranks, and tell the supervisor what came of it.

    A terminal sends Ctrl-C, and SIGHUP when it is closed, to every process of a command; the
    supervisor alone answers them, by SIGTERM to the ranks.
    """
    for name in (signal.SIGINT, signal.SIGHUP):
        signal.signal(name, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    signal.signal(signal.SIGTERM, end)
    threading.Thread(target=_end_with_the_supervisor, daemon=True).start()
    ranks, supervisor = PipeRanks(*place), place[-1]
    try:
        result = work(ranks, *arguments)
    except LostRankError:
        sys.exit(_LOST)
    except (ValueError, OSError) as mistake:
        supervisor.send(("mistake", _portable(mistake)))
    else:
        supervisor.send(("result", result if ranks.is_first else None))
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)  # nothing is left to be finished


def _portable(mistake: Exception) -> Exception:
    """Return a mistake as it is, if another process can rebuild it; else a ValueError that says it.

    An OSError keeps its file and its number, from which the verb tells the remedy.
    """
    try:
        whole = isinstance(pickle.loads(pickle.dumps(mistake)), ValueError | OSError)
    except Exception:  # its class takes other arguments than its message
        whole = False
    return mistake if whole else ValueError(str(mistake))


def _end_with_the_supervisor() -> None:
    """Wait for the end of the process that called ``launch``; then end this one as SIGTERM does."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    main = threading.main_thread().ident
    assert main is not None
    signal.pthread_kill(main, signal.SIGTERM)
