"""Callers without a key, and devices in a hurry: the enrolled are served all the same."""

from __future__ import annotations

import socket
import ssl
import threading
from contextlib import suppress
from dataclasses import replace

import grpc
import pytest

from pfl_lm.network.transport import CHUNK_BYTES, SESSION, Limits, channel_to, messages

SERVICE = "/pfl_lm.network.v3.Aggregation"
QUICK = Limits(phase_seconds=60.0, training_seconds=60.0, grace_seconds=0.5, hold_seconds=2.0)


class Mute:
    """A stream of requests in which nothing comes until it is closed."""

    def __init__(self) -> None:
        self.closed = threading.Event()

    def __iter__(self):
        return self

    def __next__(self):
        self.closed.wait()
        raise StopIteration


def test_silent_calls_of_strangers_keep_nobody_out(trial, new_watcher):
    """360 calls that send no message: to a method without a key, and to the two that need none."""
    run = trial(rounds=2)
    mute = Mute()
    calls = []

    def silence() -> None:
        run.client(0).task_config()  # the server is there
        for method in ("Challenge", "Authenticate", "Fetch", "Send"):
            for _ in range(3):
                channel = channel_to(run.address, run.keys.certificate)
                open_call = channel.stream_unary(f"{SERVICE}/{method}")
                calls.extend(open_call.future(mute, timeout=120) for _ in range(30))
        run.start_devices()

    run.start(silence)
    watcher = new_watcher()
    run.serve(watcher)
    mute.closed.set()
    run.join()
    assert len(calls) == 360
    assert [entry["reports"] for entry in watcher.rounds] == [6, 6]


def test_a_flood_of_challenges_keeps_nobody_out(trial, new_watcher):
    run = trial(devices=20, rounds=1)
    over = threading.Event()

    def flood() -> None:
        channel = channel_to(run.address, run.keys.certificate)
        challenge = channel.unary_unary(f"{SERVICE}/Challenge")
        request = messages.ChallengeRequest(device=0).SerializeToString()
        while not over.is_set():
            with suppress(grpc.RpcError):
                challenge(request, timeout=5)

    floods = [threading.Thread(target=flood, daemon=True) for _ in range(6)]

    def begin() -> None:
        run.client(0).task_config()
        for thread in floods:
            thread.start()
        run.start_devices(range(20))

    run.start(begin)
    watcher = new_watcher()
    run.serve(watcher)
    over.set()
    run.join()
    assert [entry["reports"] for entry in watcher.rounds] == [20]


def test_a_message_of_a_stranger_is_not_read(trial, new_watcher):
    """A stranger offers a thousand parts of a frame and is stopped after the first few."""
    run = trial(rounds=1)
    sent = []
    codes = []

    def parts():
        part = messages.Upload(round=0, size=1 << 40, part=bytes(CHUNK_BYTES)).SerializeToString()
        for number in range(1000):
            sent.append(number)
            yield part

    def offer() -> None:
        run.client(0).task_config()
        channel = channel_to(run.address, run.keys.certificate)
        try:
            channel.stream_unary(f"{SERVICE}/Send")(parts(), timeout=60)
        except grpc.RpcError as error:
            codes.append(error.code())
        run.start_devices()

    run.start(offer)
    run.serve(new_watcher())
    run.join()
    assert codes == [grpc.StatusCode.UNAUTHENTICATED]
    assert len(sent) < 100


def test_a_frame_that_is_too_long_costs_its_sender_the_round(trial, new_watcher, caplog):
    run = trial(rounds=1, limits=QUICK)
    sent = []

    def parts():
        for number in range(1000):
            sent.append(number)
            size = 1 << 40 if not number else 0
            yield messages.Upload(round=0, size=size, part=bytes(CHUNK_BYTES)).SerializeToString()

    def offer() -> None:
        client = run.client(5)
        client.task_config()
        run.start_devices(range(5))
        client.fetch(-1, 0)
        channel = channel_to(run.address, run.keys.certificate)
        with pytest.raises(grpc.RpcError) as refused:
            metadata = ((SESSION, client._token),)
            channel.stream_unary(f"{SERVICE}/Send")(parts(), timeout=60, metadata=metadata)
        assert refused.value.code() is grpc.StatusCode.FAILED_PRECONDITION
        run.start_devices([5])

    run.start(offer)
    watcher = new_watcher()
    run.serve(watcher)
    run.join()
    assert watcher.rounds[0]["reports"] == 5
    assert "device 5 is dropped: its message has 1,099,511,627,776 bytes" in caplog.text
    assert len(sent) < 100


def test_a_path_that_is_no_utf8_does_not_close_the_port(trial, new_watcher, caplog):
    """grpcio ends its loop at such a call; the port is opened again and sessions go on."""
    run = trial(rounds=2)
    answered = []

    def attack() -> None:
        client = run.client(0)
        client.task_config()
        for _ in range(3):
            call_with_bad_path(run)
            item = client.fetch(-1, 0)  # under the session that was there before
            answered.append(item.WhichOneof("content"))
        run.start_devices()

    run.start(attack)
    watcher = new_watcher()
    run.serve(watcher)
    run.join()
    assert answered == [None] * 3
    assert "the port was closed by what a caller sent" in caplog.text
    assert [entry["reports"] for entry in watcher.rounds] == [6, 6]


def call_with_bad_path(run) -> None:
    fields = {
        b":method": b"POST",
        b":scheme": b"https",
        b":path": b"/pfl_lm.network.v3.Aggregation/\xff",
        b":authority": b"localhost",
        b"content-type": b"application/grpc",
        b"te": b"trailers",
    }
    block = b"".join(
        b"\x00" + bytes([len(name)]) + name + bytes([len(value)]) + value
        for name, value in fields.items()
    )
    settings = b"\x00\x00\x00\x04\x00\x00\x00\x00\x00"
    headers = len(block).to_bytes(3, "big") + b"\x01\x05\x00\x00\x00\x01" + block
    context = ssl.create_default_context(cafile=str(run.keys.certificate))
    context.set_alpn_protocols(["h2"])
    with (
        socket.create_connection(("127.0.0.1", run.port), timeout=10) as plain,
        context.wrap_socket(plain, server_hostname="localhost") as line,
    ):
        line.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + settings + headers)
        line.settimeout(0.3)
        with suppress(OSError):
            while line.recv(1 << 16):
                pass


def test_quick_rounds_stay_within_the_budget_of_calls(trial, new_watcher):
    """Ten rounds take far more calls than burst and rate allow: invitations bring the rest."""
    run = trial(rounds=10, limits=replace(QUICK, burst=30, calls_per_second=0.1))
    run.start_devices()
    watcher = new_watcher()
    run.serve(watcher)
    run.join()
    assert [entry["reports"] for entry in watcher.rounds] == [6] * 10
