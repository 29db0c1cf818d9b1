"""Signals that end a process: ``interruptible`` makes them wait until a round is recorded.

They are Ctrl-C, SIGTERM, and SIGHUP, which a process gets when its terminal is closed. One that the
process was started to ignore, as by nohup, stays ignored.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from types import FrameType

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


@contextmanager
def answering(handler: Callable[[int, FrameType | None], None] | signal.Handlers) -> Iterator[None]:
    """Let ``handler`` answer the signals that are not ignored, for the length of a block."""
    heeded = [name for name in SIGNALS if signal.getsignal(name) is not signal.SIG_IGN]
    before = [signal.signal(name, handler) for name in heeded]
    try:
        yield
    finally:
        for name, earlier in zip(heeded, before, strict=True):
            signal.signal(name, signal.SIG_DFL if earlier is None else earlier)


def end_by_exceptions() -> None:
    """Let SIGTERM and SIGHUP end this process as Ctrl-C does: what is half written is cleared."""
    for name in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(name) is not signal.SIG_IGN:
            signal.signal(name, end)


def end(number: int, _: FrameType | None) -> None:
    """End this process by an exception, as a handler of signals: ``finally`` blocks run.

    A terminal and a launcher may both send the signal; from the first one on others are ignored.
    """
    for name in SIGNALS:
        signal.signal(name, signal.SIG_IGN)
    raise KeyboardInterrupt if number == signal.SIGINT else SystemExit(128 + number)


@contextmanager
def interruptible() -> Iterator[Callable[[], None]]:
    """Yield a function: once it is called, the signals wait for the end of the block.

    Before that call they act at once, as they do elsewhere. Python runs handlers of signals in its
    main thread only, so in any other thread nothing waits.
    """
    heard: list[int] = []

    def hold() -> None:
        if threading.current_thread() is threading.main_thread():
            held.enter_context(answering(lambda number, _: heard.append(number)))

    try:
        with ExitStack() as held:
            yield hold
    finally:
        for number in heard:  # a signal that is ignored outside the block ends nothing
            signal.raise_signal(number)
