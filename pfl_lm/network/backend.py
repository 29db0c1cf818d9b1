"""What the calls of devices ask of the round: to be admitted, messages, and the model.

``Service`` speaks to a ``Backend``. In a server of one process that is a ``LocalBackend``; a front
end has one that asks the process which holds the round (``front_ends.remote``).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Protocol

from pfl_lm.network.admission import Admission
from pfl_lm.network.mailbox import Mailbox
from pfl_lm.network.refusals import CalledOn, NotNow, TooOften
from pfl_lm.network.transport import Message

log = logging.getLogger("pfl_lm.network")


class Downloads(Protocol):
    """What devices download for a round: what they lack of a model, or a question's content."""

    def open(self, have: int) -> Iterator[bytes]: ...


class Call(Protocol):
    """An admitted call: what its device may ask. Refusals are those of ``refusals``."""

    async def check_turn(self, round: int) -> None:
        """Refuse a device that may not send a message of this round now (``NotNow``)."""

    async def send(self, round: int, frame: bytes) -> None:
        """Hand a message to the round; when this returns, the round has taken it."""

    async def fetch(self, round: int, step: int, spent: float = 0.0) -> Message:
        """Return the device's newest item (``Mailbox.fetch``)."""
        ...

    async def misbehaves(self, text: str) -> NotNow:
        """Drop the device from the round; return the refusal to raise."""
        ...

    def download(self, want: int, have: int) -> AsyncIterator[bytes]:
        """Yield, in pieces, what the device lacks of round ``want``."""
        ...


class Backend(Protocol):
    """Who admits calls."""

    async def challenge(self, device: int) -> bytes:
        """Return a nonce (``Admission.challenge``)."""
        ...

    async def authenticate(self, nonce: bytes, signature: bytes, certificate: bytes) -> bytes:
        """Return the token of a new session (``Admission.authenticate``)."""
        ...

    def call(
        self, token: bytes, cost: int = 1, sends: bool = False
    ) -> AbstractAsyncContextManager[Call]:
        """Admit a call, counted as ``cost`` calls, for as long as the block lasts.

        Args:
            sends: it brings a message; a device brings one at a time.
        """
        ...


class LocalBackend:
    """The round in this process."""

    def __init__(self, admission: Admission, mailbox: Mailbox, downloads: Downloads) -> None:
        self.admission, self.mailbox, self.downloads = admission, mailbox, downloads
        self.uploading: set[int] = set()  # devices

    async def challenge(self, device: int) -> bytes:
        return self.admission.challenge(device)

    async def authenticate(self, nonce: bytes, signature: bytes, certificate: bytes) -> bytes:
        device, token = self.admission.authenticate(nonce, signature, certificate)
        log.info("device %d is here", device)
        return token

    @asynccontextmanager
    async def call(
        self, token: bytes, cost: int = 1, sends: bool = False
    ) -> AsyncIterator[_LocalCall]:
        try:
            with self.admission.call(token, cost) as device:
                call = _LocalCall(self, device, sends)
                try:
                    yield call
                finally:
                    call.end_upload()
        except CalledOn as error:
            self.mailbox.misbehaves(error.device, str(error), strike=False)
            raise


class _LocalCall:
    def __init__(self, backend: LocalBackend, device: int, sends: bool) -> None:
        if sends and device in backend.uploading:
            raise TooOften(f"device {device} sends two messages at once; wait")
        self._backend, self._device, self._uploads = backend, device, sends
        if sends:
            backend.uploading.add(device)

    def end_upload(self) -> None:
        """Let the device bring its next message."""
        if self._uploads:
            self._uploads = False
            self._backend.uploading.discard(self._device)

    async def check_turn(self, round: int) -> None:
        self._backend.mailbox.check_turn(self._device, round)

    async def send(self, round: int, frame: bytes) -> None:
        self.end_upload()
        self._backend.mailbox.send(self._device, round, frame)

    async def fetch(self, round: int, step: int, spent: float = 0.0) -> Message:
        return await self._backend.mailbox.fetch(self._device, round, step, spent)

    async def misbehaves(self, text: str) -> NotNow:
        return self._backend.mailbox.misbehaves(self._device, text)

    async def download(self, want: int, have: int) -> AsyncIterator[bytes]:
        if want != self._backend.mailbox.under_way:
            raise NotNow(f"round {want} is not under way")
        pieces = await asyncio.to_thread(self._backend.downloads.open, have)
        log.debug("device %d downloads the model", self._device)
        for piece in pieces:
            yield piece
