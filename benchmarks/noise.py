"""How fast updates are protected, against copying the same bytes: `python -m benchmarks.noise`.

Every figure is CPU seconds of one core, the best of several runs. A coordinate counts 12 bytes:
4 read as float32, 8 written as int64. The limit of a step is the copy of as many bytes and the
keystream of the random bytes that a coordinate takes, each at its rate in the same run: 2 for
rounding, 4 for rounding and a noise share.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np

from pfl_lm.dp.cohort import CohortRule, cohort
from pfl_lm.dp.encoding import norms, protect
from pfl_lm.dp.grid import Grid
from pfl_lm.dp.ledger import Ledger
from pfl_lm.dp.noise import NoiseShare, add_central_gaussian
from pfl_lm.dp.sampler.discrete_noise import add_noise, table
from pfl_lm.dp.sampler.pmf import Kind
from pfl_lm.dp.sampler.random_bits import secure_bits

BYTES = 12
ROUNDING, WITH_SHARE = 2, 4  # random bytes a coordinate


def best(action: Callable[[], object], repeats: int) -> float:
    """Return the least CPU seconds of one call, after one to warm up."""
    action()
    least = float("inf")
    for _ in range(repeats):
        start = time.thread_time()
        action()
        least = min(least, time.thread_time() - start)
    return least


def interleaved(actions: Sequence[Callable[[], object]], repeats: int) -> list[float]:
    """Return the least CPU seconds of each action, taken in turns: a busy hour befalls them all."""
    least = [float("inf")] * len(actions)
    for _ in range(repeats + 1):
        for i, action in enumerate(actions):
            start = time.thread_time()
            action()
            least[i] = min(least[i], time.thread_time() - start)
    return least


def protecting(devices: int, dim: int, repeats: int) -> list[dict[str, object]]:
    """Time clip + encode + noise of ``devices`` updates, eight in memory at a time."""
    rows = 8
    updates = np.random.default_rng(0).normal(size=(rows, dim)).astype(np.float32)
    vectors = np.zeros((rows, dim), dtype=np.int64)
    grid = Grid.choose(dim, 1.0, reports_max=devices, noise_multiplier=1.0)
    share = NoiseShare("skellam", grid.noise_variance(1.0) / devices)
    gauss = NoiseShare("discrete_gaussian", grid.noise_variance(1.0) / devices)
    bits, stretch = secure_bits(), np.empty(1 << 18, np.uint8)
    source, target = np.ones(rows * dim * BYTES // 16), np.empty(rows * dim * BYTES // 16)
    steps: dict[str, tuple[Callable[[], object], int]] = {
        "copy of as many bytes": (lambda: np.copyto(target, source), 0),
        "norms (read only)": (lambda: norms(updates), 0),
        "clip + encode": (lambda: protect(updates, grid, None, bits, vectors), ROUNDING),
        "clip + encode + Skellam share": (
            lambda: protect(updates, grid, share, bits, vectors),
            WITH_SHARE,
        ),
        "clip + encode + Gaussian share": (
            lambda: protect(updates, grid, gauss, bits, vectors),
            WITH_SHARE,
        ),
    }

    def read() -> None:
        for _ in range(32):  # what was in the cache before does not count
            bits.fill(stretch)

    first, *least = interleaved([read, *(step for step, _ in steps.values())], repeats)
    keystream = first / 32 / len(stretch)
    coordinate = [seconds / rows / dim for seconds in least]
    figures: list[dict[str, object]] = [
        {"step": "keystream", "gigabytes_per_second": round(1e-9 / keystream, 2)}
    ]
    for (name, (_, random)), seconds in zip(steps.items(), coordinate, strict=True):
        figure: dict[str, object] = {
            "step": name,
            "seconds": round(seconds * dim * devices, 3),
            "ns_per_coordinate": round(seconds * 1e9, 2),
            "gigabytes_per_second": round(BYTES / seconds / 1e9, 2),
        }
        if random:
            limit = coordinate[0] + random * keystream
            figure |= {"share_of_limit": round(limit / seconds, 2), "random_bytes": random}
        figures.append(figure)
    figures[-1]["share_std"] = round(share.variance**0.5, 1)
    return figures


def sampling(repeats: int) -> list[dict[str, object]]:
    """Time exact samples by distribution and standard deviation, numpy's inexact ones beside."""
    count = 1 << 21
    out = np.zeros(count, dtype=np.int64)
    bits = secure_bits()
    figures: list[dict[str, object]] = []
    kinds: tuple[Kind, Kind] = ("skellam", "discrete_gaussian")
    for kind in kinds:
        for deviation in (1.0, 10.0, 113.0, 800.0, 8000.0, 60000.0):
            table.cache_clear()
            start = time.thread_time()
            add_noise(kind, deviation**2, out[:1], bits)
            built = time.thread_time() - start
            seconds = best(partial(add_noise, kind, deviation**2, out, bits), repeats)
            rate = round(count / seconds / 1e6)
            figures.append(
                {
                    "sampler": kind,
                    "std": deviation,
                    "million_per_second": rate,
                    "table_seconds": round(built, 3),
                }
            )
    total = np.zeros(count)
    random = np.random.default_rng(0)
    for name, action in {
        "central Gaussian on a lattice": lambda: add_central_gaussian(total, 1.0, 1.0, bits),
        "numpy normal (not secure, not exact)": lambda: random.normal(size=count),
        "numpy Poisson − Poisson (not secure)": lambda: (
            random.poisson(6400.0, count) - random.poisson(6400.0, count)
        ),
    }.items():
        rate = round(count / best(action, repeats) / 1e6)
        figures.append({"sampler": name, "million_per_second": rate})
    return figures


def bookkeeping() -> list[dict[str, object]]:
    """Time a cohort draw at rising populations, and a debit."""
    figures: list[dict[str, object]] = []
    for population in (10**6, 10**8, 10**10):
        rule = CohortRule("rotation", population, 5000, 100)
        seconds = best(partial(cohort, rule, 0, 7), 5)
        figures.append({"step": f"rotation cohort of 5,000 in {population:,}", "seconds": seconds})
        rule = CohortRule("poisson", population, 5000 / population)
        seconds = best(partial(cohort, rule, 0, 7), 5)
        figures.append({"step": f"Poisson cohort of 5,000 in {population:,}", "seconds": seconds})
    with tempfile.TemporaryDirectory() as folder:
        genesis = {"run": "benchmark", "policy_digest": "none"}
        with Ledger.create(Path(folder) / "ledger.jsonl", genesis) as ledger:
            start = time.perf_counter()
            for round in range(200):
                ledger.record_round(round, {"noise_multiplier": 1.0})
            seconds = (time.perf_counter() - start) / 200
    figures.append({"step": "one debit, on the disk (wall clock)", "seconds": seconds})
    return figures


def main() -> None:
    """Measure, print one JSON object a line, and the ratios that matter."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--devices", type=int, default=1000)
    parser.add_argument("--dim", type=int, default=1_000_000)
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    protected = protecting(arguments.devices, arguments.dim, arguments.repeats)
    for figure in [*protected, *sampling(arguments.repeats), *bookkeeping()]:
        print(json.dumps(figure, ensure_ascii=False))
    for figure in protected:
        if "share_of_limit" in figure:
            print(f"{figure['step']}: {figure['share_of_limit']:.0%} of copy and keystream's rate")


if __name__ == "__main__":
    main()
