"""What the measurements of secure aggregation share: the machine's rates, and a round."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from benchmarks.peer_flower import NEIGHBOURS, THRESHOLD, clock


def machine_rates() -> tuple[float, float]:
    """Key stream in bytes per second, and X25519 agreements per second: the best of some runs."""
    from pfl_lm.secagg.keys import KeyPair
    from pfl_lm.secagg.masks import _open_stream

    zeros, out = bytes(1 << 22), bytearray(1 << 22)
    mine, theirs = (KeyPair.from_secret(os.urandom(32)) for _ in range(2))

    def stream() -> None:
        encryptor = _open_stream(os.urandom(32))
        for _ in range(16):
            encryptor.update_into(zeros, out)

    def agree() -> None:
        for _ in range(200):
            mine.agree(theirs.public)

    return 16 * len(zeros) / best_of(5, stream), 200 / best_of(5, agree)


def best_of(times: int, work: Callable[[], Any]) -> float:
    seconds = []
    for _ in range(times):
        start = clock()
        work()
        seconds.append(clock() - start)
    return min(seconds)


def config_of(cohort: int, dim: int, bits: int) -> Any:
    from pfl_lm.secagg.config import RoundConfig
    from pfl_lm.secagg.parameters import GraphParameters

    graph = GraphParameters(NEIGHBOURS, THRESHOLD, cohort // 5)
    return RoundConfig(1, bytes(32), bytes(32), dim, bits, cohort, cohort * 8 // 10, graph)


def mask_seconds(dim: int, bits: int) -> float:
    """Adding 75 masks to a vector."""

    from pfl_lm.secagg.masks import add_masks
    from pfl_lm.secagg.ring import Ring

    ring = Ring(bits)
    total = ring.zeros(dim)
    seeds = [os.urandom(32) for _ in range(NEIGHBOURS + 1)]
    return best_of(7, lambda: add_masks(ring, total, seeds[::2], seeds[1::2]))


def device_policy() -> Any:
    """What the devices insist on: nothing that stands in a measurement's way."""
    from pfl_lm.secagg.config import DevicePolicy

    return DevicePolicy(2, 3, 2)
