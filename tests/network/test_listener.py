"""The port: what it reports, and that a taken address is one clear error."""

from __future__ import annotations

import asyncio
import socket
from types import SimpleNamespace

import grpc
import pytest

pytest.importorskip("grpc_tools", reason="needs gRPC: pip install pfl-lm[network]")

from pfl_lm.network import listener
from pfl_lm.network.listener import Listener

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
