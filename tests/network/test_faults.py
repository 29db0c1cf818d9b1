"""Clients that are slow, silent, broken or hostile: each is dropped with a line, nobody is hurt."""

from __future__ import annotations

import os
import sys
import threading
from contextlib import suppress
from dataclasses import replace

import grpc
import pytest

from pfl_lm.models.file import load_model
from pfl_lm.network.certificates import ServerCertificate
from pfl_lm.network.device import Device
from pfl_lm.network.identity import DeviceKey
from pfl_lm.network.rpc_client import DroppedFromRound, RetryPolicy, RpcClient
from pfl_lm.network.transport import SESSION, Limits, channel_to, messages
from pfl_lm.run.round import protect_updates
from pfl_lm.secagg.device import KeysAdvertised

PATIENT = Limits(phase_seconds=60.0, training_seconds=60.0, grace_seconds=0.5, hold_seconds=2.0)
DEVICES = 23
GARBAGE, IMPOSTOR, REPLAYER, FICKLE, SILENT, SLOW, FLOOD = range(16, DEVICES)


class Tap:
    """Frames that device 0 sent, for others to replay."""

    def __init__(self) -> None:
        self.frames: dict[tuple[int, int], bytes] = {}
        self.news = threading.Condition()

    def frame(self, round: int, kind: int) -> bytes:
        with self.news:
            assert self.news.wait_for(lambda: (round, kind) in self.frames, 60)
            return self.frames[round, kind]


class Tapped(Device):
    tap: Tap

    def _send(self, round: int, frame: bytes, seen: int):
        with self.tap.news:
            self.tap.frames[round, frame[5]] = frame
            self.tap.news.notify_all()
        return super()._send(round, frame, seen)


class Bad(Device):
    """Misbehaves in one round, in its own way, and is a good device in the other."""

    tap: Tap

    def _take_part(self, round: int, invitation) -> None:
        me = self._key.number
        if round != (me == REPLAYER):
            if me == REPLAYER:
                self.joined = self._join(round, invitation)
                self._answer(round, self.joined, invitation)
                return
            super()._take_part(round, invitation)
            return
        match me:
            case 16:  # GARBAGE
                self._client.send(round, os.urandom(300))
            case 17:  # IMPOSTOR
                self._client.send(round, self.tap.frame(round, 1))
            case 18:  # REPLAYER
                self._client.send(round, self.joined.message)
            case 19:  # FICKLE
                for _ in range(2):
                    self._client.send(round, self._join(round, invitation).message)
            case 20:  # SILENT
                raise DroppedFromRound("silent")
            case 21:  # SLOW
                late = self._join(round, invitation).message
                self.tap.frame(round, 3)
                self._client.send(round, late)
            case 22:  # FLOOD
                for _ in range(400):
                    with suppress(grpc.RpcError):
                        self._client._called(self._client._stub.Fetch, messages.Cursor(round=-1))
                raise ValueError("it was too much")  # it would wait for ten minutes

    def _join(self, round: int, invitation) -> KeysAdvertised:
        broadcast = self._receive(round, invitation)
        config, place = self._config(broadcast, invitation)
        self._broadcast, self._round_config = broadcast, config
        return KeysAdvertised.join(config, place, self._rules(config), self._key.identity)

    def _answer(self, round: int, keys: KeysAdvertised, invitation) -> None:
        update, number = self._update(self._broadcast), self._key.number
        (vector,), _ = protect_updates(
            self._context.privacy, update, self._broadcast, [number], invitation.cohort
        )
        shared = keys.share_keys(self._exchange(round, keys.message))
        masked = shared.mask_input(self._exchange(round, shared.message), vector)
        self._send(round, masked.unmask(self._exchange(round, masked.message)).message, seen=255)


@pytest.fixture(scope="module")
def wild(trial, new_watcher):
    """One run with sixteen good devices and seven bad ones, and what the server logged.

    They call at front ends: so their mistakes are counted in another process than they are read in.
    """
    import logging

    tap = Tap()
    Tapped.tap = Bad.tap = tap
    records: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: records.append(record.getMessage())
    logging.getLogger("pfl_lm.network").addHandler(handler)
    limits = replace(PATIENT, gather_seconds=3.0, burst=20)  # one is suspended, and not waited for
    run = trial(devices=DEVICES, limits=limits, dropout=0.2)
    for number in range(DEVICES):
        kind = Tapped if number == 0 else Bad if number >= 16 else Device
        run.start(lambda number=number, kind=kind: run.device(number, kind=kind).run())
    watcher = new_watcher()
    run.folder = run.serve(watcher, front_ends=2 if sys.platform == "linux" else 1)
    run.join(ValueError)
    logging.getLogger("pfl_lm.network").removeHandler(handler)
    return run, records, watcher


def test_nobody_else_is_hurt(wild, same_model):
    """Both sums are exact; who misbehaved in one round is welcome in the next, but the flood."""
    run, _, watcher = wild
    assert [entry["reports"] for entry in watcher.rounds] == [17, 21]
    good = [number for number in range(DEVICES) if number not in (REPLAYER, FLOOD)]
    expected = run.reference([[*range(16), REPLAYER], good])
    assert same_model(load_model(run.folder.model_path).parameters, expected)
    assert len(run.errors) == 1


@pytest.mark.parametrize(
    "line",
    [
        f"round 0: device {GARBAGE} is dropped: these bytes are no message of secure aggregation",
        f"round 0: device {IMPOSTOR} is dropped: the message says that it comes from 0, not from",
        f"round 1: device {REPLAYER} is dropped: the message belongs to another round, model",
        f"round 0: device {FICKLE} is dropped: device {FICKLE} has spoken in this phase already",
        f"{SILENT}, {SLOW}",
        f"round 0: device {SLOW} is dropped: its keys came after its phase was closed",
        f"round 0: device {FLOOD} is dropped: device {FLOOD} called on where it was told",
        f"device {FLOOD} is suspended for 600 s after calls without a wait",
    ],
    ids=["garbage", "impostor", "replay", "fickle", "silent", "slow", "flood", "suspended"],
)
def test_each_with_a_line_in_the_log(wild, line):
    _, records, _ = wild
    assert any(line in record for record in records), records


def test_no_line_tells_a_vector(wild):
    _, records, _ = wild
    assert all(len(record) < 300 for record in records)


def test_who_may_not_come_in(trial, new_watcher, keys_of):
    """A stranger, a device with another's key, and one that takes the server for another."""
    run = trial(rounds=1)
    retry = RetryPolicy(give_up_seconds=2.0, call_seconds=5.0)
    done = threading.Event()
    refused: dict[str, BaseException] = {}

    def authenticate(name: str, key: DeviceKey, certificate) -> None:
        try:
            digest = ServerCertificate.read(certificate).digest
            RpcClient(channel_to(run.address, certificate), key, digest, retry).task_config()
        except (ValueError, ConnectionError) as error:
            refused[name] = error

    def strangers() -> None:
        run.client(0).task_config()  # the server is there
        stranger = DeviceKey(99, run.key(0).identity, run.key(0).authority)
        authenticate("stranger", stranger, run.keys.certificate)
        thief = DeviceKey(1, run.key(2).identity, run.key(2).authority)
        authenticate("thief", thief, run.keys.certificate)
        authenticate("other certificate", run.key(0), keys_of(23).certificate)
        passed_on = RpcClient(
            channel_to(run.address, run.keys.certificate),
            *(run.key(0), keys_of(23).server_certificate().digest, retry),
        )
        try:  # a man in the middle got this signature under a certificate of his own
            passed_on.task_config()
        except ValueError as error:
            refused["passed on"] = error
        done.set()

    run.start(strangers)
    run.start(lambda: done.wait(60) and run.start_devices())
    run.serve(new_watcher())
    run.join()
    assert "no device 99 is enrolled" in str(refused["stranger"])
    assert "the signature is not that of device 1" in str(refused["thief"])
    assert "shows another certificate" in str(refused["other certificate"])
    assert "made for a server with another certificate" in str(refused["passed on"])


def test_what_is_no_call_and_what_is_too_long(trial, new_watcher):
    """Bytes that are no message of the service, and a message of 50 MB: both end with a status."""
    run = trial(rounds=1)
    statuses = []

    def raw() -> None:
        client = run.client(0)
        client.task_config()
        channel = channel_to(run.address, run.keys.certificate)
        send = channel.unary_unary("/pfl_lm.network.v3.Aggregation/Send")
        for request in (b"\xff" * 40, bytes(50 << 20)):
            try:
                send(request, timeout=20, metadata=((SESSION, client._token),))
            except grpc.RpcError as error:
                statuses.append(error.code())
        run.start_devices()

    run.start(raw)
    watcher = new_watcher()
    run.serve(watcher)
    run.join()
    assert len(statuses) == 2
    assert statuses[1] is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert watcher.rounds[0]["reports"] == 6
