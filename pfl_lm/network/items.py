"""Items for devices, which are written when they are fetched."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from pfl_lm.network.transport import Message, messages

Content = Callable[[], dict[str, Any]]  # writes the field of an item that is set, by its name


@dataclass(frozen=True, slots=True)
class Posted:
    """What a device's newest item is, before it is written."""

    round: int
    step: int
    content: Content

    def item(self) -> Message:
        return messages.Item(round=self.round, step=self.step, **self.content())


def frame_of(outgoing: Mapping[int, bytes], place: int) -> dict[str, Any]:
    """Write the message for the device at a place."""
    return {"frame": outgoing[place]}
