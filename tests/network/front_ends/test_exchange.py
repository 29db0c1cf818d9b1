"""Two front ends and the round, in one event loop: what is asked at one is known at the other."""

from __future__ import annotations

import asyncio
import socket
from contextlib import AsyncExitStack, suppress

import pytest

pytest.importorskip("grpc_tools", reason="needs gRPC: pip install pfl-lm[network]")

from pfl_lm.network.admission import Admission
from pfl_lm.network.backend import LocalBackend
from pfl_lm.network.exclusions import Exclusions
from pfl_lm.network.front_ends.answers import Answers
from pfl_lm.network.front_ends.remote import RemoteBackend
from pfl_lm.network.front_ends.wire import Wire
from pfl_lm.network.identity import Credentials, DeviceKey
from pfl_lm.network.mailbox import Mailbox
from pfl_lm.network.refusals import NotAdmitted, NotNow, TooOften
from pfl_lm.network.transport import Limits, messages
from pfl_lm.secagg.keys import certify, public_key

AUTHORITY, SERVER = b"a" * 32, b"s" * 32
LIMITS = Limits(calls_at_once=2, hold_seconds=60.0, burst=40)
WITHIN = 30  # seconds


def key_of(number: int) -> DeviceKey:
    identity = certify(AUTHORITY, bytes([number + 1]) * 32)
    return DeviceKey(number, identity, public_key(AUTHORITY))


class Models:
    def open(self, have: int):
        return iter([b"first", b"second"]) if have < 0 else iter([])


class FrontEnd(RemoteBackend):
    """One front end, and the round's task that answers it."""

    answering: asyncio.Task
    reading: asyncio.Task

    async def session(self, number: int) -> bytes:
        key = key_of(number)
        nonce = await self.challenge(number)
        return await self.authenticate(nonce, key.prove(nonce, SERVER), key.identity.certificate)

    async def dies(self) -> None:
        self.wire.close()
        await self.answering


class Round:
    """A round with three devices, whose mailbox notes what it takes."""

    def __init__(self) -> None:
        identities = {number: key_of(number).identity.public for number in range(3)}
        exclusions = Exclusions(identities)
        credentials = Credentials(identities, public_key(AUTHORITY), SERVER)
        self.admission = Admission(credentials, LIMITS, exclusions)
        self.mailbox = Mailbox(
            identities, LIMITS, self.admission.strike, self.admission.grant_round, exclusions
        )
        self.taken: list[tuple[int, int, bytes]] = []
        self.mailbox.check_turn = self._turn
        self.mailbox.send = lambda *message: self.taken.append(message)
        type(self.mailbox).under_way = property(lambda mailbox: 7)
        self.backend = LocalBackend(self.admission, self.mailbox, Models())

    def _turn(self, device: int, round: int) -> None:
        if round != 7:
            raise NotNow(f"round {round} is not under way")

    async def front_end(self) -> FrontEnd:
        left, right = socket.socketpair()
        front_end = FrontEnd(await Wire.over(left))
        answers = Answers(self.backend, await Wire.over(right), lambda port: None)
        front_end.answering = asyncio.create_task(answers.run())
        front_end.reading = asyncio.create_task(front_end.read())
        return front_end


@pytest.fixture
def exchange(monkeypatch):
    """A function that runs a test with a round and two of its front ends."""
    monkeypatch.setattr(Mailbox, "under_way", Mailbox.under_way)

    def run(test) -> None:
        async def both() -> None:
            round = Round()
            ends = [await round.front_end() for _ in range(2)]
            await test(round, *ends)
            for end in ends:
                await end.dies()
                await end.reading

        asyncio.run(asyncio.wait_for(both(), WITHIN))

    return run


def test_a_session_is_valid_at_every_front_end_and_messages_come_through(exchange):
    async def test(round, one, other):
        token = await one.session(1)
        big = bytes(range(256)) * 4096
        async with other.call(token, sends=True) as call:
            await call.check_turn(7)
            await call.send(7, big)
            with pytest.raises(NotNow, match="round 8 is not under way"):
                await call.check_turn(8)
            assert [piece async for piece in call.download(7, -1)] == [b"first", b"second"]
            assert [piece async for piece in call.download(7, 3)] == []
            assert "too long" in str(await call.misbehaves("it is too long"))
        assert round.taken == [(1, 7, big)]
        with pytest.raises(NotAdmitted) as refused:
            async with one.call(b"no token"):
                pass
        assert refused.value.again
        with pytest.raises(NotAdmitted, match="no device 9 is enrolled") as refused:
            await one.challenge(9)
        assert not refused.value.again

    exchange(test)


def test_limits_hold_over_all_front_ends(exchange):
    async def test(round, one, other):
        token = await one.session(0)
        async with AsyncExitStack() as calls:
            await calls.enter_async_context(one.call(token, sends=True))
            with pytest.raises(TooOften, match="two messages at once"):
                await calls.enter_async_context(other.call(token, sends=True))
            await calls.enter_async_context(other.call(token))
            for end in (one, other):
                with pytest.raises(TooOften, match="has 2 calls open"):
                    await calls.enter_async_context(end.call(token))
        told = 0
        for _ in range(LIMITS.burst):
            for end in (one, other):
                with suppress(TooOften):
                    async with end.call(token):
                        told += 1
        assert told < LIMITS.burst + LIMITS.calls_per_second * WITHIN

    exchange(test)


def test_a_front_end_that_dies_leaves_no_call_behind(exchange):
    """Its device's calls end, so that the device may call at another."""

    async def test(round, one, other):
        token = await one.session(2)
        with pytest.raises(ConnectionError):
            async with one.call(token, sends=True) as call, one.call(token):
                waiting = asyncio.create_task(call.fetch(-1, 0))
                while not round.mailbox.presence._bells:
                    await asyncio.sleep(0.01)
                one.wire._transport.abort()
                await waiting
        await one.answering
        assert not round.backend.uploading
        async with other.call(token, sends=True), other.call(token):
            pass

    exchange(test)


def test_a_call_that_the_device_gives_up_is_given_up_by_the_round(exchange):
    async def test(round, one, other):
        token = await one.session(0)
        async with one.call(token) as call:
            task = asyncio.create_task(call.fetch(-1, 0))
            while not round.mailbox.presence._bells:
                await asyncio.sleep(0.01)
            task.cancel()
            while round.mailbox.presence._bells:
                await asyncio.sleep(0.01)

    exchange(test)


def test_where_the_round_is_gone_calls_are_refused_as_unavailable(exchange):
    async def test(round, one, other):
        token = await one.session(0)
        async with one.call(token) as call:
            task = asyncio.create_task(call.fetch(-1, 0))
            while not round.mailbox.presence._bells:
                await asyncio.sleep(0.01)
            one.answering.cancel()
            with pytest.raises(ConnectionError, match="call again"):
                await task
            assert await one.stopped is None
            with pytest.raises(ConnectionError, match="call again"):
                await one.challenge(0)
        one.answering = asyncio.create_task(asyncio.sleep(0))

    exchange(test)


def test_an_item_is_that_of_the_mailbox(exchange):
    async def test(round, one, other):
        async def fetch(device: int, at: int, step: int, spent: float):
            return messages.Item(round=at, step=step + 1, frame=bytes([device]))

        round.mailbox.fetch = fetch
        async with one.call(await other.session(2)) as call:
            expected = messages.Item(round=5, step=4, frame=b"\x02")
            assert await call.fetch(5, 3, 0.5) == expected

    exchange(test)
