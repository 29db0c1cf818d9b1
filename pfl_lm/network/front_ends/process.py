"""What a front end runs: ``python -m pfl_lm.network.front_ends.process DESCRIPTOR``.

It loads gRPC and the service, and no model. It ends with the process that started it.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import sys
from dataclasses import asdict, dataclass, field
from typing import Any

from pfl_lm.native.tuning import give_memory_back
from pfl_lm.network.front_ends.remote import LogHandler, RemoteBackend
from pfl_lm.network.front_ends.wire import Wire
from pfl_lm.network.listener import Listener
from pfl_lm.network.service import Service
from pfl_lm.network.transport import Limits

_TRIM_SECONDS = 30.0


@dataclass(frozen=True)
class FrontEndSetup:
    """What a front end is told when it starts.

    Attributes:
        address: ``host:port``, which it shares.
        tls: secret key and certificate, PEM.
        task_config, limits, frame_bytes: of ``Service``.
    """

    address: str
    tls: tuple[bytes, bytes] = field(repr=False)
    task_config: str
    limits: Limits
    frame_bytes: int

    def values(self) -> list[Any]:
        """Return plain values, from which ``of`` makes this again."""
        key, certificate = (part.decode() for part in self.tls)
        about = [self.address, key, certificate, self.task_config]
        return [*about, asdict(self.limits), self.frame_bytes]

    @classmethod
    def of(cls, values: list[Any]) -> FrontEndSetup:
        address, key, certificate, task_config, limits, frame_bytes = values
        tls = key.encode(), certificate.encode()
        return cls(address, tls, task_config, Limits(**limits), frame_bytes)


async def answer(end: socket.socket) -> None:
    """Answer devices until the process at the other end stops this one, or is gone."""
    wire = await Wire.over(end)
    wire.write(["loaded"])
    if (told := await wire.read()) is None or told[0][0] == "stop":
        return
    setup = FrontEndSetup.of(told[0])
    logger = logging.getLogger("pfl_lm.network")
    logger.setLevel(logging.INFO)
    logger.addHandler(LogHandler(wire))
    logger.propagate = False
    backend = RemoteBackend(wire)
    service = Service(backend, setup.task_config, setup.limits, setup.frame_bytes)
    listener = Listener(service, setup.address, setup.tls, shared=True)
    reading = asyncio.create_task(backend.read())
    try:
        port = await listener.start()
    except ValueError as error:
        wire.write(["ready", str(error)])
        await wire.drain()
        return
    wire.write(["ready", port])
    trimming = asyncio.create_task(_give_memory_back())
    if (grace := await backend.stopped) is not None:
        stopping = asyncio.create_task(listener.stop(grace))
        await asyncio.wait([stopping, reading], return_when=asyncio.FIRST_COMPLETED)
    trimming.cancel()


async def _give_memory_back() -> None:
    """Give what a phase's messages took back to the system, now and then."""
    while True:
        await asyncio.sleep(_TRIM_SECONDS)
        await asyncio.to_thread(give_memory_back)


def main() -> None:
    """Run one front end; the argument is the descriptor of its end of the connection."""
    for name in (signal.SIGINT, signal.SIGHUP):  # they are for the process that started it
        signal.signal(name, signal.SIG_IGN)
    logging.getLogger("grpc").setLevel(logging.CRITICAL)
    asyncio.new_event_loop().run_until_complete(answer(socket.socket(fileno=int(sys.argv[1]))))
    os._exit(0)  # the connections end with the process, at once


if __name__ == "__main__":
    main()
