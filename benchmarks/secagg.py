"""How fast is secure aggregation, beside its floor and beside Flower's SecAgg+ client.

    python -m benchmarks.secagg client                     n = 1000, k = 74, d = 1,000,000
    python -m benchmarks.secagg round --dim 100000         1000 devices and a server, one process
    python -m benchmarks.secagg paper                      100,000 devices, from measured parts

Each in a ring of 32 bits, as wide as Flower's, and of 24, as wide as a thousand reports need here.

Seconds are CPU seconds of one thread (they survive a busy machine; the cache does not), the best
of some repetitions for the client. For Flower's side make an environment of its own first:

    python3.11 -m venv .env-flower && .env-flower/bin/pip install flwr==1.41.0
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.peer_flower import (
    COHORT,
    FLOWER_BITS,
    NEIGHBOURS,
    THRESHOLD,
    Stopwatch,
    clock,
)

ROOT = Path(__file__).resolve().parents[1]
FLOWER = ROOT / ".env-flower" / "bin" / "python"


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


def our_client(dim: int, bits: int) -> dict[str, float]:
    """One device among 75 that are all neighbours: the work of k = 74 in any cohort."""
    import numpy as np

    from pfl_lm.secagg.config import DevicePolicy
    from pfl_lm.secagg.device import KeysAdvertised
    from pfl_lm.secagg.server import CollectingKeys

    config, watch = config_of(NEIGHBOURS + 1, dim, bits), Stopwatch()
    policy = DevicePolicy(2, 3, 2)
    vector = np.random.default_rng(0).integers(-99, 99, dim)
    devices: dict[int, Any] = {i: KeysAdvertised.join(config, i, policy) for i in range(1, 75)}
    devices[0] = watch.run("advertise keys", KeysAdvertised.join, config, 0, policy)
    server: Any = CollectingKeys(config)

    def deliver() -> dict[int, bytes]:
        nonlocal server
        for index, state in devices.items():
            server.receive(index, state.message)
        server, messages = server.close()
        return messages

    for index, roster in deliver().items():
        work = devices[index].share_keys
        devices[index] = watch.run("share keys", work, roster) if index == 0 else work(roster)
    inbox = deliver()[0]
    watch.run("masked input", devices[0].mask_input, inbox, vector)
    return watch.seconds


def client(dim: int, widths: list[int]) -> None:
    """Print the client's parts and the floor, for rings of these bits, and Flower's client."""
    print(f"client, n = {COHORT}, k = {NEIGHBOURS}, t = {THRESHOLD}, d = {dim:,}")
    theirs = flower_beside(dim)
    for name, seconds in theirs.items():
        print(f"  Flower {name:15} {1e3 * seconds:8.1f} ms")
    for bits in widths:
        total = client_at(dim, bits)
        if theirs:
            whole = sum(theirs.values())
            print(f"  Flower total {1e3 * whole:.0f} ms = {whole / total:.1f} x ours at b = {bits}")


def client_at(dim: int, bits: int) -> float:
    """Print the client's parts beside the floor of the same run; return its seconds."""
    rate, agreements = machine_rates()
    runs = [our_client(dim, bits) for _ in range(9)]
    ours = min(runs, key=lambda run: sum(run.values()))
    rates = machine_rates()
    rate, agreements = max(rate, rates[0]), max(agreements, rates[1])
    streams = (NEIGHBOURS + 1) * dim * bits / 8 / rate
    floor = streams + 2 * NEIGHBOURS / agreements
    print(f"b = {bits}: AES-128-CTR {rate / 1e9:.1f} GB/s, X25519 {agreements:,.0f}/s")
    print(f"  floor (75 key streams, 148 agreements) {1e3 * floor:.1f} ms")
    for name, seconds in ours.items():
        print(f"  {name:15} {1e3 * seconds:8.2f} ms")
    total = sum(ours.values())
    print(f"  total           {1e3 * total:8.2f} ms = {total / floor:.2f} x floor")
    share = streams / mask_seconds(dim, bits)
    print(f"  masks are added at {share:.0%} of the key stream's rate", flush=True)
    return total


def flower_beside(dim: int) -> dict[str, float]:
    """The seconds of Flower's client, in its own environment; the best of three."""
    if not FLOWER.exists():
        print("  Flower: no environment .env-flower (see the first lines of this file)")
        return {}
    command = [str(FLOWER), "-m", "benchmarks.peer_flower", str(dim)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    runs = []
    for _ in range(3):
        done = subprocess.run(
            command, cwd=ROOT, capture_output=True, text=True, check=True, env=environment
        )
        runs.append(json.loads(done.stdout.splitlines()[-1]))
    return min(runs, key=lambda run: sum(run.values()))


def mask_seconds(dim: int, bits: int) -> float:
    """Adding 75 masks to a vector."""

    from pfl_lm.secagg.masks import add_masks
    from pfl_lm.secagg.ring import Ring

    ring = Ring(bits)
    total = ring.zeros(dim)
    seeds = [os.urandom(32) for _ in range(NEIGHBOURS + 1)]
    return best_of(7, lambda: add_masks(ring, total, seeds[::2], seeds[1::2]))


def whole_round(dim: int, bits: int, cohort: int, dropout: float) -> None:
    """Every message of every device, in one process; devices drop out before they report."""
    import numpy as np

    from pfl_lm.secagg.config import DevicePolicy
    from pfl_lm.secagg.device import KeysAdvertised
    from pfl_lm.secagg.server import CollectingKeys

    config, devices_watch, server_watch = config_of(cohort, dim, bits), Stopwatch(), Stopwatch()
    policy, started = DevicePolicy(2, 3, 2), time.perf_counter()
    silent = set(range(int(cohort * dropout)))
    vector = np.random.default_rng(0).integers(-99, 99, dim)
    server: Any = CollectingKeys(config)
    states: dict[int, Any] = {}
    print(f"round, n = {cohort}, k = {NEIGHBOURS}, d = {dim:,}, b = {bits}, {dropout:.0%} dropout")

    def phase(name: str, act: Callable[[int], Any], indices: Any) -> dict[int, bytes]:
        nonlocal server
        for index in indices:
            states[index] = devices_watch.run(name, act, index)
            server_watch.run(name, server.receive, index, states[index].message)
            states[index].message = b""  # a real device keeps its own; a thousand are too many
        if name == "unmask":
            return {}
        server, messages = server_watch.run(name, server.close)
        return messages

    before, _ = machine_rates()
    everybody, alive = range(cohort), [i for i in range(cohort) if i not in silent]
    rosters = phase("advertise keys", lambda i: KeysAdvertised.join(config, i, policy), everybody)
    inboxes = phase("share keys", lambda i: states[i].share_keys(rosters[i]), everybody)
    graph = server._registry.graph
    requests = phase("masked input", lambda i: states[i].mask_input(inboxes[i], vector), alive)
    phase("unmask", lambda i: states[i].unmask(requests[i]), alive)
    opened = server_watch.run("unmask", server.close)
    assert np.array_equal(opened.vector, vector * len(alive))
    orphans = sum(len(set(graph.neighbours(i)) - silent) for i in silent)
    streams = len(alive) + orphans
    rate = max(before, machine_rates()[0])
    _report_round(config, devices_watch, server_watch, streams, rate)
    print(f"  wall {time.perf_counter() - started:.1f} s, {peak_megabytes():.0f} MB at the peak")


def _report_round(
    config: Any, devices: Stopwatch, server: Stopwatch, streams: int, rate: float
) -> None:
    from pfl_lm.secagg.traffic import device_traffic

    floor = streams * config.dim * config.bits / 8 / rate
    total = sum(server.seconds.values())
    for name in server.seconds:
        both = f"devices {devices.seconds[name]:8.2f} s   server {server.seconds[name]:7.2f} s"
        print(f"  {name:15} {both}")
    print(f"  server total {total:.2f} s; {streams:,} key streams alone {floor:.2f} s")
    print(f"  server = {total / floor:.2f} x its key streams at {rate / 1e9:.1f} GB/s")
    traffic = device_traffic(config)
    print(
        f"  a device sends {traffic.upload_bytes:,} B (vector {traffic.vector_bytes:,}) "
        f"and receives {traffic.download_bytes:,} B"
    )


def paper(dim: int, bits: int) -> None:
    """Extrapolate to 100,000 devices: what grows with n, k and d, at the rates measured here."""
    from pfl_lm.secagg.keys import commit
    from pfl_lm.secagg.parameters import Adversary, required
    from pfl_lm.secagg.sharing import _weights

    cohort, dropout = 100_000, 0.1
    graph = required(cohort, 0.2, dropout, Adversary.SEMI_HONEST)
    k, t = graph.neighbours, graph.threshold
    rate, agreements = machine_rates()
    streams = cohort * (1 - dropout) + cohort * dropout * k * (1 - dropout)
    weights = best_of(5, lambda: _weights.__wrapped__(tuple(range(1, t + 1))))
    commitments = best_of(5, lambda: [commit(bytes(32), b"s", 1, i, bytes(33)) for i in range(k)])
    parts = {
        "masks (half as fast as the key stream)": 2 * streams * dim * bits / 8 / rate,
        "agreements": cohort * dropout * k * (1 - dropout) / agreements,
        "recovered secrets": cohort * weights,
        "shares read and checked (3 hashes long)": 3 * cohort * (1 - dropout) ** 2 * commitments,
        "vectors read and added at 2 GB/s": cohort * (1 - dropout) * dim * bits / 8 / 2e9,
    }
    print(f"on paper, n = {cohort:,}, {graph}, d = {dim:,}, b = {bits}, {dropout:.0%} dropout")
    for name, seconds in parts.items():
        print(f"  {name:40} {seconds:10.0f} core-seconds")
    client_seconds = 2 * (k + 1) * dim * bits / 8 / rate + 2 * k / agreements
    print(f"  server {sum(parts.values()) / 3600:.2f} core-hours; a device {client_seconds:.3f} s")


def peak_megabytes() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("what", choices=["client", "round", "paper"])
    parser.add_argument("--dim", type=int)
    parser.add_argument("--bits", type=int, nargs="+", default=[FLOWER_BITS, 24])
    parser.add_argument("--cohort", type=int, default=COHORT)
    parser.add_argument("--dropout", type=float, default=0.1)
    options = parser.parse_args()
    if options.what == "client":
        client(options.dim or 1_000_000, options.bits)
    elif options.what == "round":
        for bits in options.bits:
            whole_round(options.dim or 100_000, bits, options.cohort, options.dropout)
    else:
        for bits in options.bits:
            paper(options.dim or 100_000, bits)


if __name__ == "__main__":
    main()
