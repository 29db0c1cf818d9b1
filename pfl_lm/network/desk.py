"""The desk: what lies ready for each device, and what devices hand in, phase by phase.

Each device has one newest item, known by (round, step); to ask again for it, or to hand in the
same bytes again, changes nothing. What a device hands in counts at most once per round and step.
Whoever breaks a rule is dropped from the round with a line in the log; the others never notice.

All methods run in one event loop; only the closing of a phase, which takes time, leaves it.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pfl_lm.network.terms import stated
from pfl_lm.network.transport import Limits, Message, messages
from pfl_lm.secagg.config import RoundConfig
from pfl_lm.secagg.errors import SecaggError

log = logging.getLogger("pfl_lm.network")

INVITATION, OVER = 1, 255  # steps; those between are the kinds of the protocol's frames
AFTER_ALL = 1 << 62  # the round of the last item of all
_KIND_AT = 5  # of a frame: where its kind stands
_PHASES = {1: "keys", 3: "shares", 5: "report", 7: "confirmation", 9: "answer"}
_NAMED = 12  # devices that one line of the log names


class NotNow(ValueError):
    """A message that does not count: this round goes on without its sender."""


@dataclass
class _Round:
    """The round under way: who is in it, in whose place, and who was dropped from it."""

    config: RoundConfig
    devices: Sequence[int]  # by place
    places: Mapping[int, int]
    dropped: dict[int, str]  # device: why
    taken: dict[int, set[bytes]]  # digests of what each device handed in


class Desk:
    """Carries messages between the protocol's phases and the calls of devices.

    Args:
        devices: everybody who is enrolled.
        limits: how long to wait.
        strike: told of every device that breaks a rule.
    """

    def __init__(
        self, devices: Collection[int], limits: Limits, strike: Callable[[int], None]
    ) -> None:
        self._limits, self._strike = limits, strike
        self._items: dict[int, Message] = {}
        self._bells: dict[int, asyncio.Event] = {}
        self._seen = dict.fromkeys(devices, -float("inf"))
        self._round: _Round | None = None
        self._phase: Any = None
        self._progress = asyncio.Event()
        self._told: set[int] = set()  # who has heard that the run is over

    async def fetch(self, device: int, round: int, step: int) -> Message:
        """Return the device's newest item once it is newer than that; an empty one after a while.

        A second call of the same device answers the first.
        """
        bell = asyncio.Event()
        if (before := self._bells.get(device)) is not None:
            before.set()
        self._bells[device] = bell
        self._seen[device] = time.monotonic()
        self._progress.set()
        try:
            if (item := self._newer(device, round, step)) is None:
                async with asyncio.timeout(self._limits.hold_seconds):
                    await bell.wait()
                item = self._newer(device, round, step)
        except TimeoutError:
            item = None
        finally:
            self._seen[device] = time.monotonic()
            if self._bells.get(device) is bell:
                del self._bells[device]
        return item or messages.Item(round=round, step=step)

    def send(self, device: int, round: int, frame: bytes) -> None:
        """Take a message of the protocol; the same bytes a second time change nothing.

        Raises:
            NotNow: it does not count, and why.
        """
        now = self._round
        if now is None or round != now.config.round or device not in now.places:
            raise NotNow(f"round {round} is not under way for device {device}")
        if device in now.dropped:
            raise NotNow(f"device {device} was dropped from round {round}: {now.dropped[device]}")
        digest = hashlib.sha256(frame).digest()
        if digest in now.taken.setdefault(device, set()):
            return
        phase, kind = self._phase, frame[_KIND_AT] if len(frame) > _KIND_AT else 0
        if phase is None or 0 < kind < phase.message.kind:
            name = _PHASES.get(kind, "message")
            raise self._drop(device, f"its {name} came after its phase was closed", strike=False)
        try:
            phase.receive(now.places[device], frame)
        except SecaggError as error:
            raise self._drop(device, str(error)) from None
        now.taken[device].add(digest)
        self._progress.set()

    def misbehaves(self, device: int, text: str) -> None:
        """Count a mistake outside the protocol, and drop the device from the round under way."""
        self._drop(device, text)

    async def gather(self, wanted: int, least: int) -> None:
        """Wait until ``wanted`` devices wait for an invitation; after a while ``least`` will do.

        Who was shut out or switched off for good must not keep the others waiting.
        """
        until, told = time.monotonic() + self._limits.gather_seconds, False
        while (present := self._present()) < wanted:
            if not told:
                log.info("%d of %d devices are here; waiting", present, wanted)
                told = True
            if present >= least and time.monotonic() >= until:
                return
            await self._wait(min(5.0, max(0.1, until - time.monotonic())))

    @property
    def under_way(self) -> int | None:
        """The number of the round under way."""
        return None if self._round is None else self._round.config.round

    def invite(self, config: RoundConfig, devices: Sequence[int]) -> None:
        """Begin a round and invite its cohort, in the order of their places."""
        places = {device: place for place, device in enumerate(devices)}
        self._round = _Round(config, devices, places, {}, {})
        for device, place in places.items():
            invitation = messages.Invitation(place=place, **stated(config))
            self._post(device, INVITATION, invitation=invitation)

    async def collect(self, phase: Any, outgoing: Mapping[int, bytes], seconds: float) -> Any:
        """Hand out messages, by place, collect what a phase awaits, and close it.

        Returns:
            What the phase's ``close`` returns.

        Raises:
            SecaggError: the round opens no sum.
        """
        assert self._round is not None
        self._phase = phase
        for place, frame in outgoing.items():
            self._post(self._round.devices[place], frame[_KIND_AT], frame=frame)
        await self._all_spoke(phase, seconds)
        self._phase = None
        if silent := self._missing(phase):
            name = _PHASES[phase.message.kind]
            log.warning(
                "round %d: no %s from %d of %d devices: %s",
                *(phase.config.round, name, len(silent), len(phase.awaited)),
                _listed(sorted(self._round.devices[place] for place in silent)),
            )
        return await asyncio.to_thread(phase.close)

    def end(self, text: str) -> None:
        """End the round for whoever was in it."""
        assert self._round is not None
        for device in self._round.places:
            self._post(device, OVER, over=text)
        self._round = None

    async def finish(self, text: str) -> None:
        """Tell everybody that the run is over.

        Waits until those who are here have heard it, and a while for others: they may be between
        two calls, or the server may have come back for nothing but this.
        """
        begun, limits = time.monotonic(), self._limits
        here = {device for device in self._seen if self._here(device)}
        for device in self._seen:
            self._items[device] = messages.Item(round=AFTER_ALL, step=OVER, finished=text)
            if bell := self._bells.get(device):
                bell.set()
        while left := self._seen.keys() - self._told:
            patience = max(limits.grace_seconds, limits.hold_seconds if left & here else 0.0)
            if time.monotonic() > begun + patience:
                return
            await self._wait(0.1)

    def _post(self, device: int, step: int, **content: Any) -> None:
        assert self._round is not None
        item = messages.Item(round=self._round.config.round, step=step, **content)
        self._items[device] = item
        if bell := self._bells.get(device):
            bell.set()

    def _newer(self, device: int, round: int, step: int) -> Message | None:
        item = self._items.get(device)
        if item is None or (item.round, item.step) <= (round, step):
            return None
        if item.round == AFTER_ALL:
            self._told.add(device)
        return item

    def _drop(self, device: int, text: str, strike: bool = True) -> NotNow:
        now = self._round
        if now is not None and device in now.places and device not in now.dropped:
            now.dropped[device] = text
            log.warning("round %d: device %d is dropped: %s", now.config.round, device, text)
            self._post(device, OVER, over=text)
            self._progress.set()
        else:
            log.warning("device %d: %s", device, text)
        if strike:
            self._strike(device)
        return NotNow(text)

    def _missing(self, phase: Any) -> frozenset[int]:
        """Places that may still speak; those who were dropped are not waited for."""
        assert self._round is not None
        return frozenset(phase.missing) - {self._round.places[d] for d in self._round.dropped}

    async def _all_spoke(self, phase: Any, seconds: float) -> None:
        """Wait for everybody, at most ``seconds``, and less for the last tenth."""
        until = time.monotonic() + seconds
        few = len(phase.awaited) // 10
        graced = False
        while missing := self._missing(phase):
            if getattr(phase, "full", False):
                return
            if not graced and len(missing) <= few:
                graced = True
                until = min(until, time.monotonic() + self._limits.grace_seconds)
            if (left := until - time.monotonic()) <= 0:
                return
            await self._wait(left)

    async def _wait(self, seconds: float) -> None:
        """Wait for news of any device."""
        self._progress.clear()
        try:
            async with asyncio.timeout(seconds):
                await self._progress.wait()
        except TimeoutError:
            return

    def _present(self) -> int:
        return sum(self._here(device) for device in self._seen)

    def _here(self, device: int) -> bool:
        since = time.monotonic() - self._seen[device]
        return device in self._bells or since < self._limits.hold_seconds


def _listed(devices: Sequence[int]) -> str:
    shown = ", ".join(str(device) for device in devices[:_NAMED])
    return shown + (" …" if len(devices) > _NAMED else "")
