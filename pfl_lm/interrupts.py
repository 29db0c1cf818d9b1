"""Ctrl-C at a good moment: what has been paid for is written down before a run ends."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

_NAMES = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def interruptible() -> Iterator[Callable[[], None]]:
    """Yield a function: once it is called, Ctrl-C and SIGTERM wait for the end of the block.

    Up to that call they act at once, as they do elsewhere. Python hears signals in its main thread
    alone, so in any other nothing waits.
    """
    heard: list[int] = []
    before: dict[signal.Signals, Callable[[int, FrameType | None], object] | int | None] = {}

    def hold() -> None:
        if before or threading.current_thread() is not threading.main_thread():
            return
        for name in _NAMES:
            before[name] = signal.signal(name, lambda number, _: heard.append(number))

    try:
        yield hold
    finally:
        for name, handler in before.items():
            signal.signal(name, signal.SIG_DFL if handler is None else handler)
        for number in heard[:1]:
            signal.raise_signal(number)
