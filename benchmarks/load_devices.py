"""The devices of ``benchmarks.load``: many in one event loop, each with a connection of its own."""

from __future__ import annotations

import asyncio
import os
import random
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import suppress
from functools import partial
from typing import Any

import numpy as np

from pfl_lm.network.identity import DeviceKey, ServerKeys
from pfl_lm.network.mailbox import OVER
from pfl_lm.network.transport import CHUNK_BYTES, SESSION, messages, stub
from pfl_lm.secagg.config import DevicePolicy, RoundConfig
from pfl_lm.secagg.device import KeysAdvertised
from pfl_lm.secagg.parameters import Adversary, GraphParameters

MESSAGES = (1, 3, 5, 9)  # before which devices fall silent
_CALL_SECONDS = 120.0
_TURNS = 16  # devices of a process that compute and send at once: more would only wait
_AT_ONCE = 64  # devices of a process that open their connection


def role_of(number: int, round: int, devices: int) -> str:
    """What a device does in a round: "silent 3", "slow", "garbage", "replay", or "".

    A tenth are silent and a twentieth misbehave, others in every round.
    """
    place = (number * 7919 + round * (devices // 6 + 1)) % devices
    tenth, twentieth = devices // 10, devices // 20
    if place < tenth:
        return f"silent {MESSAGES[place % 4]}"
    if place < tenth + twentieth:
        return ("slow", "garbage", "replay")[place % 3]
    return ""


def play(keys: ServerKeys, address: str, numbers: Iterable[int], devices: int) -> dict[str, Any]:
    """Play devices until the run is over; return what they did and used.

    Args:
        numbers: of the devices.
        devices: of all processes together.
    """
    return asyncio.run(_Players(keys, address, devices).play(numbers))


class _Players:
    """What the devices of a process share: a report, figures, and the round's description."""

    def __init__(self, keys: ServerKeys, address: str, devices: int) -> None:
        self.keys, self.address, self.devices = keys, address, devices
        self.server = keys.server_certificate().digest
        self.root = keys.certificate.read_bytes()
        self.totals: Counter[str] = Counter()
        self.seconds = 0.0  # of arithmetic
        self.reports: Counter[str] = Counter()
        self.opening = asyncio.Semaphore(_AT_ONCE)
        self.turns = asyncio.Semaphore(_TURNS)
        self.vectors: dict[int, np.ndarray] = {}
        self.config: RoundConfig | None = None

    async def play(self, numbers: Iterable[int]) -> dict[str, Any]:
        start = time.process_time()
        await asyncio.gather(*(_Player(self, number).run() for number in numbers))
        totals = {
            **self.totals,
            "cpu": time.process_time() - start,
            "arithmetic": self.seconds,
        }
        assert self.config is not None
        graph = self.config.graph
        said = f"k = {graph.neighbours}, t = {graph.threshold}, b = {self.config.bits}"
        return {"totals": totals, "reports": self.reports, "round": said}

    def counted(self, work: Callable[..., Any], *arguments: Any) -> Any:
        """Do a device's arithmetic, and count its CPU time."""
        start = time.thread_time()
        try:
            return work(*arguments)
        finally:
            self.seconds += time.thread_time() - start

    def config_of(self, round: int, invitation: Any) -> RoundConfig:
        """The round that an invitation states; these devices believe it."""
        if self.config is None or self.config.round != round:
            graph = GraphParameters(
                invitation.neighbours,
                invitation.threshold,
                invitation.corrupt,
                invitation.window_survivors,
            )
            self.config = RoundConfig(
                round=round,
                model=invitation.model,
                payload=invitation.payload,
                dim=invitation.dim,
                bits=invitation.bits,
                cohort=invitation.cohort,
                min_reports=invitation.min_reports,
                graph=graph,
                adversary=list(Adversary)[invitation.adversary],
            )
        return self.config

    def vector(self, dim: int) -> np.ndarray:
        """A ready-made report: small integers."""
        if dim not in self.vectors:
            self.vectors[dim] = np.random.default_rng(dim).integers(-3, 4, dim)
        return self.vectors[dim]


class _Left(Exception):
    """The round goes on without this device."""


class _Player:
    """One device."""

    def __init__(self, all_players: _Players, number: int) -> None:
        self._all, self._number = all_players, number
        folder = all_players.keys.folder / "devices"
        self._key = DeviceKey.read(folder / f"{number:05d}.json")
        self._token = b""
        self._have, self._earlier = -1, b""
        self._stub: Any = None

    async def run(self) -> None:
        import grpc

        credentials = grpc.ssl_channel_credentials(self._all.root)
        options = [("grpc.use_local_subchannel_pool", 1)]
        async with grpc.aio.secure_channel(self._all.address, credentials, options) as channel:
            self._stub = stub(channel)
            async with self._all.opening:
                await self._again(self._authenticate)
            cursor, item = (-1, 0), None
            while True:
                item = item or await self._fetch(*cursor)
                content, told = item.WhichOneof("content"), None
                if content == "finished":
                    return
                if content is not None:
                    cursor = (item.round, item.step)
                if content == "invitation":
                    with suppress(_Left):
                        told = await self._take_part(item.round, item.invitation)
                    cursor = (item.round, OVER)
                item = told

    async def _take_part(self, round: int, invitation: Any) -> Any:
        shared, role = self._all, role_of(self._number, round, self._all.devices)
        await self._download(round)
        config = shared.config_of(round, invitation)
        policy = DevicePolicy(2, 3, 2, config.adversary, self._key.authority)
        join, place = KeysAdvertised.join, invitation.place
        turn = partial(self._step, round, role)
        state, roster = await turn(join, config, place, policy, self._key.identity)
        state, inbox = await turn(state.share_keys, roster)
        state, asked = await turn(state.mask_input, inbox, shared.vector(config.dim))
        if config.signed:
            state, asked = await turn(state.confirm, asked)
        _, item = await turn(state.unmask, asked)
        return item

    async def _step(
        self, round: int, role: str, work: Callable[..., Any], *given: Any
    ) -> tuple[Any, Any]:
        """Do a step, send its message, and wait for the server's next.

        Few devices of a process compute and send at once.
        """
        slow = role == "slow"
        if slow:
            await asyncio.sleep(random.uniform(0, 5))
        sent = asyncio.Event()
        async with self._all.turns:
            state = self._all.counted(work, *given)
            frame = bytes(state.message)
            state.message = b""  # a real device keeps its own; thousands are too many
            call = asyncio.create_task(self._send(round, role, frame, sent))
            if not slow:
                await sent.wait()
        item = await call
        if frame[5] == MESSAGES[-1]:
            return state, item
        return state, await self._told(round, frame[5], item)

    async def _told(self, round: int, kind: int, item: Any) -> bytes:
        """Return what the server says after a message of this kind; it may have been said."""
        while (content := item.WhichOneof("content")) is None:
            item = await self._fetch(round, kind)
        if content == "frame" and item.round == round:
            return bytes(item.frame)
        raise _Left

    async def _send(self, round: int, role: str, frame: bytes, sent: asyncio.Event) -> Any:
        """Send a message and return the item that answers it.

        Args:
            sent: is set once the message is on its way, or will never be.
        """
        try:
            return await self._hand_in(round, role, frame, sent)
        finally:
            sent.set()

    async def _hand_in(self, round: int, role: str, frame: bytes, sent: asyncio.Event) -> Any:
        kind = frame[5]
        if role == f"silent {kind}":
            raise _Left
        pause = 0.5 if role == "slow" else 0.0
        if role == "garbage" and kind == MESSAGES[self._number % 4]:
            frame = frame[:6] + os.urandom(1000)
        elif role == "replay" and kind == 5 and self._earlier:
            frame = self._earlier
        if kind == 5 and role_of(self._number, round + 1, self._all.devices) == "replay":
            self._earlier = frame
        seen = OVER if kind == MESSAGES[-1] else kind

        def send() -> Any:
            upload = messages.Upload(round=round, size=len(frame), seen=seen)
            return self._stub.Send(_parts(upload, frame, pause, sent), **self._session())

        item = await self._call(send)
        self._all.totals["up"] += len(frame)
        if kind == 5:
            self._all.reports[str(round)] += 1
        return self._counted_item(item)

    async def _download(self, round: int) -> None:
        async def download() -> None:
            version = messages.Version(have=self._have, want=round)
            async for chunk in self._stub.Model(version, **self._session()):
                self._all.totals["down"] += len(chunk.values)

        await self._call(download)
        self._have = round

    async def _fetch(self, round: int, step: int) -> Any:
        cursor = messages.Cursor(round=round, step=step)
        return self._counted_item(
            await self._call(lambda: self._stub.Fetch(cursor, **self._session()))
        )

    def _counted_item(self, item: Any) -> Any:
        self._all.totals["down"] += len(item.frame)
        self._all.totals["empty"] += item.WhichOneof("content") is None
        return item

    def _session(self) -> dict[str, Any]:
        return {"timeout": _CALL_SECONDS, "metadata": ((SESSION, self._token),)}

    async def _authenticate(self) -> None:
        request = messages.ChallengeRequest(device=self._number)
        nonce = (await self._stub.Challenge(request, timeout=_CALL_SECONDS)).nonce
        proof = messages.AuthenticateRequest(
            nonce=nonce,
            signature=self._key.prove(nonce, self._all.server),
            certificate=self._key.identity.certificate,
        )
        session = await self._stub.Authenticate(proof, timeout=_CALL_SECONDS)
        self._token = session.token
        self._all.totals["messages"] += 1

    async def _call(self, call: Callable[[], Any]) -> Any:
        return await self._again(call)

    async def _again(self, call: Callable[[], Any]) -> Any:
        """Call until the server answers.

        Raises:
            _Left: the round goes on without this device.
        """
        import grpc

        pause = 0.2
        while True:
            self._all.totals["messages"] += 1
            try:
                return await call()
            except grpc.aio.AioRpcError as error:
                code = error.code()
                if code in (
                    grpc.StatusCode.FAILED_PRECONDITION,
                    grpc.StatusCode.PERMISSION_DENIED,
                ):
                    raise _Left from None
                self._all.totals["repeated"] += 1
            await asyncio.sleep(pause * random.uniform(0.5, 1.0))
            pause = min(2 * pause, 10.0)


async def _parts(first: Any, frame: bytes, pause: float, sent: asyncio.Event) -> AsyncIterator[Any]:
    """Cut a frame into the messages of one upload; a slow device into more of them."""
    size = max(1, len(frame) // 4) if pause else CHUNK_BYTES
    first.part = frame[:size]
    yield first
    for start in range(size, len(frame), size):
        await asyncio.sleep(pause)
        yield messages.Upload(part=frame[start : start + size])
    sent.set()
