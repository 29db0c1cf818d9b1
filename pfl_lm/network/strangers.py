"""Callers without a session share a small pool of open calls."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class StrangerPool:
    """Open calls of callers who have not authenticated: few, and short.

    Args:
        most: open calls; where another comes the oldest ends, so that callers who say nothing
            cannot keep out one who speaks.
        seconds: after which a call ends.
    """

    def __init__(self, most: int, seconds: float) -> None:
        self._most, self._seconds = most, seconds
        self._open: dict[asyncio.Timeout, None] = {}  # the oldest first

    @asynccontextmanager
    async def call(self) -> AsyncIterator[None]:
        """Run a stranger's call.

        Raises:
            TimeoutError: its time is over, or others came.
        """
        while len(self._open) >= self._most:
            oldest = next(iter(self._open))
            del self._open[oldest]
            if not oldest.expired():
                oldest.reschedule(asyncio.get_running_loop().time())
        async with asyncio.timeout(self._seconds) as limit:
            self._open[limit] = None
            try:
                yield
            finally:
                self._open.pop(limit, None)
