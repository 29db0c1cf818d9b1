"""Requests to a run from another process: pause, go on, stop. Files in its folder carry them.

A run heeds them between two rounds, so that a round that is paid for is never lost.
"""

from __future__ import annotations

import asyncio
import fcntl
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from pfl_lm.run.folder import RunFolder

STOP, PAUSE = "stop.request", "pause.request"
_LOOK_SECONDS = 0.2


class RunStopped(ValueError):
    """A run that ended because somebody asked it to; the message says how to continue."""


def ask(run: Path, request: str) -> None:
    """Ask a run to pause or to stop."""
    (RunFolder.open(run).path / request).touch()


def withdraw(run: Path, request: str) -> None:
    """Take a request back."""
    (Path(run) / request).unlink(missing_ok=True)


def asks(run: Path, request: str) -> bool:
    """Whether a request lies there and has not been heeded yet."""
    return (Path(run) / request).exists()


@contextmanager
def heeding(folder: RunFolder) -> Iterator[None]:
    """Let others see that this process heeds requests, for the length of a block.

    Forget what an earlier run in the folder was asked, and in the end what this one was.
    """
    with folder.manifest_path.open("rb") as manifest:
        fcntl.flock(manifest, fcntl.LOCK_SH)
        _clear(folder.path)
        try:
            yield
        finally:
            _clear(folder.path)


def is_heeded(folder: RunFolder) -> bool:
    """Whether a process runs the run and heeds requests; raises OSError where the run is gone."""
    with folder.manifest_path.open("rb") as manifest:
        try:
            fcntl.flock(manifest, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        return False


def heed(run: Path, rounds: int) -> None:
    """Wait while the run is asked to pause; end it where it is asked to stop.

    Args:
        rounds: that are over.

    Raises:
        RunStopped: it was asked to stop.
    """
    _stop_if_asked(run, rounds)
    while asks(run, PAUSE):
        time.sleep(_LOOK_SECONDS)
        _stop_if_asked(run, rounds)


async def heed_until(ready: Callable[[], Awaitable[None]], run: Path, rounds: int) -> None:
    """Heed requests, as ``heed`` does, until what a round waits for is ready and none is left.

    Args:
        ready: returns when it is; it is asked again after a pause.

    Raises:
        RunStopped: the run was asked to stop.
    """
    while True:
        _stop_if_asked(run, rounds)
        if asks(run, PAUSE):
            await asyncio.sleep(_LOOK_SECONDS)
            continue
        waiting = asyncio.ensure_future(ready())
        try:
            while not (asks(run, PAUSE) or asks(run, STOP)):
                await asyncio.wait({waiting}, timeout=_LOOK_SECONDS)
                if waiting.done():
                    return waiting.result()
        finally:
            waiting.cancel()


def _stop_if_asked(run: Path, rounds: int) -> None:
    if asks(run, STOP):
        _clear(run)
        raise RunStopped(
            f"stopped after {rounds} rounds, as was asked; {run} keeps them, and --resume continues"
        )


def _clear(run: Path) -> None:
    for request in (STOP, PAUSE):
        withdraw(run, request)
