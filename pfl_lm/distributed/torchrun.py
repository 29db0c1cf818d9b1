"""``join``: the processes of a run on several machines, started by torchrun.

torchrun's store listens on every network interface and asks for no password, and objects travel
between ranks as pickles: everybody who reaches these ports can run code here. They are for an
isolated network whose every machine is trusted. One machine needs none of this: see ``processes``.
"""

from __future__ import annotations

import logging
import os
import secrets
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

from numpy.typing import NDArray

from pfl_lm.distributed.ranks import ALONE, Ranks
from pfl_lm.interrupts import answering, end

T = TypeVar("T")

_STATED = ("RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
TIMEOUT = timedelta(hours=1)  # of a rank that lives and does not answer; a dead one shows at once


class TorchRanks(Ranks):
    """The ranks of a torchrun launch; torch's process group is initialised.

    Args:
        store: torch's store of the launch, which outlives a restart.
        generation: the name of this start of the ranks.
    """

    def __init__(self, rank: int, count: int, store: Any, generation: str) -> None:
        from torch.distributed import PrefixStore

        self._launch = PrefixStore("launch", store)
        self._counters = PrefixStore(f"{generation}/queues", store)
        self._queues = 0
        super().__init__(rank, count, begun=self._launch.check(["begun"]))

    def work_queue(self, count: int) -> Iterator[int]:
        self._queues += 1
        counter = str(self._queues)
        while (item := self._counters.add(counter, 1) - 1) < count:
            yield item

    def all_gather(self, own: T) -> list[T]:
        import torch.distributed as dist

        parts: list[Any] = [None] * self.count
        dist.all_gather_object(parts, own)
        return parts

    def gather(self, own: T) -> list[T]:
        import torch.distributed as dist

        parts: list[Any] = [None] * self.count
        dist.gather_object(own, parts if self.is_first else None, dst=0)
        return parts if self.is_first else []

    def reduce_sum(self, own: NDArray[Any]) -> NDArray[Any]:
        import torch
        import torch.distributed as dist

        tensor = torch.from_numpy(own)
        dist.reduce(tensor, dst=0)
        return tensor.numpy()  # type: ignore[no-any-return]

    def mark_begun(self) -> None:
        if self.is_first:
            self._launch.set("begun", "yes")

    def _broadcast(self, content: Any) -> Any:
        import torch.distributed as dist

        held = [content]
        dist.broadcast_object_list(held, src=0)
        return held[0]


def launched() -> bool:
    """Whether torchrun started this process."""
    return "TORCHELASTIC_RUN_ID" in os.environ


@contextmanager
def join() -> Iterator[Ranks]:
    """Meet the other ranks, if torchrun started this process; else yield ``ALONE``.

    Raises:
        ValueError: the environment has a part of what torchrun states.
    """
    if not launched():
        yield ALONE
        return
    import torch.distributed as dist
    from torch.distributed.rendezvous import rendezvous

    if missing := [name for name in _STATED if name not in os.environ]:
        raise ValueError(
            f"TORCHELASTIC_RUN_ID is set, and {', '.join(missing)} is not: torchrun sets all of "
            "them. Start the run by torchrun, or unset TORCHELASTIC_RUN_ID"
        )
    if os.environ["LOCAL_WORLD_SIZE"] == os.environ["WORLD_SIZE"]:
        _stay_on_this_machine()
    # A rank that waits for the others is not in Python, so no handler would run; it holds nothing.
    with answering(signal.SIG_DFL):
        store, rank, count = next(rendezvous("env://", timeout=TIMEOUT))
        generation = _agree_on_generation(store, rank, count)
        dist.init_process_group(
            "gloo",
            store=dist.PrefixStore(generation, store),
            rank=rank,
            world_size=count,
            timeout=TIMEOUT,
        )
    with answering(end):
        try:
            yield TorchRanks(rank, count, store, generation)
        finally:
            dist.destroy_process_group()


def _stay_on_this_machine() -> None:
    """Bind gloo to the loopback interface and tell of torchrun's own port, which is open already.

    Not refused: clusters start every job by torchrun, and its port was open before this process.
    """
    if sys.platform == "linux":
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    if os.environ["RANK"] == "0":
        logging.getLogger(__name__).warning(
            "torchrun listens on every network interface without a password; on one machine "
            "start pfl-lm by itself with --workers %s, which opens no port",
            os.environ["WORLD_SIZE"],
        )


def _agree_on_generation(store: Any, rank: int, count: int) -> str:
    """Agree on a name for this start of the ranks.

    torch's agent reuses one store across restarts, so keys of dead processes remain in it. Each
    rank publishes a fresh nonce; rank 0 publishes the list of nonces; each rank that finds its own
    nonce in the list acknowledges it; when every rank has acknowledged the same list, that list
    names this generation.
    """
    own, acknowledged = secrets.token_hex(8), ""
    store.set(f"nonce/{rank}", own)
    while True:
        if rank == 0:
            nonces = " ".join(store.get(f"nonce/{other}").decode() for other in range(count))
            store.set("nonces", nonces)
            answers = [f"acknowledged/{other}" for other in range(count)]
            if store.check(answers) and all(store.get(a).decode() == nonces for a in answers):
                store.set("agreed", nonces)
        nonces = store.get("nonces").decode()
        if nonces != acknowledged and nonces.split()[rank : rank + 1] == [own]:
            acknowledged = nonces
            store.set(f"acknowledged/{rank}", acknowledged)
        if store.check(["agreed"]):
            agreed = str(store.get("agreed").decode())
            if agreed.split()[rank : rank + 1] == [own]:
                return agreed
        time.sleep(0.01)
