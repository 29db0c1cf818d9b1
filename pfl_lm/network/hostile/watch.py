"""What a device does while a server lies to it, and whether it lets itself be cheated."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

from pfl_lm.network.hostile.cases import Case

_NAMES = {1: "keys", 3: "shares", 5: "report", 7: "confirmation", 9: "answer"}
_LEFT_SECONDS, _POLLS_SECONDS = 0.3, 3.0  # until a message that is under way has come
_OVER = 255  # step of a device that takes no more of a round


class Verdict(StrEnum):
    """How a case ended."""

    WITHSTOOD = "withstood"
    CHEATED = "cheated"
    UNTOLD = "not reached"  # the device left before the lie was told
    SKIPPED = "not played"  # rounds of this kind have no such lie

    @property
    def fails(self) -> bool:
        """Whether a device that ends a case so has shown nothing, or too much."""
        return self in (Verdict.CHEATED, Verdict.UNTOLD)


@dataclass(frozen=True)
class Outcome:
    """The end of one case.

    Attributes:
        reason: what the device did last, in words.
        saw: everything that the device did, in order.
    """

    case: Case
    verdict: Verdict
    reason: str
    saw: tuple[str, ...] = ()


@dataclass(frozen=True)
class Patience:
    """Seconds for which the server waits.

    Attributes:
        arrival: for the device, and for its keys.
        silence: after the lie, until a device that says nothing counts as having left.
    """

    arrival: float = 120.0
    silence: float = 30.0


class Watch:
    """Follows one device through one case.

    Args:
        has_ended: whether the device's process has ended, where the server started it.
    """

    def __init__(self, case: Case, patience: Patience, has_ended: Callable[[], bool]) -> None:
        self._case, self._patience, self._has_ended = case, patience, has_ended
        self._saw: list[str] = []
        self._sent: set[bytes] = set()
        self._told: tuple[float, tuple[int, int]] | None = None  # when, and the item's cursor
        self._verdict: tuple[Verdict, str] | None = None
        self._until = asyncio.get_running_loop().time() + patience.arrival
        self._then = (Verdict.UNTOLD, "no device called")
        self.news = asyncio.Event()

    @property
    def told(self) -> bool:
        """Whether the device has been told the lie."""
        return self._told is not None

    def notes(self, what: str) -> None:
        """Keep what the device did."""
        self._saw.append(what)
        if not self.told:
            self._then = (Verdict.UNTOLD, f"the device {what}, and then nothing more")
        self.news.set()

    def skips(self, why: str) -> None:
        """End the case, which rounds of this kind do not have."""
        self._decide(Verdict.SKIPPED, why)

    def tells(self, round: int, step: int) -> None:
        """Note that the device has been told the lie, in an item with this cursor."""
        if self.told:
            return
        now = asyncio.get_running_loop().time()
        self._told = (now, (round, step))
        self._saw.append("was told the lie")
        seconds = self._patience.silence
        self._wait(now + seconds, f"sent nothing more within {seconds:g} s")

    def asks(self, round: int, step: int) -> None:
        """Note that the device asks for what is newer than that."""
        if self._told is None:
            return
        now = asyncio.get_running_loop().time()
        if step >= _OVER or round > self._told[1][0]:
            self._wait(now + _LEFT_SECONDS, "left the round")
        elif (round, step) >= self._told[1] and not self._case.looks_at_answer:
            self._wait(now + _POLLS_SECONDS, "ignored it and asked on")

    def sends(self, frame: bytes) -> None:
        """Note a message of the device, and whether it is one that only a cheated device sends."""
        kind = frame[5] if len(frame) > 5 else 0
        known, name = frame in self._sent, _NAMES.get(kind, "a message of no kind")
        self._sent.add(frame)
        self.notes(f"sent its {name}" + (" again, the same bytes" if known else ""))
        if self.told and not known and kind >= self._case.forbidden:
            self._decide(Verdict.CHEATED, f"sent its {name}")

    def judges(self, verdict: Verdict, reason: str) -> None:
        """End the case by what only this case can tell."""
        self._decide(verdict, reason)

    async def decided(self) -> Outcome:
        """Wait until the case has ended."""
        loop = asyncio.get_running_loop()
        while self._verdict is None:
            if self._has_ended():
                self._ends()
            left = self._until - loop.time()
            if left <= 0:
                self._decide(*self._then)
                break
            self.news.clear()
            try:
                async with asyncio.timeout(min(left, 0.1)):
                    await self.news.wait()
            except TimeoutError:
                continue
        assert self._verdict is not None
        return Outcome(self._case, *self._verdict, tuple(self._saw))

    def _ends(self) -> None:
        now = asyncio.get_running_loop().time()
        if self.told:
            self._wait(now + _LEFT_SECONDS, "ended")
        else:
            self._until = min(self._until, now + _LEFT_SECONDS)

    def _wait(self, until: float, then: str) -> None:
        """Take the device for one that withstood, unless it says something by then."""
        if until < self._until or self._then[0] is not Verdict.WITHSTOOD:
            self._until, self._then = until, (Verdict.WITHSTOOD, then)
        self.news.set()

    def _decide(self, verdict: Verdict, reason: str) -> None:
        if self._verdict is None:
            self._verdict = (verdict, reason)
        self.news.set()
