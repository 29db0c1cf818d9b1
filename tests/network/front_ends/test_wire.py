"""Frames come out as they went in, however the bytes are cut."""

from __future__ import annotations

import asyncio
import random
import socket

import pytest

pytest.importorskip("grpc_tools", reason="needs gRPC: pip install pfl-lm[network]")

from pfl_lm.network.front_ends import wire as module
from pfl_lm.network.front_ends.wire import Wire, refusal_of, refusal_values
from pfl_lm.network.refusals import CalledOn, NotAdmitted, NotNow, TooOften

SIZES = (0, 1, 7, 300, module._RECEIVED - 20, module._RECEIVED, 400_000)


@pytest.mark.parametrize("cut", [1, 0], ids=["in small pieces", "as they are"])
def test_frames_of_every_size(cut):
    rng = random.Random(cut)
    frames = [
        ([number, "é" * rng.choice([0, 9, 90_000]), None, 0.5], rng.randbytes(rng.choice(SIZES)))
        for number in range(200)
    ]

    async def run() -> list:
        left, right = socket.socketpair()
        if cut:
            right.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        reader, writer = await Wire.over(left), await Wire.over(right)

        async def send() -> None:
            for frame in frames:
                writer.write(*frame)
                if rng.random() < 0.5:
                    await writer.drain()
            await writer.drain()
            writer.close()

        sending = asyncio.create_task(send())
        came = []
        while (frame := await reader.read()) is not None:
            came.append(frame)
            if rng.random() < 0.1:
                await asyncio.sleep(0)
        await sending
        writer.write(["too late"])
        return came

    assert asyncio.run(asyncio.wait_for(run(), 60)) == frames


@pytest.mark.parametrize(
    "refusal", [NotAdmitted("no", again=True), NotAdmitted("no"), TooOften("wait"), NotNow("over")]
)
def test_a_refusal_is_the_same_at_the_other_end(refusal):
    again = refusal_of(*refusal_values(refusal))
    assert type(again) is type(refusal)
    assert str(again) == str(refusal)
    assert vars(again) == vars(refusal)


def test_a_suspended_device_must_wait():
    again = refusal_of(*refusal_values(CalledOn(7)))
    assert type(again) is TooOften
    assert "device 7" in str(again)
