"""The door: challenges, sessions, rates, strikes."""

from __future__ import annotations

import pytest

pytest.importorskip("grpc_tools", reason="needs gRPC: pip install pfl-lm[network]")

from pfl_lm.network.door import Bucket, Door, ShutOut, TooOften
from pfl_lm.network.identity import DeviceKey
from pfl_lm.network.transport import Limits
from pfl_lm.secagg.keys import certify, public_key

AUTHORITY = b"a" * 32


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def key_of(number: int) -> DeviceKey:
    identity = certify(AUTHORITY, bytes([number + 1]) * 32)
    return DeviceKey(number, identity, public_key(AUTHORITY))


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def door(clock) -> Door:
    limits = Limits(burst=5, calls_per_second=1, knocks_per_second=1, strikes=2)
    return Door({n: key_of(n).identity.public for n in range(3)}, limits, clock)


def enter(door: Door, number: int) -> bytes:
    nonce = door.challenge(number)
    device, token = door.enter(nonce, key_of(number).prove(nonce))
    assert device == number
    return token


def test_a_signature_opens_one_session(door):
    first = enter(door, 1)
    assert door.device(first) == 1
    second = enter(door, 1)
    assert door.device(second) == 1
    with pytest.raises(ShutOut, match="no session has this token"):
        door.device(first)


def test_a_challenge_is_answered_once_and_in_time(door, clock):
    nonce = door.challenge(1)
    door.enter(nonce, key_of(1).prove(nonce))
    with pytest.raises(ShutOut, match="not open"):
        door.enter(nonce, key_of(1).prove(nonce))
    late = door.challenge(1)
    clock.now += 61
    with pytest.raises(ShutOut, match="not open"):
        door.enter(late, key_of(1).prove(late))


def test_nobody_enters_for_another(door):
    nonce = door.challenge(1)
    with pytest.raises(ShutOut, match="not that of device 1"):
        door.enter(nonce, key_of(2).prove(nonce))
    signed = DeviceKey(1, key_of(2).identity, b"").prove(nonce := door.challenge(1))
    with pytest.raises(ShutOut, match="not that of device 1"):
        door.enter(nonce, signed)
    with pytest.raises(ShutOut, match="no device 7"):
        door.challenge(7)


def test_failed_entries_do_not_shut_the_owner_out(door):
    for _ in range(5):
        with pytest.raises(ShutOut):
            door.enter(door.challenge(1), bytes(64))
    enter(door, 1)


def test_calls_run_out_and_come_back(door, clock):
    token = enter(door, 1)
    for _ in range(5):
        door.device(token)
    with pytest.raises(TooOften) as refused:
        door.device(token)
    assert refused.value.device == 1
    clock.now += 3
    door.device(token, cost=3)
    with pytest.raises(TooOften):
        door.device(token)
    assert door.device(enter(door, 2)) == 2  # another's calls are its own


def test_a_new_session_brings_no_new_calls(door):
    token = enter(door, 1)
    for _ in range(5):
        door.device(token)
    with pytest.raises(TooOften):
        door.device(enter(door, 1))


def test_strangers_together_have_a_rate(door):
    for _ in range(10):
        door.challenge(0)
    with pytest.raises(TooOften):
        door.challenge(0)


def test_strikes_shut_out_for_a_while(door, clock, caplog):
    token = enter(door, 1)
    door.strike(1)
    assert door.device(token) == 1
    door.strike(1)
    assert "device 1 is shut out for 600 s after 2 mistakes" in caplog.text
    for attempt in (lambda: door.device(token), lambda: door.challenge(1)):
        with pytest.raises(ShutOut, match="too many mistakes"):
            attempt()
    clock.now += 601
    assert door.device(token) == 1


def test_a_bucket_never_holds_more_than_its_burst(clock):
    bucket = Bucket(2, 100, clock)
    clock.now += 1000
    assert [bucket.take() for _ in range(3)] == [True, True, False]
