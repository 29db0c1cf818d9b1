"""A server under attack: what its devices still get, what memory it takes, when it recovers.

    python -m benchmarks.attacks [--seconds 6] [ATTACK...]

The server of `network/` answers over TLS in a process of its own, in a round that never ends: three
honest devices fetch in turn, as devices do that wait for an invitation. The model has 63 MB. Each
row is one attack, made by a process of its own:

    nothing           no attack
    strangers         calls of every method without a key, 64 at once over 8 connections
    knocks            floods of Challenge, and of Authenticate with wrong signatures
    oversized         uploads that state 1 TiB, by strangers and by an enrolled device
    slow readers      an enrolled device opens as many downloads as it may and reads none of them
    hoarders          devices ask for the model from every earlier round and read slowly
    silent            connections that finish TLS and say nothing, 300 of them
    bad paths         calls whose path is no UTF-8, which end gRPC's loop: the port is opened again

`served`: honest calls that were answered, of those made; `slowest`: the longest of them; `memory`:
of the server's process, before and at its most; `recovery`: from the attack's end to the first
honest call as quick as half a second.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import multiprocessing
import socket
import ssl
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import grpc

from pfl_lm.demo import RECIPE
from pfl_lm.network.admission import Admission
from pfl_lm.network.backend import LocalBackend
from pfl_lm.network.exclusions import Exclusions
from pfl_lm.network.identity import Credentials, DeviceKey, ServerKeys, enrol
from pfl_lm.network.listener import Listener
from pfl_lm.network.mailbox import Mailbox
from pfl_lm.network.model_delta import ModelCache
from pfl_lm.network.rpc_client import RpcClient
from pfl_lm.network.service import Service
from pfl_lm.network.transport import (
    CHUNK_BYTES,
    SESSION,
    Limits,
    channel_to,
    messages,
    stub,
)
from pfl_lm.recipes import load
from pfl_lm.run.scenario import Scenario
from pfl_lm.run.setup import open_run

HONEST, ATTACKER = (0, 1, 2), (3, 4, 5)
WIDTH = 512  # of 30,000 words: 63 MB
QUICK = 0.5  # seconds of a call that is as before


def server(keys: Path, port: int) -> None:
    """Answer until the process is ended."""
    asyncio.run(_serve(ServerKeys(keys), port))


async def _serve(keys: ServerKeys, port: int) -> None:
    identities, limits = keys.enrolled(), Limits(hold_seconds=0.2, calls_per_second=50.0)
    exclusions = Exclusions(identities)
    credentials = Credentials(identities, keys.authority(), keys.server_certificate().digest)
    admission = Admission(credentials, limits, exclusions)
    mailbox = Mailbox(identities, limits, admission.strike, admission.grant_round, exclusions)
    mailbox._round = SimpleNamespace(  # type: ignore[assignment]  # a round that never ends
        config=SimpleNamespace(round=7), places={n: n for n in identities}, dropped={}, taken={}
    )
    recipe = load(Scenario, RECIPE)
    context = open_run(replace(recipe, model=replace(recipe.model, embedding_dim=WIDTH)))
    models = ModelCache(context)
    models.put(7, context.start.parameters)
    service = Service(LocalBackend(admission, mailbox, models), "{}", limits, 1 << 20)
    await Listener(service, f"127.0.0.1:{port}", keys.tls()).start()
    await asyncio.Event().wait()


@dataclass
class Honest:
    """Devices that fetch in turn, each in a thread, and how long every call took."""

    keys: ServerKeys
    address: str
    calls: list[tuple[float, float | None]] = field(default_factory=list)  # (when, seconds)
    over: threading.Event = field(default_factory=threading.Event)

    def start(self) -> list[threading.Thread]:
        threads = [threading.Thread(target=self._fetch, args=(number,)) for number in HONEST]
        for thread in threads:
            thread.start()
        return threads

    def _fetch(self, number: int) -> None:
        with channel_to(self.address, self.keys.certificate) as channel:
            client = client_of(self.keys, channel, number)
            client.task_config()
            while not self.over.is_set():
                began = time.monotonic()
                try:
                    cursor = messages.Cursor(round=-1, step=0)
                    metadata = ((SESSION, client._token),)
                    stub(channel).Fetch(cursor, timeout=10, metadata=metadata)
                    self.calls.append((began, time.monotonic() - began))
                except grpc.RpcError:
                    self.calls.append((began, None))
                time.sleep(0.05)


def client_of(keys: ServerKeys, channel: Any, number: int) -> RpcClient:
    """Return a device's client over a channel."""
    key = DeviceKey.read(keys.folder / "devices" / f"{number:05d}.json")
    return RpcClient(channel, key, keys.server_certificate().digest)


def strangers(keys: ServerKeys, address: str, until: float) -> None:
    """Call every method without a key."""
    bodies = {
        "Fetch": messages.Cursor(round=-1),
        "Model": messages.Version(have=-1, want=7),
        "Challenge": messages.ChallengeRequest(device=0),
    }

    def call(number: int) -> None:
        with channel_to(address, keys.certificate) as channel:
            methods = stub(channel)
            while time.monotonic() < until:
                for name, body in bodies.items():
                    with suppress(grpc.RpcError):
                        answer = getattr(methods, name)(body, timeout=2)
                        if name == "Model":
                            list(answer)

    _at_once(call, 8)


def knocks(keys: ServerKeys, address: str, until: float) -> None:
    """Ask for challenges, and answer them with signatures of nobody."""

    def call(number: int) -> None:
        with channel_to(address, keys.certificate) as channel:
            methods = stub(channel)
            while time.monotonic() < until:
                with suppress(grpc.RpcError):
                    nonce = methods.Challenge(messages.ChallengeRequest(device=0), timeout=2).nonce
                    proof = messages.AuthenticateRequest(nonce=nonce, signature=bytes(64))
                    methods.Authenticate(proof, timeout=2)

    _at_once(call, 8)


def oversized(keys: ServerKeys, address: str, until: float) -> None:
    """Offer frames of a terabyte, with a session and without."""

    def parts() -> Iterator[Any]:
        while time.monotonic() < until:
            yield messages.Upload(round=7, size=1 << 40, part=bytes(CHUNK_BYTES))

    def call(number: int) -> None:
        with channel_to(address, keys.certificate) as channel:
            metadata = ()
            if number in ATTACKER:
                client = client_of(keys, channel, number)
                client.task_config()
                metadata = ((SESSION, client._token),)  # type: ignore[assignment]
            while time.monotonic() < until:
                with suppress(grpc.RpcError):
                    stub(channel).Send(parts(), timeout=2, metadata=metadata)

    _at_once(call, 6)


def slow_readers(keys: ServerKeys, address: str, until: float) -> None:
    """Open downloads and read nothing of them."""
    _downloads(keys, address, until, pause=1e9)


def hoarders(keys: ServerKeys, address: str, until: float) -> None:
    """Download from other rounds, a megabyte every half a second."""
    _downloads(keys, address, until, pause=0.5)


def _downloads(keys: ServerKeys, address: str, until: float, pause: float) -> None:
    def call(number: int) -> None:
        with channel_to(address, keys.certificate) as channel:
            client = client_of(keys, channel, ATTACKER[number])
            client.task_config()
            metadata, opened = ((SESSION, client._token),), []
            while time.monotonic() < until:
                for have in range(-1, 7):
                    with suppress(grpc.RpcError):
                        version = messages.Version(have=have, want=7)
                        answer = stub(channel).Model(version, timeout=60, metadata=metadata)
                        next(answer)
                        opened.append(answer)
                for answer in opened:
                    with suppress(grpc.RpcError, StopIteration):
                        if pause < 1e3:
                            next(answer)
                time.sleep(min(0.5, pause))
            for answer in opened:
                answer.cancel()

    _at_once(call, len(ATTACKER))


def bad_paths(keys: ServerKeys, address: str, until: float) -> None:
    """Call methods whose names are no UTF-8, one after another."""
    path = b"/pfl_lm.network.v3.Aggregation/\xff"
    fields = {b":method": b"POST", b":scheme": b"https", b":path": path, b":authority": b"x"}
    fields |= {b"content-type": b"application/grpc", b"te": b"trailers"}
    parts = (bytes([len(part)]) + part for pair in fields.items() for part in pair)
    block = b"".join(b"\x00" * (place % 2 == 0) + part for place, part in enumerate(parts))
    headers = len(block).to_bytes(3, "big") + b"\x01\x05\x00\x00\x00\x01" + block
    preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\x00\x00\x00\x04\x00\x00\x00\x00\x00"
    context = ssl.create_default_context(cafile=str(keys.certificate))
    context.set_alpn_protocols(["h2"])
    host, _, port = address.rpartition(":")
    while time.monotonic() < until:
        with suppress(OSError):
            plain = socket.create_connection((host, int(port)), timeout=2)
            with context.wrap_socket(plain, server_hostname="localhost") as line:
                line.sendall(preface + headers)
                line.settimeout(0.2)
                line.recv(100)
        time.sleep(1.0)


def silent(keys: ServerKeys, address: str, until: float) -> None:
    """Open connections that finish TLS and say nothing."""
    context = ssl.create_default_context(cafile=str(keys.certificate))
    context.set_alpn_protocols(["h2"])
    host, _, port = address.rpartition(":")
    lines: list[ssl.SSLSocket] = []
    while len(lines) < 300 and time.monotonic() < until:
        with suppress(OSError):
            plain = socket.create_connection((host, int(port)), timeout=5)
            lines.append(context.wrap_socket(plain, server_hostname="localhost"))
    time.sleep(max(0.0, until - time.monotonic()))
    for line in lines:
        line.close()


ATTACKS: dict[str, Callable[[ServerKeys, str, float], None]] = {
    "nothing": lambda keys, address, until: time.sleep(until - time.monotonic()),
    "strangers": strangers,
    "knocks": knocks,
    "oversized": oversized,
    "slow readers": slow_readers,
    "hoarders": hoarders,
    "silent": silent,
    "bad paths": bad_paths,
}


def _at_once(call: Callable[[int], None], count: int) -> None:
    threads = [threading.Thread(target=call, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def attack(name: str, folder: str, address: str, until: float) -> None:
    """Make an attack; in a process of its own."""
    ATTACKS[name](ServerKeys(Path(folder)), address, until)


def measured(name: str, keys: ServerKeys, seconds: float) -> str:
    """Run one attack against a fresh server; return its row of the table."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    address, processes = f"127.0.0.1:{port}", multiprocessing.get_context("spawn")
    serving = processes.Process(target=server, args=(keys.folder, port), daemon=True)
    serving.start()
    honest = Honest(keys, address)
    threads = honest.start()
    while len(honest.calls) < 5 * len(HONEST):
        time.sleep(0.1)
    before = most = _memory(serving.pid)
    began = time.monotonic()
    until = began + 3.0 + seconds  # a process takes a while to start
    attacker = processes.Process(target=attack, args=(name, keys.folder, address, until))
    attacker.start()
    while time.monotonic() < until:
        most = max(most, _memory(serving.pid))
        time.sleep(0.1)
    attacker.join()
    time.sleep(3.0)
    honest.over.set()
    for thread in threads:
        thread.join()
    after = _memory(serving.pid)
    serving.kill()
    during = [took for when, took in honest.calls if began <= when < until]
    served = [took for took in during if took is not None]
    again = [when for when, took in honest.calls if when >= until and (took or 99.0) < QUICK]
    recovery = f"{max(0.0, min(again) - until):.1f} s" if again else "none"
    return (
        f"| {name} | {len(served)} of {len(during)} | {max(served, default=0.0):.2f} s "
        f"| {before / 2**20:.0f} → {most / 2**20:.0f} MB | {after / 2**20:.0f} MB | {recovery} |"
    )


def _memory(pid: int | None) -> int:
    """Return the resident memory of a process in bytes."""
    lines = Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines()
    return sum(1024 * int(line.split()[1]) for line in lines if line.startswith("VmRSS"))


def main() -> None:
    """Print the table of RESULTS.md."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=6.0, help="of each attack [6]")
    parser.add_argument("attacks", nargs="*", help="names [all]")
    arguments = parser.parse_args()
    logging.getLogger("pfl_lm.network").setLevel(logging.ERROR)  # its server is not there at first
    with tempfile.TemporaryDirectory() as folder:
        enrol(Path(folder) / "keys", 6)
        keys = ServerKeys(Path(folder) / "keys")
        print(
            "| attack | served | slowest | memory | after | recovery |\n|---|---|---|---|---|---|"
        )
        for name in arguments.attacks or ATTACKS:
            print(measured(name, keys, arguments.seconds), flush=True)


if __name__ == "__main__":
    main()
