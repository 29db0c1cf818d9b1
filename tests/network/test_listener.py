"""The port: what it reports, what a connection keeps, and how a taken address is refused."""

from __future__ import annotations

import asyncio
import ctypes
import platform
import socket
from types import SimpleNamespace

import grpc
import pytest

pytest.importorskip("grpc_tools", reason="needs gRPC: pip install pfl-lm[network]")

from pfl_lm.network import listener
from pfl_lm.network.listener import Listener
from pfl_lm.network.transport import messages, stub

SERVICE = SimpleNamespace(
    **dict.fromkeys(("Challenge", "Authenticate", "Fetch", "Send", "Model"), None)
)


def test_what_callers_do_to_grpc_is_not_reported_and_our_own_faults_are():
    reported = []
    loop = SimpleNamespace(default_exception_handler=lambda context: reported.append(context))
    own = {"exception": KeyError("ours")}
    left = {"exception": grpc.aio.UsageError("a caller left")}
    decoding = {"exception": UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte")}
    for context in (own, left, decoding, {"message": "slow"}):
        listener._report(loop, context)
    assert reported == [own, {"message": "slow"}]


def test_a_taken_address_is_refused_by_name():
    async def run(place: str) -> None:
        await Listener(SERVICE, place, None).start()

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        place = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(ValueError, match=f"cannot listen on {place}"):
            asyncio.run(run(place))


def test_a_port_is_opened_and_closed():
    async def run() -> int:
        port = Listener(SERVICE, "127.0.0.1:0", None)
        number = await port.start()
        await port.stop(grace=None)
        return number

    number = asyncio.run(run())
    with socket.socket() as again:
        again.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        again.bind(("127.0.0.1", number))


CONNECTIONS = 24
KEPT_BYTES = 50_000  # 4,000 by 24 connections; without the setting of the listener 400,000


class Heap(ctypes.Structure):
    """mallinfo2 of glibc's <malloc.h>."""

    _fields_ = [(f"field_{n}", ctypes.c_size_t) for n in range(7)]
    _fields_ += [("in_use", ctypes.c_size_t), ("free", ctypes.c_size_t), ("top", ctypes.c_size_t)]


@pytest.fixture
def heap_in_use():
    """A function that returns how many bytes of this process's heap are in use."""
    if tuple(map(int, grpc.__version__.split(".")[:2])) < (1, 85):
        pytest.skip("an older gRPC does not know the setting")
    libc = ctypes.CDLL(None) if platform.libc_ver()[0] == "glibc" else None
    if not hasattr(libc, "mallinfo2"):
        pytest.skip("only glibc 2.33 and later says what is in use")
    libc.mallinfo2.restype = Heap
    return lambda: libc.mallinfo2().in_use


def test_a_connection_keeps_nothing_of_what_it_received(heap_in_use):
    """Thousands of devices stay connected between their reports."""

    class Reads:
        async def Send(self, requests, context):
            async for _ in requests:
                pass
            return messages.Item()

    service = SimpleNamespace(**{**vars(SERVICE), "Send": Reads().Send})

    async def send(channel, size: int) -> None:
        async def parts():
            yield messages.Upload(part=bytes(size))

        await stub(channel).Send(parts())

    async def run() -> int:
        opened = Listener(service, "127.0.0.1:0", None)
        place = f"127.0.0.1:{await opened.start()}"
        apart = [("grpc.use_local_subchannel_pool", 1)]
        channels = [grpc.aio.insecure_channel(place, apart) for _ in range(CONNECTIONS)]
        for channel in channels:
            await send(channel, 1)
        before = heap_in_use()
        for channel in 3 * channels:
            await send(channel, 400_000)
        kept = heap_in_use() - before
        for channel in channels:
            await channel.close()
        await opened.stop(grace=0.0)
        return kept

    assert asyncio.run(run()) < CONNECTIONS * KEPT_BYTES
