"""Back-pressure: how many messages of devices are read at once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class UploadPool:
    """Places for uploads that are being read; the others wait in the order in which they came.

    What an upload has not sent yet waits in the device, because HTTP/2 asks for no more than the
    server reads. So the server holds the bytes of at most ``places`` messages.

    Args:
        places: uploads that are read at once.
        seconds: after which an upload that is still not whole gives its place up, if others wait:
            devices that send nothing cannot keep out those that do.
    """

    def __init__(self, places: int, seconds: float) -> None:
        self._places, self._seconds = asyncio.Semaphore(places), seconds
        self._waiting = 0
        self._due: dict[asyncio.Timeout, float] = {}  # when it may be ended; the oldest first

    @asynccontextmanager
    async def place(self) -> AsyncIterator[None]:
        """Read one upload.

        Raises:
            TimeoutError: it gave its place up; the device may call again.
        """
        if self._places.locked():
            self._press()
        self._waiting += 1
        try:
            await self._places.acquire()
        finally:
            self._waiting -= 1
        try:
            async with self._limited():
                yield
        finally:
            self._places.release()

    @asynccontextmanager
    async def _limited(self) -> AsyncIterator[None]:
        """End an upload after its time, at once if others wait for its place already."""
        due = asyncio.get_running_loop().time() + self._seconds
        async with asyncio.timeout_at(due if self._waiting else None) as limit:
            if not self._waiting:
                self._due[limit] = due
            try:
                yield
            finally:
                self._due.pop(limit, None)

    def _press(self) -> None:
        """Let the oldest upload end as soon as it has had its time."""
        if not self._due:
            return
        oldest = next(iter(self._due))
        oldest.reschedule(max(self._due.pop(oldest), asyncio.get_running_loop().time()))
