"""One device beside its floor and beside Flower's client: ``benchmarks.secagg client``."""

from __future__ import annotations

import json
import subprocess
from copy import copy
from pathlib import Path
from typing import Any

from benchmarks.peer_flower import COHORT, NEIGHBOURS, THRESHOLD, Stopwatch
from benchmarks.secagg_bits import Job, jobs
from benchmarks.secagg_parts import config_of, device_policy, machine_rates, mask_seconds

ROOT = Path(__file__).resolve().parents[1]
FLOWER = ROOT / ".env-flower" / "bin" / "python"


Runs = list[dict[str, float]]  # seconds of a client's parts, run after run


def client(dim: int) -> None:
    """Print Flower's client, and ours in each ring with its floor.

    The best run of many in one process is compared with the best, and the first with the first: a
    phone runs the protocol once, with cold memory.
    """
    print(f"client, n = {COHORT}, k = {NEIGHBOURS}, t = {THRESHOLD}, d = {dim:,}")
    theirs = flower_beside(dim)
    for name, seconds in best(theirs).items():
        print(f"  Flower {name:15} {1e3 * seconds:8.1f} ms")
    for job in jobs(dim):
        print(f"b = {job.bits}: {job.why}", flush=True)
        ours, floor = client_in(job)
        for which, run in (("best", best), ("first", first)) if theirs else ():
            flower, own = sum(run(theirs).values()), sum(run(ours).values())
            print(f"  {which} run: Flower {1e3 * flower:.0f} ms = {flower / own:.1f} x ours")
        print(f"  the floor is {sum(best(theirs).values()) / floor:.1f} x as fast as Flower's best")


def best(runs: Runs) -> dict[str, float]:
    return min(runs, key=lambda run: sum(run.values()), default={})


def first(runs: Runs) -> dict[str, float]:
    return runs[0]


def client_in(job: Job) -> tuple[Runs, float]:
    """Print the client's parts beside the floor of the same run; return its runs and the floor."""
    dim, bits = job.grid.dim, job.bits
    rate, agreements = machine_rates()
    runs = our_client(job)
    rates = machine_rates()
    rate, agreements = max(rate, rates[0]), max(agreements, rates[1])
    streams = (NEIGHBOURS + 1) * dim * bits / 8 / rate
    floor = streams + 2 * NEIGHBOURS / agreements
    print(f"  AES-128-CTR {rate / 1e9:.1f} GB/s, X25519 {agreements:,.0f}/s")
    for name, seconds in best(runs).items():
        print(f"  {name:15} {1e3 * seconds:8.2f} ms")
    total = sum(best(runs).values())
    print(f"  total           {1e3 * total:8.2f} ms = {total / floor:.2f} x the floor", end=": ")
    print(f"75 key streams and 148 agreements, {1e3 * floor:.1f} ms")
    share = streams / mask_seconds(dim, bits)
    print(f"  masks are added at {share:.0%} of the key stream's rate")
    return runs, floor


def our_client(job: Job, times: int = 50) -> Runs:
    """One device among 75 that are all neighbours, the work of k = 74 in any cohort."""
    import numpy as np

    from pfl_lm.dp.encoding import protect
    from pfl_lm.dp.rotation import Rotation
    from pfl_lm.dp.sampler.random_bits import secure_bits
    from pfl_lm.secagg.device import KeysAdvertised

    dim = job.grid.dim
    config, policy, runs = config_of(NEIGHBOURS + 1, dim, job.bits), device_policy(), []
    update = np.random.default_rng(0).standard_normal((1, dim), dtype=np.float32)
    joined, roster, shared, inbox = neighbourhood(config)
    for _ in range(times):
        watch, own = Stopwatch(), update.copy()
        if job.rotated:
            watch.run("rotate", lambda own=own: Rotation(dim, bytes(32)).forward(own))
        encoded, _ = watch.run("clip and encode", protect, own, job.grid, None, secure_bits())
        watch.run("advertise keys", KeysAdvertised.join, config, 0, policy)
        watch.run("share keys", copy(joined).share_keys, roster)
        watch.run("masked input", copy(shared).mask_input, inbox, encoded[0])
        runs.append(watch.seconds)
    return runs


def neighbourhood(config: Any) -> tuple[Any, bytes, Any, bytes]:
    """Device 0's first two states, and what the server sends it in each."""
    from pfl_lm.secagg.device import KeysAdvertised
    from pfl_lm.secagg.server import CollectingKeys

    server: Any = CollectingKeys(config)
    joined = {i: KeysAdvertised.join(config, i, device_policy()) for i in range(config.cohort)}
    for index, state in joined.items():
        server.receive(index, state.message)
    server, rosters = server.close()
    first = copy(joined[0])
    shared = {i: joined[i].share_keys(roster) for i, roster in rosters.items()}
    for index, dealt in shared.items():
        server.receive(index, dealt.message)
    _, inboxes = server.close()
    return first, rosters[0], shared[0], inboxes[0]


def flower_beside(dim: int) -> Runs:
    """The seconds of Flower's client, in its own environment."""
    if not FLOWER.exists():
        print("  Flower: no environment .env-flower (see benchmarks/secagg.py)")
        return []
    done = subprocess.run(
        [str(FLOWER), "-m", "benchmarks.peer_flower", str(dim)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    found: Runs = json.loads(done.stdout.splitlines()[-1])
    return found
