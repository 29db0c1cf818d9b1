"""Several processes on one run: rank 0 keeps the books, every rank trains part of the cohort.

torchrun starts the ranks, on one machine or on many, or ``launch`` does, on this one. What they
say to each other fits into five methods of :class:`Ranks`; a run that is alone has the same
object, and says it to itself.

Everybody who may join is trusted: objects travel as pickles.
"""

from __future__ import annotations

import atexit
import logging
import os
import secrets
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from types import FrameType
from typing import Any, TypeVar

from numpy.typing import NDArray

from pfl_lm.interrupts import ENDS, answering

T = TypeVar("T")

PATIENCE = timedelta(hours=1)  # for a rank that lives and says nothing; a dead one shows at once
RESTARTS = 3  # of a run started by ``launch``, after a process was killed


class Ranks:
    """The processes of a run, as one of them sees them.

    Every method that talks is called by all ranks, in the same order.

    Args:
        rank: whose view this is, from 0.
        count: how many there are.
        store: where turns are counted; None for a rank that is alone.

    Attributes:
        restarted: whether the run had begun before and a process of it was killed.
    """

    def __init__(self, rank: int = 0, count: int = 1, store: Any = None) -> None:
        self.rank, self.count, self._store = rank, count, store
        self._lists = 0
        # Of several machines only the one that lost a process counts a restart.
        again = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0
        self.restarted = store is not None and any(self.exchange(again))

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def share(self, items: NDArray[Any]) -> NDArray[Any]:
        """Return this rank's part of a list: every ``count``-th item."""
        return items[self.rank :: self.count]

    def turns(self, count: int) -> Iterator[int]:
        """Yield the numbers below ``count`` that fall to this rank; together all of them, once.

        Whoever is done takes the next one, so a slow machine takes fewer.
        """
        if self._store is None:
            yield from range(count)
            return
        self._lists += 1
        counter = f"turns/{self._lists}"
        while (turn := self._store.add(counter, 1) - 1) < count:
            yield turn

    def first(self, action: Callable[..., T], *arguments: Any) -> T:
        """Let rank 0 act; return what came out, on every rank.

        Raises:
            Exception: what ``action`` raised, on every rank.
        """
        if self.count == 1:
            return action(*arguments)
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

    def exchange(self, own: T) -> list[T]:
        """Return what every rank brought, in their order, on every rank."""
        if self.count == 1:
            return [own]
        import torch.distributed as dist

        found: list[Any] = [None] * self.count
        dist.all_gather_object(found, own)
        return found

    def hand_in(self, own: T) -> list[T]:
        """Return what every rank brought, in their order, on rank 0; nothing on the others."""
        if self.count == 1:
            return [own]
        import torch.distributed as dist

        found: list[Any] = [None] * self.count
        dist.gather_object(own, found if self.is_first else None, dst=0)
        return found if self.is_first else []

    def add_up(self, own: NDArray[Any]) -> NDArray[Any]:
        """Return the sum of int32[n] or int64[n] over all ranks, on rank 0; wraps at its width.

        On the other ranks what comes back means nothing. ``own`` may be overwritten.
        """
        if self.count == 1:
            return own
        import torch
        import torch.distributed as dist

        device = torch.device("cuda") if torch.cuda.is_available() else torch.device("cpu")
        tensor = torch.from_numpy(own).to(device)
        dist.reduce(tensor, dst=0)
        return tensor.cpu().numpy()  # type: ignore[no-any-return]

    def _broadcast(self, content: Any) -> Any:
        import torch.distributed as dist

        held = [content]
        dist.broadcast_object_list(held, src=0)
        return held[0]


ALONE = Ranks()


def launched() -> bool:
    """Whether torchrun (or ``launch``) started this process."""
    return "TORCHELASTIC_RUN_ID" in os.environ


@contextmanager
def join() -> Iterator[Ranks]:
    """Meet the other ranks, if torchrun or ``launch`` started this process; else be alone.

    Sums travel by NCCL where there is CUDA, rank n of a machine on its n-th GPU; everything else
    by gloo.
    """
    if not launched():
        yield ALONE
        return
    import torch
    import torch.distributed as dist
    from torch._C._distributed_c10d import PrefixStore
    from torch.distributed.rendezvous import rendezvous

    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]) % torch.cuda.device_count())
    # Who waits for the others is in no Python that could hear an exception, and holds nothing yet.
    with answering(signal.SIG_DFL):
        store, rank, count = next(rendezvous("env://", timeout=PATIENCE))
        store = PrefixStore(_meet(store, rank, count), store)
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        dist.init_process_group(backend, store=store, rank=rank, world_size=count, timeout=PATIENCE)
    with answering(_end):
        try:
            yield Ranks(rank, count, PrefixStore("turns", store))
        finally:
            dist.destroy_process_group()


def _meet(store: Any, rank: int, count: int) -> str:
    """Agree on a name for this start of the run.

    torch's agent keeps one store for all starts, and addresses of dead processes lie in it. So
    everybody leaves a word that is new; rank 0 reads out the words it finds; whoever hears their
    own says that they did; and once all have heard the same words, these are the name.
    """
    own, heard = secrets.token_hex(8), ""
    store.set(f"word/{rank}", own)
    while True:
        if rank == 0:
            words = " ".join(store.get(f"word/{other}").decode() for other in range(count))
            store.set("words", words)
            answers = [f"heard/{other}" for other in range(count)]
            if store.check(answers) and all(store.get(a).decode() == words for a in answers):
                store.set("agreed", words)
        words = store.get("words").decode()
        if words != heard and words.split()[rank : rank + 1] == [own]:
            heard = words
            store.set(f"heard/{rank}", heard)
        if store.check(["agreed"]):
            agreed = str(store.get("agreed").decode())
            if agreed.split()[rank : rank + 1] == [own]:
                return agreed
        time.sleep(0.01)


def launch(count: int, work: Callable[..., T], *arguments: Any) -> T:
    """Run ``work`` in ``count`` processes of one thread each; return what rank 0 returned.

    A process that is killed makes torch's elastic agent start all of them again.

    Args:
        work: a function that can be imported; it is called with ``arguments`` and joins.

    Raises:
        ValueError: what ``work`` raised as one on rank 0.
        KeyboardInterrupt: Ctrl-C; the processes have ended.
        ChildProcessError: they were killed or failed again and again.
    """
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    os.environ.setdefault("OMP_NUM_THREADS", "1")
    for part in ("agent.server.api", "multiprocessing.api"):  # their warnings tell of Ctrl-C
        logging.getLogger(f"torch.distributed.elastic.{part}").setLevel(logging.ERROR)
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=count,
        run_id="pfl-lm",
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        local_addr="localhost",
        max_restarts=RESTARTS,
    )
    try:
        found = elastic_launch(config, _work)(work, *arguments)[0]
    except SignalException as ended:
        atexit.register(_leave, 128 + ended.sigval)
        if ended.sigval == signal.SIGINT:
            raise KeyboardInterrupt from None
        raise SystemExit(128 + ended.sigval) from None
    except ChildFailedError as failed:
        rank, failure = failed.get_first_failure()
        raise ChildProcessError(
            f"process {rank} of {count} ended with status {failure.exitcode}, after {RESTARTS} "
            "restarts; --resume goes on where the run was"
        ) from None
    if isinstance(found, Exception):
        raise found
    return found  # type: ignore[no-any-return]


def _leave(status: int) -> None:
    """End this process at once: threads of the agent's store that still run would abort it."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def _work(work: Callable[..., Any], *arguments: Any) -> Any:
    """Work as one of the processes; a person's mistake is an answer, not a reason to restart."""
    try:
        return work(*arguments)
    except (ValueError, OSError) as mistake:
        return ValueError(str(mistake))


def _end(number: int, _: FrameType | None) -> None:
    """End this process as an exception does: files closed.

    The same signal comes twice, from the terminal and from the agent; while the first is obeyed,
    the second is not heard.
    """
    for name in ENDS:
        signal.signal(name, signal.SIG_IGN)
    raise KeyboardInterrupt if number == signal.SIGINT else SystemExit(128 + number)
