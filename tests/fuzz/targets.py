"""What is fuzzed: a name, sound inputs, and a function that may raise only what it promises.

A target ends well, or with an error of its kind; anything else is a finding.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Target:
    """One reader of bytes that strangers may have made.

    Attributes:
        seeds: sound inputs.
        attempt: reads one input.
        allowed: what it may raise.
    """

    name: str
    seeds: Sequence[bytes]
    attempt: Callable[[bytes], object]
    allowed: tuple[type[BaseException], ...] = (ValueError,)
