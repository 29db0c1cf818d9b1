"""Which of the enrolled devices are here: they wait for news, or did a moment ago."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from pfl_lm.network.exclusions import Exclusions
from pfl_lm.network.transport import Limits

log = logging.getLogger("pfl_lm.network")

_MOMENT_SECONDS = 10e-6  # for each device: looking at it takes a fraction of that


@dataclass
class Bell:
    """Wakes one call of a device that waits for news."""

    hold_seconds: float
    event: asyncio.Event = field(default_factory=asyncio.Event)
    is_last: bool = False  # what it rings for: another call of the device has come

    def __post_init__(self) -> None:
        self._until = asyncio.get_running_loop().time() + self.hold_seconds

    async def rings(self) -> bool:
        """Wait until it is rung; False after a while, and once another call has come."""
        if self.is_last:
            return False
        try:
            async with asyncio.timeout_at(self._until):
                await self.event.wait()
        except TimeoutError:
            return False
        self.event.clear()
        return True


class Presence:
    """Who is here, and a bell for each who waits.

    Args:
        devices: the enrolled.
        limits: how long to wait.
        exclusions: who is left out of the run, and is not waited for.

    Attributes:
        news: is set whenever a device was heard of.
    """

    def __init__(self, devices: Collection[int], limits: Limits, exclusions: Exclusions) -> None:
        self._limits, self._exclusions = limits, exclusions
        self._bells: dict[int, Bell] = {}
        self._seen = dict.fromkeys(devices, -float("inf"))
        self.news = asyncio.Event()

    @property
    def devices(self) -> frozenset[int]:
        """All who are enrolled."""
        return frozenset(self._seen)

    @asynccontextmanager
    async def waiting(self, device: int, spent: float = 0.0) -> AsyncIterator[Bell]:
        """Count a device as here while its call waits; a second call wakes the first.

        Args:
            spent: seconds that the call has lasted already.
        """
        bell = Bell(max(0.0, self._limits.hold_seconds - spent))
        if (before := self._bells.get(device)) is not None:
            before.is_last = True
            before.event.set()
        self._bells[device] = bell
        self.saw(device)
        self.news.set()
        try:
            yield bell
        finally:
            self.saw(device)
            if self._bells.get(device) is bell:
                del self._bells[device]

    def saw(self, device: int) -> None:
        """Note that a device was here at this moment."""
        self._seen[device] = time.monotonic()

    def ring(self, device: int) -> None:
        """Wake a device's call, if one waits."""
        if bell := self._bells.get(device):
            bell.event.set()

    async def gather(self, wanted: int, least: int) -> None:
        """Wait until ``wanted`` devices wait for an invitation; after a while ``least`` will do.

        A device that is suspended or switched off must not keep the others waiting.

        Raises:
            ValueError: so many devices are left out of the run that ``least`` can never be there.
        """
        left = len(self._seen) - len(self._exclusions)
        if left < least:
            raise ValueError(
                f"{left} of {len(self._seen)} devices may take part, the others are revoked or "
                f"expelled: a round needs {least}; begin another run with other devices"
            )
        wanted = min(wanted, left)
        until, announced = time.monotonic() + self._limits.gather_seconds, False
        while (present := self.count()) < wanted:
            if not announced:
                log.info(
                    "%d devices are here: a round opens with %d, or from %s on with %d",
                    *(present, wanted, clock(until), least),
                )
                announced = True
            if present >= least and time.monotonic() >= until:
                return
            await self.wait(min(5.0, max(0.1, until - time.monotonic())))

    async def wait(self, seconds: float) -> None:
        """Wait for news of any device, and a moment for that of others.

        Who waits looks at every device afterwards: at each message of thousands that would cost
        the square of their number.
        """
        self.news.clear()
        try:
            async with asyncio.timeout(seconds):
                await self.news.wait()
        except TimeoutError:
            return
        await asyncio.sleep(min(seconds, _MOMENT_SECONDS * len(self._seen)))

    def count(self) -> int:
        """Return how many devices are here."""
        return sum(self.is_here(device) for device in self._seen)

    def is_here(self, device: int) -> bool:
        """Whether a device waits for news, or did a moment ago; those left out never do."""
        if device in self._exclusions:
            return False
        since = time.monotonic() - self._seen[device]
        return device in self._bells or since < self._limits.hold_seconds


def clock(moment: float) -> str:
    """Write a moment of the monotonic clock as this machine's local time of day."""
    return time.strftime("%H:%M:%S", time.localtime(time.time() + moment - time.monotonic()))
