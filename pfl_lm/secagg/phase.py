"""What the server's phases have in common."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Generic, TypeVar

from pfl_lm.secagg.config import RoundConfig
from pfl_lm.secagg.errors import Refused, TooFewReports, WrongState
from pfl_lm.secagg.messages import Message

M = TypeVar("M", bound=Message)
Outgoing = Mapping[int, bytes]


class Written(Mapping[int, bytes]):
    """Messages that are written when they are looked up, so that nobody need hold them all."""

    def __init__(self, devices: Iterable[int], write: Callable[[int], bytes]) -> None:
        self._devices, self._write = dict.fromkeys(devices), write

    def __getitem__(self, device: int) -> bytes:
        if device not in self._devices:
            raise KeyError(device)
        return self._write(device)

    def __iter__(self) -> Iterator[int]:
        return iter(self._devices)

    def __len__(self) -> int:
        return len(self._devices)


class Phase(Generic[M]):
    """Collects one message per device of those who may still speak; closes once."""

    message: type[M]

    def __init__(self, config: RoundConfig, awaited: frozenset[int]) -> None:
        self.config = config
        self.awaited = awaited
        self._received: dict[int, M] = {}
        self._open = True

    @property
    def missing(self) -> frozenset[int]:
        """Who may still send a message in this phase."""
        return self.awaited - self._received.keys()

    def receive(self, sender: int, message: bytes) -> None:
        """Take one device's message.

        Raises:
            MalformedMessage, Refused, WrongState: the message does not count.
        """
        if not self._open:
            raise WrongState(f"a message of device {sender} came after its phase was closed")
        if sender not in self.awaited:
            raise Refused(f"device {sender} has no part in this phase")
        if sender in self._received:
            raise Refused(f"device {sender} has spoken in this phase already")
        content = self.message.decode(message, self.config, sender)
        self._check(sender, content)
        self._received[sender] = content

    def _check(self, sender: int, content: M) -> None:
        """Raise ``Refused`` if the content breaks a rule."""

    def _end(self, least: int) -> dict[int, M]:
        if not self._open:
            raise WrongState("the phase is closed already")
        self._open = False
        if len(self._received) < least:
            raise TooFewReports(len(self._received), least)
        return self._received
