"""What more processes bring, and what they say to each other: `python -m benchmarks.ranks`.

    python -m benchmarks.ranks                     strong and weak scaling on this machine
    python -m benchmarks.ranks --namespaces        two network namespaces (root): bytes on the wire

Every run is the demonstration's round on invented users, from random weights. Runs of the same
cohort must come out the same to the byte; the benchmark stops where they do not.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pfl_lm.demo import RECIPE
from pfl_lm.run.folder import RunFolder

SCENARIO = """
policy = "{policy}"
rounds = {rounds}
cohort = {cohort}
clip_norm = 0.5
seed = 1
reproducible = true
checkpoint_every = 100
population = {{ kind = "synthetic", users = 100_000 }}
payload = {{ rows = 2_000, draw = "unigram", dense = "lora" }}
evaluation = {{ every = 0, users = 2, final_users = 2 }}
[model]
kind = "cifg_lstm"
vocabulary_size = 30_000
embedding_dim = 64
hidden_dim = 128
lora = {{ rank = 8 }}
[training]
epochs = 1
batch_size = 4
learning_rate = 1.0
gradient_clip = 1.0
loss = "sampled"
"""
NAMESPACES, LINK, PORT = ("pfl-first", "pfl-second"), "10.77.0", 29477


def main() -> None:
    """Run the chosen part and print its table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--cohort", type=int, default=96, help="of strong scaling")
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--namespaces", action="store_true")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if arguments.namespaces:
            over_namespaces(Path(folder), arguments.cohort, arguments.rounds)
        else:
            scaling(Path(folder), arguments.processes, arguments.cohort, arguments.rounds)


def scaling(folder: Path, processes: list[int], cohort: int, rounds: int) -> None:
    """Print seconds per round by processes: the same cohort, and a cohort that grows with them."""
    for title, cohorts in {
        "strong": [cohort for _ in processes],
        "weak": [cohort // 2 * count for count in processes],
    }.items():
        print(f"\n| {title}: processes | cohort | s per round | speed-up | model |")
        print("|---|---|---|---|---|", flush=True)
        first: tuple[float, int] | None = None
        digests = set()
        for count, size in zip(processes, cohorts, strict=True):
            run = folder / title / str(count) / "run"
            subprocess.run([*verb(folder, run, size, rounds), "--workers", str(count)],
                           check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                           env=environment())  # fmt: skip
            seconds, digest = seconds_per_round(run), digest_of(run)
            first = first or (seconds, size)
            speed = first[0] / seconds * size / first[1]
            print(f"| {count} | {size} | {seconds:.2f} | {speed:.2f} | {digest} |", flush=True)
            digests.add(digest)
        if title == "strong" and len(digests) > 1:
            raise SystemExit("the number of processes changed the model")


def over_namespaces(folder: Path, cohort: int, rounds: int) -> None:
    """Run two ranks in two network namespaces; compare with one process, count the bytes."""
    alone, apart = folder / "alone" / "run", folder / "apart" / "run"
    subprocess.run([*verb(folder, alone, cohort, rounds), "--workers", "1"], check=True,
                   stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                   env=environment())  # fmt: skip
    with namespaces():
        ranks = [started(place, verb(folder, apart, cohort, rounds)[1:]) for place in (1, 2)]
        begun, ended = wait_for(apart, 2, ranks), wait_for(apart, 1 + rounds, ranks)
        if any(rank.wait(timeout=300) for rank in ranks):
            raise SystemExit("a rank failed")
    if digest_of(alone) != digest_of(apart):
        raise SystemExit("two namespaces made another model than one process")
    per_round = (ended - begun) / (rounds - 1)
    dim = RunFolder(apart).metrics()[0]["payload_dim"]
    print(f"two namespaces: the model of one process, {digest_of(apart)}")
    print(f"{per_round / 1e6:.2f} MB a round on the wire, both ways; {per_round / dim:.1f} bytes "
          f"for each of {dim:,} coordinates")  # fmt: skip


@contextmanager
def namespaces() -> Iterator[None]:
    """Two network namespaces with a cable between them, for the length of a block."""
    here, there = NAMESPACES
    setup = [
        f"ip netns add {here}",
        f"ip netns add {there}",
        f"ip link add pfl1 netns {here} type veth peer name pfl2 netns {there}",
    ]
    for place, name in enumerate(NAMESPACES, 1):
        inside = f"ip -n {name}"
        setup += [f"{inside} addr add {LINK}.{place}/24 dev pfl{place}",
                  f"{inside} link set pfl{place} up", f"{inside} link set lo up"]  # fmt: skip
    try:
        for command in setup:
            subprocess.run(command.split(), check=True)
        yield
    finally:
        for name in NAMESPACES:
            subprocess.run(["ip", "netns", "del", name], check=False)


def started(place: int, command: list[str]) -> subprocess.Popen[bytes]:
    """Start torchrun for one rank in its namespace."""
    launcher = ["ip", "netns", "exec", NAMESPACES[place - 1], sys.executable]
    launcher += ["-m", "torch.distributed.run", "--nnodes=2", "--nproc-per-node=1"]
    launcher += ["--rdzv-backend=c10d", f"--rdzv-endpoint={LINK}.1:{PORT}", "--rdzv-id=pfl"]
    # torchrun looks for the host among the names of the machine, which both namespaces share.
    launcher += [f"--rdzv-conf=is_host={int(place == 1)}"]
    launcher += [f"--local-addr={LINK}.{place}", *command]
    return subprocess.Popen(launcher, env=environment() | {"GLOO_SOCKET_IFNAME": f"pfl{place}"})


def wait_for(run: Path, lines: int, ranks: list[subprocess.Popen[bytes]]) -> int:
    """Wait until the ledger has so many lines; return the bytes that crossed the cable by then."""
    ledger = run / "ledger.jsonl"
    while not (ledger.exists() and ledger.read_bytes().count(b"\n") >= lines):
        if any(rank.poll() for rank in ranks):
            raise SystemExit("a rank failed")
        time.sleep(0.005)
    total = 0
    for way in ("rx", "tx"):
        path = f"/sys/class/net/pfl1/statistics/{way}_bytes"
        command = ["ip", "netns", "exec", NAMESPACES[0], "cat", path]
        total += int(subprocess.run(command, capture_output=True, check=True).stdout)
    return total


def verb(folder: Path, run: Path, cohort: int, rounds: int) -> list[str]:
    """Write the scenario and return the command that runs it in one process."""
    recipe = folder / f"cohort-{cohort}.toml"
    policy = RECIPE.parent / "policy.toml"
    recipe.write_text(SCENARIO.format(policy=policy, cohort=cohort, rounds=rounds))
    return [sys.executable, "-m", "pfl_lm", "simulate", str(recipe), "-o", str(run)]


def environment() -> dict[str, str]:
    return os.environ | {"OMP_NUM_THREADS": "1"}


def seconds_per_round(run: Path) -> float:
    """Return the median over all rounds but the first, which warms up."""
    rounds = [entry for entry in RunFolder(run).metrics() if entry["kind"] == "round"]
    return statistics.median(entry["seconds"] for entry in rounds[1:])


def digest_of(run: Path) -> str:
    """Return the head of the hash of model and ledger."""
    content = (run / "model.pt").read_bytes() + (run / "ledger.jsonl").read_bytes()
    return hashlib.sha256(content).hexdigest()[:12]


if __name__ == "__main__":
    main()
