"""Front ends are started again, whatever ends them; here each is played in the same event loop."""

from __future__ import annotations

import asyncio
import logging
import signal
import socket

import pytest

pytest.importorskip("grpc_tools", reason="needs gRPC: pip install pfl-lm[network]")

from pfl_lm.network.front_ends import group
from pfl_lm.network.front_ends.group import FrontEnds
from pfl_lm.network.front_ends.process import FrontEndSetup
from pfl_lm.network.front_ends.wire import Wire
from pfl_lm.network.transport import Limits

SETUP = FrontEndSetup("127.0.0.1:0", (b"key", b"certificate"), "task", Limits(), 1000)
WITHIN = 30  # seconds


class Played:
    """The process of a front end, and what it says."""

    def __init__(self, pid: int, end: socket.socket) -> None:
        self.pid, self._end = pid, end
        self._status: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self.listens = asyncio.Event()
        self.task = asyncio.create_task(self._run())

    async def _run(self) -> None:
        self.wire = await Wire.over(self._end)
        self.wire.write(["loaded"])
        await self.wire.read()
        self.wire.write(["ready", 8443])
        self.listens.set()
        await self.wire.read()  # that it stops
        self.wire.close()
        self.ends(0)

    def ends(self, status: int) -> None:
        if not self._status.done():
            self._status.set_result(status)

    def kill(self) -> None:
        if self._status.done():
            raise ProcessLookupError
        self.ends(-signal.SIGKILL)

    async def wait(self) -> int:
        return await asyncio.shield(self._status)


@pytest.fixture
def played(monkeypatch):
    """A function that runs a test with one front end, and those that were started in its place.

    Its argument: how many attempts to start one work, before the next fails.
    """
    monkeypatch.setattr(group, "_PAUSE_SECONDS", 0.01)
    monkeypatch.setattr(group, "_END_SECONDS", 0.2)

    def run(test, failing: int = 1 << 30) -> None:
        async def both() -> None:
            started: list[Played | None] = []

            async def start():
                if len(started) == failing:
                    started.append(None)
                    raise OSError("no process is left")
                ours, theirs = socket.socketpair()
                started.append(Played(len(started), theirs))
                return started[-1], await Wire.over(ours)

            monkeypatch.setattr(group, "_start", start)
            front_ends = FrontEnds(None, 1, SETUP)
            await test(front_ends, started)
            await front_ends.stop(0.0)
            assert not front_ends.pids

        asyncio.run(asyncio.wait_for(both(), WITHIN))

    return run


async def next_listens(started: list, number: int) -> None:
    while len(started) <= number:
        await asyncio.sleep(0.01)
    await started[number].listens.wait()


def test_one_that_cannot_be_started_again_is_tried_again(played, caplog):
    async def test(front_ends, started):
        await front_ends.start()
        started[0].wire.close()
        started[0].ends(-signal.SIGKILL)
        await next_listens(started, 2)
        assert front_ends.pids == [2]

    with caplog.at_level(logging.WARNING, "pfl_lm.network"):
        played(test, failing=1)
    assert "front end 0 ended (signal 9)" in caplog.text
    assert "front end 0 ended (no process is left)" in caplog.text


def test_one_that_hangs_without_its_connection_is_killed(played, caplog):
    async def test(front_ends, started):
        await front_ends.start()
        started[0].task.cancel()
        started[0].wire.close()
        await next_listens(started, 1)
        assert await started[0].wait() == -signal.SIGKILL

    with caplog.at_level(logging.WARNING, "pfl_lm.network"):
        played(test)
    assert "front end 0 ended (signal 9)" in caplog.text


def test_one_that_says_what_cannot_be_read_is_ended(played, caplog):
    """Also where it has ended already."""

    async def test(front_ends, started):
        await front_ends.start()
        started[0].ends(3)
        started[0].wire.write(["send"])  # no request has a number
        await next_listens(started, 1)

    with caplog.at_level(logging.WARNING, "pfl_lm.network"):
        played(test)
    assert "cannot be read" in caplog.text
    assert "front end 0 ended (status 3)" in caplog.text


def test_one_that_cannot_be_started_at_all_is_named(played):
    async def test(front_ends, started):
        with pytest.raises(ValueError, match=r"ended at its start \(no process is left\)"):
            await front_ends.start()

    played(test, failing=0)
