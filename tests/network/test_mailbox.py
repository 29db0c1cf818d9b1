"""What the server says while it waits: how many came, and until when it waits for the others."""

from __future__ import annotations

import asyncio
import logging
import re
from types import SimpleNamespace

import pytest

pytest.importorskip("grpc_tools", reason="needs gRPC: pip install pfl-lm[network]")

from pfl_lm.network import mailbox as module
from pfl_lm.network.exclusions import Exclusions
from pfl_lm.network.mailbox import Mailbox
from pfl_lm.network.refusals import NotNow
from pfl_lm.network.transport import Limits
from pfl_lm.secagg.config import DevicePolicy, RoundConfig
from pfl_lm.secagg.device import KeysAdvertised
from pfl_lm.secagg.parameters import GraphParameters
from pfl_lm.secagg.server import CollectingKeys

CLOCK = r"\d\d:\d\d:\d\d"


@pytest.fixture
def mailbox() -> Mailbox:
    identities = {number: bytes([number]) * 32 for number in range(4)}
    limits = Limits(gather_seconds=0.05, phase_seconds=0.1, hold_seconds=5.0)
    ignore = SimpleNamespace(strike=lambda device: None, grant=lambda devices: None)
    exclusions = Exclusions(identities, revoked=[identities[3]])
    return Mailbox(identities, limits, ignore.strike, ignore.grant, exclusions)


def test_a_gathering_says_with_how_many_a_round_opens_and_when(mailbox, caplog):
    caplog.set_level(logging.INFO, "pfl_lm.network")

    async def run() -> None:
        for device in (0, 1):
            mailbox.presence.saw(device)
        await mailbox.presence.gather(wanted=4, least=2)

    asyncio.run(run())
    (line,) = [record.message for record in caplog.records]
    expected = rf"2 devices are here: a round opens with 3, or from {CLOCK} on with 2"
    assert re.fullmatch(expected, line)  # one of four is revoked and is not waited for


def test_a_revoked_device_does_not_count_as_here(mailbox):
    async def run() -> int:
        for device in (0, 3):
            mailbox.presence.saw(device)
        return mailbox.presence.count()

    assert asyncio.run(run()) == 1


def test_a_gathering_that_can_never_end_is_refused(mailbox):
    with pytest.raises(ValueError, match=r"3 of 4 devices may take part.*a round needs 4"):
        asyncio.run(mailbox.presence.gather(wanted=4, least=4))


def test_a_long_wait_in_a_round_says_how_many_came_and_until_when(mailbox, caplog, monkeypatch):
    monkeypatch.setattr(module, "_SILENT_SECONDS", 0.01)
    caplog.set_level(logging.INFO, "pfl_lm.network")
    config = SimpleNamespace(round=7)
    mailbox._round = SimpleNamespace(
        config=config, devices=[0, 1, 2], places={0: 0, 1: 1, 2: 2}, dropped={}, taken={}
    )
    phase = SimpleNamespace(
        config=config,
        message=SimpleNamespace(kind=5),
        awaited=frozenset(range(3)),
        missing=frozenset({2}),
    )
    asyncio.run(mailbox._all_spoke(phase, 0.1))
    lines = [record.message for record in caplog.records]
    assert len(lines) == 1
    expected = rf"round 7: report of 2 of 3 devices came; waits for the others until {CLOCK}"
    assert re.fullmatch(expected, lines[0])


def test_a_device_that_was_started_again_in_the_round_gets_no_strike():
    """It has lost its first keys; whoever sends other bytes in their place does get one."""
    identities, strikes = {number: bytes([number]) * 32 for number in range(6)}, []
    exclusions = Exclusions(identities)
    mailbox = Mailbox(identities, Limits(), strikes.append, lambda devices: None, exclusions)
    graph = GraphParameters(5, 4, 1, complete=True)
    config = RoundConfig(0, bytes(32), bytes(32), 8, 16, 6, 4, graph)
    insists = DevicePolicy(2, 3, 2)

    async def run() -> None:
        mailbox.invite(config, list(identities))
        mailbox._phase = CollectingKeys(config, None)
        mailbox.send(0, 0, KeysAdvertised.join(config, 0, insists).message)
        for device in (0, 1):
            with pytest.raises(NotNow):
                mailbox.send(device, 0, KeysAdvertised.join(config, 0, insists).message)

    asyncio.run(run())
    assert strikes == [1]  # what device 1 sends comes from place 0
