"""How fast is secure aggregation, beside its floor and beside Flower's SecAgg+ client.

    python -m benchmarks.secagg client                     n = 1000, k = 74, d = 1,000,000
    python -m benchmarks.secagg round --dim 100000         1000 devices and a server, one process
    python -m benchmarks.secagg paper                      100,000 devices, from measured parts

The client in the rings of ``benchmarks.secagg_bits``, which says what each is for, the others in 32
bits, as wide as Flower's, and in the 24 that a thousand reports need here.

Seconds are CPU seconds of one thread (they survive a busy machine; the cache does not), the best
of some repetitions for the client. For Flower's side make an environment of its own first:

    python3.11 -m venv .env-flower && .env-flower/bin/pip install flwr==1.41.0
"""

from __future__ import annotations

import argparse
import os
import resource
import time
from collections.abc import Callable
from copy import copy
from typing import Any

from benchmarks.peer_flower import COHORT, FLOWER_BITS, NEIGHBOURS, Stopwatch, clock
from benchmarks.secagg_parts import best_of, config_of, device_policy, machine_rates


def whole_round(dim: int, bits: int, cohort: int, dropout: float) -> None:
    """Every message of every device, in one process; devices drop out before they report."""
    import numpy as np

    from pfl_lm.secagg.device import KeysAdvertised
    from pfl_lm.secagg.server import CollectingKeys

    config, devices_watch, server_watch = config_of(cohort, dim, bits), Stopwatch(), Stopwatch()
    policy, started = device_policy(), time.perf_counter()
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

    everybody, alive = range(cohort), [i for i in range(cohort) if i not in silent]
    rosters = phase("advertise keys", lambda i: KeysAdvertised.join(config, i, policy), everybody)
    inboxes = phase("share keys", lambda i: states[i].share_keys(rosters[i]), everybody)
    graph = server._registry.graph
    requests = phase("masked input", lambda i: states[i].mask_input(inboxes[i], vector), alive)
    phase("unmask", lambda i: states[i].unmask(requests[i]), alive)
    orphans = sum(len(set(graph.neighbours(i)) - silent) for i in silent)
    streams = len(alive) + orphans
    opened, floor = best_opening(server, server_watch, streams)
    assert np.array_equal(opened.vector, vector * len(alive))
    _report_round(config, devices_watch, server_watch, streams, floor)
    print(f"  wall {time.perf_counter() - started:.1f} s, {peak_megabytes():.0f} MB at the peak")


def best_opening(server: Any, watch: Stopwatch, streams: int) -> tuple[Any, float]:
    """Open the same round three times, in turns with its key streams alone: the best of each."""
    openings, floors = [], []
    for _ in range(3):
        again, own = copy(server), Stopwatch()
        again._total = server._total.copy()
        opened = own.run("", again.close)
        openings.append(own.seconds[""])
        floors.append(key_streams(streams, server.config.ring.packed_bytes(server.config.dim)))
    watch.seconds["unmask"] += min(openings)
    return opened, min(floors)


def key_streams(streams: int, count: int) -> float:
    """Seconds of so many key streams of so many bytes, written to one place."""
    from pfl_lm.secagg.masks import _open_stream

    zeros, out = bytes(count), bytearray(count)
    start = clock()
    for _ in range(streams):
        _open_stream(os.urandom(32)).update_into(zeros, out)
    return clock() - start


def _report_round(
    config: Any, devices: Stopwatch, server: Stopwatch, streams: int, floor: float
) -> None:
    from pfl_lm.secagg.traffic import device_traffic

    rate = streams * config.ring.packed_bytes(config.dim) / floor
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
    os.environ["OMP_NUM_THREADS"] = "1"  # before numpy is imported: one thread's seconds count
    if options.what == "client":
        from benchmarks.secagg_client import client

        client(options.dim or 1_000_000)
    elif options.what == "round":
        for bits in options.bits:
            whole_round(options.dim or 100_000, bits, options.cohort, options.dropout)
    else:
        for bits in options.bits:
            paper(options.dim or 100_000, bits)


if __name__ == "__main__":
    main()
