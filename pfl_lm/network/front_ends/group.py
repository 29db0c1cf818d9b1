"""Starts front ends, starts one again that ends, and ends them with the server."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import sys
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from pfl_lm.network.backend import Backend
from pfl_lm.network.front_ends.answers import Answers
from pfl_lm.network.front_ends.port import SharedPort
from pfl_lm.network.front_ends.process import FrontEndSetup
from pfl_lm.network.front_ends.wire import Wire

log = logging.getLogger("pfl_lm.network")

_START_SECONDS = 60.0
_END_SECONDS = 5.0  # after the grace; then it is killed
_PAUSE_SECONDS = 0.5  # between two starts of one front end


class FrontEnds:
    """Listens in several processes, as ``Listener`` does in one.

    Args:
        backend: who answers.
        count: processes.
        setup: what each is told.
    """

    def __init__(self, backend: Backend, count: int, setup: FrontEndSetup) -> None:
        self._backend, self._count, self._setup = backend, count, setup
        self._kept: list[asyncio.Task[None]] = []
        self._running: dict[int, tuple[asyncio.subprocess.Process, Wire]] = {}
        self._loaded: set[int] = set()
        self._all_loaded = asyncio.Event()
        self._port: SharedPort | None = None
        self._stopping = False

    @property
    def pids(self) -> list[int]:
        """The processes that run now."""
        return [process.pid for process, _ in self._running.values()]

    async def start(self) -> int:
        """Start the processes, wait until all listen, and return their port.

        Raises:
            ValueError: the address is taken or cannot be read, or a front end does not start.
        """
        self._port = await asyncio.to_thread(SharedPort, self._setup.address)
        self._setup = replace(self._setup, address=self._port.address)
        loop = asyncio.get_running_loop()
        listening: list[asyncio.Future[None]] = [loop.create_future() for _ in range(self._count)]
        self._kept = [
            asyncio.create_task(self._keep(number, ready)) for number, ready in enumerate(listening)
        ]
        try:
            async with asyncio.timeout(_START_SECONDS):
                await asyncio.gather(*listening)
        except TimeoutError:
            await self.stop(None)
            raise ValueError("a front end did not start within a minute") from None
        except BaseException:
            await self.stop(None)
            raise
        log.info("%d front ends share port %d", self._count, self._port.port)
        return self._port.port

    async def stop(self, grace: float | None) -> None:
        """End the processes; calls under way get ``grace`` seconds to end."""
        self._stopping = True
        self._all_loaded.set()
        for _, wire in self._running.values():
            wire.write(["stop", grace or 0.0])
        if self._kept:
            _, late = await asyncio.wait(self._kept, timeout=(grace or 0.0) + _END_SECONDS)
            for process, _ in self._running.values():
                _kill(process)
            if late:
                await asyncio.wait(late)
        if self._port is not None:
            self._port.close()

    async def _keep(self, number: int, ready: asyncio.Future[None]) -> None:
        """Run one front end, and another when it ends, until the server stops."""
        while not self._stopping:
            try:
                status = await self._run(number, ready)
                ended = f"signal {-status}" if status < 0 else f"status {status}"
            except OSError as error:  # the system has no process or descriptor left
                ended = str(error)
            if not ready.done():
                ready.set_exception(ValueError(f"a front end ended at its start ({ended})"))
                return
            if self._stopping or ready.exception() is not None:
                return
            log.warning(
                "front end %d ended (%s); its devices call again, and another is started",
                *(number, ended),
            )
            await asyncio.sleep(_PAUSE_SECONDS)

    async def _run(self, number: int, ready: asyncio.Future[None]) -> int:
        """Run one front end until it ends; return its exit status.

        Raises:
            OSError: it cannot be started.
        """
        process, wire = await _start()
        self._running[number] = process, wire

        def heard(said: int | str) -> None:
            if ready.done():
                if isinstance(said, str):
                    log.warning("front end %d: %s", number, said)
            elif isinstance(said, int):
                ready.set_result(None)
            else:
                ready.set_exception(ValueError(said))

        try:
            if await wire.read() is not None:
                await self._listen_together(number, wire)
                await Answers(self._backend, wire, heard).run()
        except Exception:
            log.exception("what front end %d says cannot be read; it is ended", number)
            _kill(process)
        try:
            return await _ended(process)
        finally:
            del self._running[number]

    async def _listen_together(self, number: int, wire: Wire) -> None:
        """Let the first front ends listen at one moment: else one would get all who wait already.

        Devices stay where they have connected.
        """
        self._loaded.add(number)
        if len(self._loaded) == self._count:
            self._all_loaded.set()
        await self._all_loaded.wait()
        wire.write(["stop", 0.0] if self._stopping else self._setup.values())


async def _start() -> tuple[asyncio.subprocess.Process, Wire]:
    """Start a front end, and connect to it."""
    ours, theirs = socket.socketpair()
    try:
        with theirs:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "pfl_lm.network.front_ends.process", str(theirs.fileno())),
                stdin=asyncio.subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                env=_environment(),
            )
    except OSError:
        ours.close()
        raise
    return process, await Wire.over(ours)


async def _ended(process: asyncio.subprocess.Process) -> int:
    """Wait until a front end without a connection has ended; kill one that hangs."""
    with suppress(TimeoutError):
        async with asyncio.timeout(_END_SECONDS):
            return await process.wait()
    _kill(process)
    return await process.wait()


def _kill(process: asyncio.subprocess.Process) -> None:
    with suppress(ProcessLookupError):
        process.kill()


def _environment() -> dict[str, str]:
    """This process's environment, in which Python finds this package."""
    package = str(Path(__file__).resolve().parents[3])
    paths = [package, os.environ.get("PYTHONPATH", "")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
