"""Who exchanges masks and shares with whom: a k-regular graph in an unpredictable order.

Source: Bell et al. 2020, Section 3 (a Harary graph over a random permutation).
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cached_property

from pfl_lm.secagg.wire import LABEL


@dataclass(frozen=True)
class Graph:
    """A cycle of devices, each joined to the k/2 on either side.

    Where k reaches the number of other members, everybody is joined to everybody, and each holds
    a share of its own secrets too (Bonawitz et al. 2017).
    """

    cycle: tuple[int, ...]
    degree: int

    @property
    def complete(self) -> bool:
        return self.degree >= len(self.cycle) - 1

    def neighbours(self, device: int) -> list[int]:
        """The devices with which ``device`` shares masks, in ascending order."""
        if self.complete:
            return sorted(other for other in self.cycle if other != device)
        at, half = self._place[device] + len(self.cycle), self.degree // 2
        return sorted(self._wound[at - half : at] + self._wound[at + 1 : at + half + 1])

    def holders(self, device: int) -> list[int]:
        """The devices that hold shares of the secrets of ``device``, in ascending order."""
        return sorted(self.cycle) if self.complete else self.neighbours(device)

    def least_in_a_window(self, marked: Collection[int]) -> int:
        """The least number of marked devices among any k/2 consecutive ones on the cycle."""
        n, width = len(self.cycle), min(self.degree // 2, len(self.cycle))
        flags = [device in marked for device in self.cycle]
        inside = least = sum(flags[:width])
        for at in range(n):
            inside += flags[(at + width) % n] - flags[at]
            least = min(least, inside)
        return least

    @cached_property
    def _wound(self) -> tuple[int, ...]:
        """Three turns of the cycle: a neighbourhood in the middle one is whole."""
        return self.cycle * 3

    @cached_property
    def _place(self) -> dict[int, int]:
        return {device: at for at, device in enumerate(self.cycle)}


def draw_graph(seed: bytes, members: Sequence[int], degree: int) -> Graph:
    """Order the members by SHA-256(label, seed, index) and join each to its ``degree`` nearest.

    Guarantees:
        To those who do not choose the seed, the order is a uniform permutation (SHA-256 as a
        random oracle; two equal digests are as likely as a collision).
    """

    def place(device: int) -> bytes:
        text = LABEL + b"graph" + seed + device.to_bytes(4, "little")
        return hashlib.sha256(text).digest()

    return Graph(tuple(sorted(members, key=place)), degree)
