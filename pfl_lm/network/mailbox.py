"""Mailbox of a round: the newest item for each device, and the messages devices send, by phase.

Each device has one newest item, known by (round, step); to ask again for it, or to hand in the
same bytes again, changes nothing. An item is written when its device fetches it. What a device
hands in counts at most once per round and step. A device that breaks a rule is dropped from the
round with a line in the log; no other device is affected.

All methods run in one event loop; only the closing of a phase, which takes time, leaves it.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from pfl_lm.network.exclusions import Exclusions
from pfl_lm.network.items import Content, Posted, frame_of
from pfl_lm.network.presence import Presence, clock
from pfl_lm.network.refusals import NotNow
from pfl_lm.network.task_config import stated
from pfl_lm.network.transport import Limits, Message, messages
from pfl_lm.secagg.config import RoundConfig
from pfl_lm.secagg.errors import SecaggError

log = logging.getLogger("pfl_lm.network")

INVITATION, OVER = 1, 255  # steps; those between are the kinds of the protocol's frames
AFTER_ALL = 1 << 62  # the round of the last item of all
_KIND_AT = 5  # of a frame: where its kind stands
_KEYS = 1
_PHASES = {_KEYS: "keys", 3: "shares", 5: "report", 7: "confirmation", 9: "answer"}
_NAMED = 12  # devices that one line of the log names
_SILENT_SECONDS = 5.0  # a longer wait is announced


@dataclass
class _Round:
    """The round under way: its devices, their places, and which of them were dropped."""

    config: RoundConfig
    devices: Sequence[int]  # by place
    places: Mapping[int, int]
    dropped: dict[int, str]  # device: why
    taken: dict[int, set[bytes]]  # digests of what each device handed in


class Mailbox:
    """Carries messages between the protocol's phases and the calls of devices.

    Args:
        devices: the enrolled devices.
        limits: how long to wait.
        strike: called with every device that breaks a rule.
        grant: called with the devices that are invited to a round.
        exclusions: who is left out of the run, and is not waited for.
    """

    def __init__(
        self,
        devices: Collection[int],
        limits: Limits,
        strike: Callable[[int], None],
        grant: Callable[[Collection[int]], None],
        exclusions: Exclusions,
    ) -> None:
        self._limits, self._strike, self._grant = limits, strike, grant
        self._exclusions = exclusions
        self.presence = Presence(devices, limits, exclusions)
        self._posted: dict[int, Posted] = {}
        self._round: _Round | None = None
        self._ended: _Round | None = None  # the one before
        self._phase: Any = None
        self._told: set[int] = set()  # who has heard that the run is over

    async def fetch(self, device: int, round: int, step: int, spent: float = 0.0) -> Message:
        """Return the device's newest item once it is newer than that; an empty one after a while.

        A second call of the same device answers the first.

        Args:
            spent: seconds that this call has lasted already; it is held no longer than any other.
        """
        async with self.presence.waiting(device, spent) as bell:
            while (item := self._newer(device, round, step)) is None and await bell.rings():
                pass  # it may have rung for an item that the device does not ask for
        return item or messages.Item(round=round, step=step)

    def send(self, device: int, round: int, frame: bytes) -> None:
        """Take a message of the protocol; the same bytes a second time change nothing.

        Raises:
            NotNow: it does not count, and why.
        """
        now = self.check_turn(device, round)
        digest = hashlib.sha256(frame).digest()
        if digest in now.taken.setdefault(device, set()):
            return
        if now is not self._round:
            raise self._not_under_way(device, round)
        phase, kind = self._phase, frame[_KIND_AT] if len(frame) > _KIND_AT else 0
        if phase is None or 0 < kind < phase.message.kind:
            name = _PHASES.get(kind, "message")
            raise self._drop(device, f"its {name} came after its phase was closed", strike=False)
        try:
            phase.receive(now.places[device], frame)
        except SecaggError as error:
            # A device that was started again in the middle of the round has lost its keys.
            restarted = kind == _KEYS and bool(now.taken[device])
            raise self._drop(device, str(error), strike=not restarted) from None
        now.taken[device].add(digest)
        self.presence.news.set()

    def check_turn(self, device: int, round: int) -> _Round:
        """Return the round under way, if a device may send a message of it.

        The round before is returned to a device that has sent messages of it: it may not have
        heard that they count, and sends them again.

        Raises:
            NotNow: it may not, and why.
        """
        now = self._round
        if self._ended is not None and round == self._ended.config.round:
            now = self._ended if device in self._ended.taken else None
        if now is None or round != now.config.round or device not in now.places:
            raise self._not_under_way(device, round)
        if device in now.dropped:
            raise NotNow(f"device {device} was dropped from round {round}: {now.dropped[device]}")
        return now

    def misbehaves(self, device: int, text: str, strike: bool = True) -> NotNow:
        """Drop a device from the round under way for a mistake outside the protocol."""
        return self._drop(device, text, strike)

    def spoiled(self, place: int, text: str) -> None:
        """Expel the device that made a round's sum impossible to open.

        Args:
            place: of the device, in the round under way.
        """
        assert self._round is not None
        device = self._round.devices[place]
        self._exclusions.expel(device, self._round.config.round, text)
        self._drop(device, f"it spoiled the round: {text}")

    @property
    def under_way(self) -> int | None:
        """The number of the round under way."""
        return None if self._round is None else self._round.config.round

    def invite(
        self, config: RoundConfig, devices: Sequence[int], clip_norm: float | None = None
    ) -> None:
        """Begin a round and invite its cohort, in the order of their places.

        Args:
            clip_norm: of the round, where it has moved from the task configuration's.
        """
        self._grant(devices)
        places = {device: place for place, device in enumerate(devices)}
        left_out = {d: why for d in devices if (why := self._exclusions.reason(d)) is not None}
        self._round = _Round(config, devices, places, left_out, {})
        log.info(
            "round %d is open: %d devices are invited, and %d are here; keys come until %s",
            *(config.round, len(devices) - len(left_out), self.presence.count()),
            clock(time.monotonic() + self._limits.training_seconds),
        )
        for device, place in places.items():
            if device in left_out:
                continue
            invitation = messages.Invitation(
                place=place, clip_norm=clip_norm or 0.0, **stated(config)
            )
            self._post(device, INVITATION, partial(dict, invitation=invitation))

    async def collect(self, phase: Any, outgoing: Mapping[int, bytes], seconds: float) -> Any:
        """Hand out messages, by place, collect what a phase awaits, and close it.

        Args:
            outgoing: the server's messages of the kind before the one that the phase awaits; each
                is asked for when its device fetches it, and again if the device does.

        Returns:
            What the phase's ``close`` returns.

        Raises:
            SecaggError: the round opens no sum.
        """
        assert self._round is not None
        self._phase = phase
        for place in outgoing:
            content = partial(frame_of, outgoing, place)
            self._post(self._round.devices[place], phase.message.kind - 1, content)
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
        """End the round for every device that was invited."""
        assert self._round is not None
        for device in self._round.places:
            self._post(device, OVER, partial(dict, over=text))
        self._round, self._ended = None, self._round

    async def finish(self, text: str) -> None:
        """Tell everybody that the run is over.

        Waits until those who are here have heard it, and a while for others: they may be between
        two calls, or the server may have come back for nothing but this.
        """
        begun, limits = time.monotonic(), self._limits
        devices = self.presence.devices
        here = {device for device in devices if self.presence.is_here(device)}
        finished = Posted(AFTER_ALL, OVER, partial(dict, finished=text))
        for device in devices:
            self._posted[device] = finished
            self.presence.ring(device)
        while left := devices - self._told:
            longest = max(limits.grace_seconds, limits.hold_seconds if left & here else 0.0)
            if time.monotonic() > begun + longest:
                return
            await self.presence.wait(0.1)

    def _post(self, device: int, step: int, content: Content) -> None:
        assert self._round is not None
        self._posted[device] = Posted(self._round.config.round, step, content)
        self.presence.ring(device)

    def _newer(self, device: int, round: int, step: int) -> Message | None:
        posted = self._posted.get(device)
        if posted is None or (posted.round, posted.step) <= (round, step):
            return None
        if posted.round == AFTER_ALL:
            self._told.add(device)
        return posted.item()

    def _not_under_way(self, device: int, round: int) -> NotNow:
        return NotNow(f"round {round} is not under way for device {device}")

    def _drop(self, device: int, text: str, strike: bool = True) -> NotNow:
        now = self._round
        if now is not None and device in now.places and device not in now.dropped:
            now.dropped[device] = text
            log.warning("round %d: device %d is dropped: %s", now.config.round, device, text)
            self._post(device, OVER, partial(dict, over=text))
            self.presence.news.set()
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
        graced = announced = False
        while missing := self._missing(phase):
            if getattr(phase, "full", False):
                return
            if not graced and len(missing) <= few:
                graced = True
                until = min(until, time.monotonic() + self._limits.grace_seconds)
            if (left := until - time.monotonic()) <= 0:
                return
            if not announced and seconds - left >= _SILENT_SECONDS:
                announced = True
                self._announce_wait(phase, len(missing), until)
            await self.presence.wait(left if announced else min(left, _SILENT_SECONDS))

    def _announce_wait(self, phase: Any, missing: int, until: float) -> None:
        name, awaited = _PHASES[phase.message.kind], len(phase.awaited)
        log.info(
            "round %d: %s of %d of %d devices came; waits for the others until %s",
            *(phase.config.round, name, awaited - missing, awaited, clock(until)),
        )


def _listed(devices: Sequence[int]) -> str:
    shown = ", ".join(str(device) for device in devices[:_NAMED])
    return shown + (" …" if len(devices) > _NAMED else "")
