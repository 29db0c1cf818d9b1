"""How fast updates are protected, against copying the same bytes: `python -m benchmarks.noise`.

Every figure is CPU seconds of one core, the best of several runs. A coordinate counts 8 bytes:
4 read as float32, 4 written as int32; in a ring above 31 bits, which is timed beside it, 8 are
written as int64. The limit of a step is the copy of as many bytes and the keystream of the random
bytes that a coordinate takes, each at its rate in the same run: 2 for rounding, 4 for rounding and
a noise share. Whole rounds of the demonstration, with all rows and every device's own noise, are
timed in both rings.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np

from benchmarks import scale
from pfl_lm.dp.cohort import CohortRule, cohort
from pfl_lm.dp.encoding import norms, protect
from pfl_lm.dp.grid import Grid
from pfl_lm.dp.ledger import Ledger
from pfl_lm.dp.noise import NoiseShare, add_central_gaussian
from pfl_lm.dp.sampler.discrete_noise import add_noise, table
from pfl_lm.dp.sampler.pmf import Kind
from pfl_lm.dp.sampler.random_bits import RandomBits, secure_bits
from pfl_lm.run.context import RunContext
from pfl_lm.run.recorder import RoundRecorder
from pfl_lm.run.setup import open_run
from pfl_lm.run.simulate import choose_payload, run_round
from pfl_lm.secagg.ideal import IdealAggregator
from pfl_lm.server.state import ServerState

RINGS = (31, 32)  # the widest whose vectors have 32 bits, and the narrowest with 64
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


Step = tuple[str, Callable[[], object], int, int]  # name, action, bytes moved, random bytes


def steps_of(bits: int, updates: np.ndarray, devices: int, source: RandomBits) -> list[Step]:
    """Return what is timed in one ring; a step moves bytes and takes random bytes a coordinate."""
    rows, dim = updates.shape
    grid = Grid.choose(dim, 1.0, reports_max=devices, noise_multiplier=1.0, modulus_bits=bits)
    share = NoiseShare("skellam", grid.noise_variance(1.0) / devices)
    gauss = NoiseShare("discrete_gaussian", share.variance)
    vectors = np.zeros((rows, dim), dtype=grid.integer)
    moved = 4 + grid.integer.itemsize
    original, copied = (np.ones(rows * dim * moved // 16) for _ in range(2))
    total = IdealAggregator(dim, bits, threshold=2)

    def encode(noise: NoiseShare | None) -> Callable[[], object]:
        return lambda: protect(updates, grid, noise, source, vectors)

    return [
        ("copy of as many bytes", lambda: np.copyto(copied, original), moved, 0),
        ("clip + encode", encode(None), moved, ROUNDING),
        ("clip + encode + Skellam share", encode(share), moved, WITH_SHARE),
        ("clip + encode + Gaussian share", encode(gauss), moved, WITH_SHARE),
        ("sum of reports", lambda: total.submit(vectors), grid.integer.itemsize, 0),
    ]


def protecting(devices: int, dim: int, repeats: int) -> list[dict[str, object]]:
    """Time clip + encode + noise of ``devices`` updates, eight at a time, in both rings."""
    rows = 8
    updates = np.random.default_rng(0).normal(size=(rows, dim)).astype(np.float32)
    bits, stretch = secure_bits(), np.empty(1 << 18, np.uint8)
    steps = [(ring, step) for ring in RINGS for step in steps_of(ring, updates, devices, bits)]

    def read() -> None:
        for _ in range(32):  # what was in the cache before does not count
            bits.fill(stretch)

    actions = [read, lambda: norms(updates), *(action for _, (_, action, _, _) in steps)]
    first, read_only, *least = interleaved(actions, repeats)
    keystream = first / 32 / len(stretch)
    figures: list[dict[str, object]] = [
        {"step": "keystream", "gigabytes_per_second": round(1e-9 / keystream, 2)},
        {"step": "norms (read only)", "ns_per_coordinate": round(read_only / rows / dim * 1e9, 2)},
    ]
    copy = 0.0
    for (ring, (name, _, moved, random)), seconds in zip(steps, least, strict=True):
        coordinate = seconds / rows / dim
        figure: dict[str, object] = {
            "step": name,
            "ring_bits": ring,
            "seconds": round(coordinate * dim * devices, 3),
            "ns_per_coordinate": round(coordinate * 1e9, 2),
            "gigabytes_per_second": round(moved / coordinate / 1e9, 2),
        }
        if name.startswith("copy"):
            copy = coordinate
        if random:
            limit = copy + random * keystream
            figure |= {"share_of_limit": round(limit / coordinate, 2), "random_bytes": random}
        figures.append(figure)
    return figures


def whole_rounds(repeats: int) -> list[dict[str, object]]:
    """Time rounds of the demonstration in both rings, in turns; each device adds its own noise."""
    point = scale.MIDDLE | {"rows": scale.MIDDLE["vocabulary"], "cohort": 20}
    with tempfile.TemporaryDirectory() as folder:
        scenario = scale.demonstration(point, Path(folder))
        chosen = [replace(scenario, separate_noise=True, modulus_bits=bits) for bits in RINGS]
        contexts = [open_run(each) for each in chosen]
        dim = choose_payload(contexts[0], 0).dim
        least = interleaved([partial(one_round, context) for context in contexts], repeats)
    step = f"round of {point['cohort']} devices, {dim:,} coordinates"
    return [
        {"step": step, "ring_bits": bits, "seconds": round(seconds, 3)}
        for bits, seconds in zip(RINGS, least, strict=True)
    ]


def one_round(context: RunContext) -> None:
    """Run round 0 with a ledger of its own."""
    with tempfile.TemporaryDirectory() as folder:
        genesis = {"run": "benchmark", "policy_digest": "none"}
        with Ledger.create(Path(folder) / "ledger.jsonl", genesis) as ledger:
            run_round(context, ServerState(0, context.start.parameters), RoundRecorder(ledger))


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
    rounds = whole_rounds(arguments.repeats)
    for figure in [*protected, *rounds, *sampling(arguments.repeats), *bookkeeping()]:
        print(json.dumps(figure, ensure_ascii=False))
    print_ratios([*protected, *rounds])


def print_ratios(figures: list[dict[str, object]]) -> None:
    """Print what each step reaches of its limit, and what 64 bits cost beside 32."""
    narrow, wide = RINGS
    seconds = {(each["step"], each.get("ring_bits")): each.get("seconds") for each in figures}
    for figure in figures:
        step = figure["step"]
        if "share_of_limit" in figure:
            share = f"{figure['share_of_limit']:.0%} of copy and keystream's rate"
            print(f"{step}, ring of {figure['ring_bits']} bits: {share}")
        if figure.get("ring_bits") == wide:
            ratio = float(str(figure["seconds"])) / float(str(seconds[step, narrow]))
            print(f"{step}: int64 takes {ratio:.2f} times as long as int32")


if __name__ == "__main__":
    main()
