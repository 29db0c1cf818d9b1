"""Requests to a run from another process: pause, go on, stop. Files in its folder carry them.

A run heeds them between two rounds, so that a round that is paid for is never lost.
"""

from __future__ import annotations

import time
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


def clear(folder: RunFolder) -> None:
    """Forget what an earlier run in the folder was asked."""
    for request in (STOP, PAUSE):
        withdraw(folder.path, request)


def heed(folder: RunFolder, rounds: int) -> None:
    """Wait while the run is asked to pause; end it where it is asked to stop.

    Args:
        rounds: that are over.

    Raises:
        RunStopped: it was asked to stop.
    """
    while asks(folder.path, PAUSE) and not asks(folder.path, STOP):
        time.sleep(_LOOK_SECONDS)
    if asks(folder.path, STOP):
        clear(folder)
        raise RunStopped(
            f"stopped after {rounds} rounds, as was asked; {folder.path} keeps them, and --resume "
            "continues"
        )
