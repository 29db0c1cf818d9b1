"""What strangers send to an open port: HTTP/2 to the training server, HTTP/1.1 to the keyboard's.

After every input the server answers a sound question, or the input is a finding.
"""

from __future__ import annotations

import asyncio
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.client import HTTPConnection
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import grpc

from pfl_lm.keyboard.server import Server
from pfl_lm.network.admission import Admission
from pfl_lm.network.backend import LocalBackend
from pfl_lm.network.exclusions import Exclusions
from pfl_lm.network.identity import Credentials
from pfl_lm.network.listener import Listener
from pfl_lm.network.mailbox import Mailbox
from pfl_lm.network.service import Service
from pfl_lm.network.transport import Limits, messages, stub
from tests.fuzz.targets import Target

_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_SETTINGS = b"\x00\x00\x00\x04\x00\x00\x00\x00\x00"
_WAIT = 0.05  # seconds that an answer is waited for
METHODS = ("Challenge", "Authenticate", "Fetch", "Send", "Model")


@contextmanager
def grpc_target() -> Iterator[Target]:
    """A server without TLS, which would hide the frames, and otherwise as in production."""
    ready, over = threading.Event(), threading.Event()
    place = SimpleNamespace(port=0)

    def run() -> None:
        asyncio.run(_serve(place, ready, over))

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    assert ready.wait(30)
    address = f"127.0.0.1:{place.port}"
    seeds = [_call(method, body) for method in METHODS for body in _bodies(method)]
    with grpc.insecure_channel(address) as channel:
        challenge = stub(channel).Challenge

        def attempt(data: bytes) -> None:
            _shout(address, data)
            assert len(_answered(challenge)) == 32

        yield Target("http2", seeds, attempt, ())
    over.set()
    thread.join(30)


def _answered(challenge: Any, tries: int = 10) -> bytes:
    """Ask as a device does, again where the port was closed and opened meanwhile."""
    for left in reversed(range(tries)):
        try:
            request = messages.ChallengeRequest(device=1)
            nonce: bytes = challenge(request, timeout=10, wait_for_ready=True).nonce
            return nonce
        except grpc.RpcError:
            if not left:
                raise
            time.sleep(0.1)
    raise AssertionError("not reached")


async def _serve(place: SimpleNamespace, ready: threading.Event, over: threading.Event) -> None:
    identities = {number: bytes([number]) * 32 for number in range(3)}
    limits, exclusions = Limits(stranger_seconds=1.0), Exclusions(identities)
    admission = Admission(Credentials(identities, bytes(32), bytes(32)), limits, exclusions)
    mailbox = Mailbox(identities, limits, admission.strike, admission.grant_round, exclusions)
    models: Any = None
    service = Service(LocalBackend(admission, mailbox, models), "{}", limits, 1 << 16)
    server = Listener(service, "127.0.0.1:0", None)
    place.port = await server.start()
    ready.set()
    while not over.is_set():
        await asyncio.sleep(0.05)
    await server.stop(grace=0)


def _bodies(method: str) -> list[bytes]:
    sound = {
        "Challenge": messages.ChallengeRequest(device=1),
        "Authenticate": messages.AuthenticateRequest(
            nonce=bytes(32), signature=bytes(64), certificate=bytes(80)
        ),
        "Fetch": messages.Cursor(round=-1),
        "Send": messages.Upload(round=0, size=10, part=bytes(10)),
        "Model": messages.Version(have=-1, want=0),
    }
    return [sound[method].SerializeToString(), b"\xff" * 20]


def _call(method: str, body: bytes) -> bytes:
    """One call as HTTP/2: preface, settings, headers without compression, one message."""
    fields = {
        ":method": "POST",
        ":scheme": "http",
        ":path": f"/pfl_lm.network.v3.Aggregation/{method}",
        ":authority": "x",
        "content-type": "application/grpc",
        "te": "trailers",
        "session-bin": "AAAA",
    }
    block = b"".join(
        b"\x00" + bytes([len(name)]) + name.encode() + bytes([len(value)]) + value.encode()
        for name, value in fields.items()
    )
    message = b"\x00" + len(body).to_bytes(4, "big") + body
    return _PREFACE + _SETTINGS + _frame(1, 4, block) + _frame(0, 1, message)


def _frame(kind: int, flags: int, content: bytes) -> bytes:
    return len(content).to_bytes(3, "big") + bytes([kind, flags, 0, 0, 0, 1]) + content


@contextmanager
def keyboard_target() -> Iterator[Target]:
    """The keyboard's server with a site that has one file and no graph."""
    site: Any = SimpleNamespace(
        files=lambda: {"index.html": Path(__file__)},
        about=lambda: "{}",
        in_page=False,
        graphs=lambda: {"g": lambda **given: given},
    )
    with Server(site, 0) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        address, prefix = f"127.0.0.1:{server.server_port}", f"/{server.secret}"
        crashed: list[str] = []

        def note(request: Any, client: Any) -> None:
            if not isinstance(sys.exception(), ConnectionError | TimeoutError):  # it just left
                crashed.append(traceback.format_exc())

        server.handle_error = note  # type: ignore[method-assign]

        def attempt(data: bytes) -> None:
            crashed.clear()
            _shout(address, data)
            connection = HTTPConnection(address, timeout=30)
            connection.request("GET", f"{prefix}/site.json")
            assert connection.getresponse().read() == b"{}"
            connection.close()
            assert not crashed, crashed

        yield Target("keyboard", list(_requests(address, prefix)), attempt, ())
        server.shutdown()
        thread.join(30)


def _requests(address: str, prefix: str) -> Iterator[bytes]:
    tensor = b'{"type": "float32", "dims": [1], "data": "AAAAAA=="}'
    bodies = [b"", b'{"graph": "g", "inputs": {"x": ' + tensor + b"}}"]
    for line in (f"GET {prefix}/", f"GET {prefix}/site.json?a=b", f"POST {prefix}/run"):
        for body in bodies:
            head = f"{line} HTTP/1.1\r\nHost: {address}\r\nContent-Length: {len(body)}\r\n\r\n"
            yield head.encode() + body


def _shout(address: str, data: bytes) -> None:
    """Send bytes, say that no more will come, and read what is answered at once."""
    host, _, port = address.rpartition(":")
    with suppress(OSError), socket.create_connection((host, int(port)), timeout=10) as line:
        line.sendall(data)
        line.shutdown(socket.SHUT_WR)
        line.settimeout(_WAIT)
        with suppress(TimeoutError):
            while line.recv(1 << 16):
                pass


TARGETS: tuple[Callable[[], Any], ...] = (grpc_target, keyboard_target)
