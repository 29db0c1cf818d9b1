"""Ctrl-C and SIGTERM at a good moment: what has been paid for is written down before a run ends."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from types import FrameType

ENDS = (signal.SIGTERM, signal.SIGINT)


@contextmanager
def answering(handler: Callable[[int, FrameType | None], None] | signal.Handlers) -> Iterator[None]:
    """Answer what ends a process by ``handler``."""
    before = [signal.signal(name, handler) for name in ENDS]
    try:
        yield
    finally:
        for name, earlier in zip(ENDS, before, strict=True):
            signal.signal(name, signal.SIG_DFL if earlier is None else earlier)


@contextmanager
def interruptible() -> Iterator[Callable[[], None]]:
    """Yield a function: once it is called, Ctrl-C and SIGTERM wait for the end of the block.

    Up to that call they act at once, as they do elsewhere. Python hears signals in its main thread
    alone, so in any other nothing waits.
    """
    heard: list[int] = []

    def hold() -> None:
        if threading.current_thread() is threading.main_thread():
            held.enter_context(answering(lambda number, _: heard.append(number)))

    try:
        with ExitStack() as held:
            yield hold
    finally:
        for number in heard[:1]:
            signal.raise_signal(number)
