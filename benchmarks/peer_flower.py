"""Flower's SecAgg+ client, timed part by part: `python -m benchmarks.peer_flower DIM`.

Eight times over. It runs in Flower's own environment (see ``benchmarks.secagg``) and needs nothing
of ours.
"""

from __future__ import annotations

import importlib
import json
import sys
import time
from collections.abc import Callable
from typing import Any

COHORT, NEIGHBOURS, THRESHOLD = 1000, 74, 45
FLOWER_BITS = 32  # of Flower's modulus
FLOWER_CLIP, FLOWER_LEVELS = 8.0, 1 << 22  # its grid: so many steps on ±8; all three are defaults
clock = time.thread_time


class Stopwatch:
    """Adds up the CPU seconds of named parts."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    def run(self, name: str, work: Callable[..., Any], *arguments: Any) -> Any:
        start = clock()
        result = work(*arguments)
        self.seconds[name] = self.seconds.get(name, 0.0) + clock() - start
        return result


def flower_client(dim: int) -> dict[str, float]:
    """Flower's client functions, called as its mod calls them; runs in Flower's environment."""
    import numpy as np
    from flwr.common import ndarrays_to_parameters
    from flwr.common.secure_aggregation.crypto.symmetric_encryption import encrypt
    from flwr.common.secure_aggregation.secaggplus_constants import Key
    from flwr.common.secure_aggregation.secaggplus_utils import share_keys_plaintext_concat

    setup = {
        Key.SAMPLE_NUMBER: COHORT,
        Key.SHARE_NUMBER: NEIGHBOURS + 1,
        Key.THRESHOLD: THRESHOLD,
        Key.CLIPPING_RANGE: FLOWER_CLIP,
        Key.TARGET_RANGE: FLOWER_LEVELS,
        Key.MOD_RANGE: 1 << FLOWER_BITS,
        Key.MAX_WEIGHT: 1.0,
    }
    # The package exports a function of the same name over the module.
    mod = importlib.import_module("flwr.client.mod.secure_aggregation.secaggplus_mod")
    watch = Stopwatch()
    states = [mod.SecAggPlusState(nid=index) for index in range(NEIGHBOURS + 1)]
    keys = {}
    for state in states:
        reply = (
            watch.run("advertise keys", mod._setup, state, dict(setup))
            if state.nid == 0
            else mod._setup(state, dict(setup))
        )
        keys[str(state.nid)] = (reply[Key.PUBLIC_KEY_1], reply[Key.PUBLIC_KEY_2])
    watch.run("share keys", mod._share_keys, states[0], keys)
    share = states[0].rd_seed_share_dict[0]
    boxes = []
    for state in states[1:]:
        key = mod.generate_shared_key(
            mod.bytes_to_private_key(state.sk2), mod.bytes_to_public_key(states[0].pk2)
        )
        boxes.append(encrypt(key, share_keys_plaintext_concat(state.nid, 0, share, share)))
    configs = {Key.CIPHERTEXT_LIST: boxes, Key.SOURCE_LIST: list(range(1, NEIGHBOURS + 1))}
    vector = ndarrays_to_parameters([np.random.default_rng(0).standard_normal(dim)])
    watch.run("masked input", mod._collect_masked_vectors, states[0], configs, 1, vector)
    return watch.seconds


if __name__ == "__main__":
    runs = [flower_client(int(sys.argv[1])) for _ in range(8)]
    print(json.dumps(runs))
