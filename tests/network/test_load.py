"""What keeps the server's work and memory in bounds where thousands of devices call."""

from __future__ import annotations

import asyncio
import socket
from contextlib import asynccontextmanager, nullcontext
from types import SimpleNamespace

import numpy as np
import pytest
import torch

pytest.importorskip("grpc_tools", reason="needs gRPC: pip install pfl-lm[network]")

from pfl_lm.network.backend import LocalBackend
from pfl_lm.network.exclusions import Exclusions
from pfl_lm.network.front_ends.answers import Answers
from pfl_lm.network.front_ends.remote import RemoteBackend
from pfl_lm.network.front_ends.wire import Wire
from pfl_lm.network.model_delta import _pieces
from pfl_lm.network.presence import Presence
from pfl_lm.network.refusals import NotNow
from pfl_lm.network.service import Service
from pfl_lm.network.transport import SESSION, Limits, messages
from pfl_lm.network.upload_pool import UploadPool
from pfl_lm.secagg.phase import Written


def test_news_of_thousands_is_looked_at_together():
    """Who waits for news looks at every device: not once for each of them."""
    presence = Presence(range(100_000), Limits(), Exclusions({}))

    async def run() -> bool:
        waiting = asyncio.create_task(presence.wait(60.0))
        await asyncio.sleep(0)
        for _ in range(10):
            presence.news.set()
            await asyncio.sleep(0)
        looked_at_once = waiting.done()
        await waiting  # but it ends, without more news
        return looked_at_once

    assert not asyncio.run(run())


def test_a_download_holds_a_small_piece_of_the_model():
    """A device that reads slowly keeps one piece in the server's memory, whatever the model."""
    table = torch.arange(1_000_003, dtype=torch.float32)
    tables = {"table": table, **{str(number): table[:3] + number for number in range(50)}}
    context = SimpleNamespace(roles=tables)
    pieces = list(_pieces(context, tables, None))
    assert max(map(len, pieces)) <= 1 << 17
    assert len(pieces) < 40  # fifty short tables travel together
    expected = torch.cat([*tables.values()]).numpy()
    assert np.array_equal(np.frombuffer(b"".join(pieces), "<f4"), expected)


class Aborted(Exception):
    """A call that the service ended with a status."""


class Call:
    """What gRPC tells a method of a call."""

    def invocation_metadata(self):
        return ((SESSION, b"token"),)

    async def abort(self, code, details):
        raise Aborted(code, details)


class Turns:
    """A mailbox in which it is every device's turn."""

    def __init__(self) -> None:
        self.frames: list[bytes] = []
        self.fetched: list[tuple[int, int, int]] = []

    async def fetch(self, device: int, round: int, step: int, spent: float):
        assert 0 <= spent < 60
        assert self.stream.ag_frame is None  # nothing holds the message's last part
        self.fetched.append((device, round, step))
        return messages.Item(round=round, step=step + 1, frame=b"next")

    def check_turn(self, device: int, round: int) -> None:
        pass

    def send(self, device: int, round: int, frame: bytes) -> None:
        self.frames.append(frame)

    def misbehaves(self, device: int, text: str) -> ValueError:
        return NotNow(text)


LIMITS = Limits(phase_seconds=0.05)


@pytest.fixture
def backend():
    admission = SimpleNamespace(call=lambda token, cost: nullcontext(7))
    return LocalBackend(admission, Turns(), None)


@pytest.fixture
def service(backend):
    return Service(backend, "", LIMITS, frame_bytes=1000)


@asynccontextmanager
async def front_end_of(backend):
    """The service of a front end, whose round is in the same event loop."""
    left, right = socket.socketpair()
    remote = RemoteBackend(await Wire.over(left))
    answering = asyncio.create_task(Answers(backend, await Wire.over(right), print).run())
    reading = asyncio.create_task(remote.read())
    yield Service(remote, "", LIMITS, frame_bytes=1000)
    remote.wire.close()
    await asyncio.gather(answering, reading)


async def upload(size: int, *parts: bytes, stalls: bool = False):
    """The messages of an upload."""
    yield messages.Upload(round=0, size=size, part=parts[0])
    for part in parts[1:]:
        yield messages.Upload(part=part)
    if stalls:
        await asyncio.sleep(60.0)


UPLOADS = {
    "stalls": (
        lambda: upload(900, bytes(300), stalls=True),
        "UNAVAILABLE",
        "the call took too long",
    ),
    "ends early": (lambda: upload(900, bytes(300)), "FAILED_PRECONDITION", "missing or incomplete"),
    "too long": (lambda: upload(1001, b""), "FAILED_PRECONDITION", "1,001 bytes"),
    "longer than stated": (
        lambda: upload(9, bytes(10)),
        "FAILED_PRECONDITION",
        "longer than it states",
    ),
}


@pytest.mark.parametrize("case", UPLOADS)
def test_an_upload_that_does_not_end_well_is_ended(service, case):
    requests, code, details = UPLOADS[case]
    with pytest.raises(Aborted) as ended:
        asyncio.run(service.Send(requests(), Call()))
    assert ended.value.args[0].name == code
    assert details in ended.value.args[1]
    assert service._backend.mailbox.frames == []
    asyncio.run(service.Send(upload(600, bytes(300), bytes(300)), Call()))  # the device goes on
    assert service._backend.mailbox.frames == [bytes(600)]


@pytest.mark.parametrize("case", UPLOADS)
def test_a_front_end_ends_such_an_upload_too(backend, case):
    """And the round counts the device as one that sends nothing."""
    requests, code, details = UPLOADS[case]

    async def run() -> None:
        async with front_end_of(backend) as service:
            with pytest.raises(Aborted) as ended:
                await service.Send(requests(), Call())
            assert ended.value.args[0].name == code
            assert details in ended.value.args[1]
            await service.Send(upload(600, bytes(300), bytes(300)), Call())
            assert backend.mailbox.frames == [bytes(600)]

    asyncio.run(asyncio.wait_for(run(), 60))
    assert not backend.uploading


def test_a_call_that_sends_waits_for_what_comes_next(service):
    """Only where it says so: older clients read an empty answer. It waits without its message."""

    async def send(seen: int):
        async def requests():
            yield messages.Upload(round=5, size=3, part=b"ab", seen=seen)
            yield messages.Upload(part=b"c")

        service._backend.mailbox.stream = requests()
        return await service.Send(service._backend.mailbox.stream, Call())

    assert asyncio.run(send(0)) == messages.Item()
    assert service._backend.mailbox.fetched == []
    assert asyncio.run(send(3)) == messages.Item(round=5, step=4, frame=b"next")
    assert service._backend.mailbox.fetched == [(7, 5, 3)]
    assert service._backend.mailbox.frames == [b"abc", b"abc"]


def test_a_call_is_held_no_longer_because_its_upload_took_long():
    presence = Presence(range(3), Limits(hold_seconds=60.0), Exclusions({}))

    async def rings() -> bool:
        async with presence.waiting(0, spent=61.0) as bell:
            return await bell.rings()

    assert not asyncio.run(asyncio.wait_for(rings(), 30))


def test_messages_for_thousands_are_written_one_at_a_time():
    """What a phase hands out is written when a device fetches it, and each time the same."""
    written: list[int] = []

    def write(device: int) -> bytes:
        written.append(device)
        return bytes([device])

    outgoing = Written(range(3), write)
    assert (len(outgoing), list(outgoing), written) == (3, [0, 1, 2], [])
    assert outgoing[2] == outgoing[2] == b"\x02"
    assert written == [2, 2]
    with pytest.raises(KeyError):
        outgoing[3]


def test_uploads_wait_for_a_place_and_give_it_up_if_they_take_long():
    """Two places. Who stalls is ended, but only once others wait and it has had its time.

    Also who takes a place while others wait already: four stall before five that do not.
    """
    ended: list[str] = []

    async def read(pool: UploadPool, name: str, until: asyncio.Event) -> None:
        try:
            async with pool.place():
                await until.wait()
                ended.append(name)
        except TimeoutError:
            ended.append(f"{name} gave up")

    async def run() -> None:
        pool, whole, never = UploadPool(2, 0.05), asyncio.Event(), asyncio.Event()
        first = [asyncio.create_task(read(pool, f"stalled {n}", never)) for n in range(2)]
        await asyncio.sleep(0.1)
        assert ended == []  # nobody waits for their places
        first += [asyncio.create_task(read(pool, f"stalled {n}", never)) for n in (2, 3)]
        await asyncio.sleep(0)
        whole.set()
        await asyncio.gather(*(read(pool, f"whole {n}", whole) for n in range(5)))
        await asyncio.gather(*first)

    asyncio.run(asyncio.wait_for(run(), 60))
    assert sorted(ended[:4]) == [f"stalled {number} gave up" for number in range(4)]
    assert ended[4:] == [f"whole {number}" for number in range(5)]
