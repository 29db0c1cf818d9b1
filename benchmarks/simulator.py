"""Ours against apple/pfl-research on the fixed workloads, in one run, as ratios.

    python -m benchmarks.simulator --work W1 W2 W3
    python -m benchmarks.simulator --processor cuda --cohort 2000

Each contender runs whole rounds, from the devices' windows to the server's step, in two processes
of one thread; contenders take turns, so that whatever else the machine does falls on all of them
alike. The figure that survives a busy machine is CPU seconds per device; seconds on the wall are
printed beside it. Before anything is timed, our dense update is compared with a plain torch
loop's. Below each of our lines stands the count of its products by shape and the rate that
libraries reach there (``benchmarks/products.py``). With ``--processor cuda`` a graphics card is
timed beside one thread, and beside pfl-research on the same card where ``--pfl-python`` is a Python
that has it and a build of torch for the card.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import multiprocessing
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from multiprocessing.queues import Queue
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import NamedTuple

# Before numpy and torch are imported: the parent and every worker compute with one thread.
os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np
import torch

from benchmarks import products, torch_models
from benchmarks.workloads import (
    BATCH,
    CLIP,
    LENGTH,
    NOISE,
    RATE,
    VOCABULARY,
    open_work,
)
from pfl_lm import native
from pfl_lm.devices import training as hot
from pfl_lm.devices.processor import CPU, Processor, open_processor
from pfl_lm.devices.task import Task
from pfl_lm.models import models
from pfl_lm.models.models import LoraSpec, ModelSpec
from pfl_lm.native import tuning as machine
from pfl_lm.payload.choice import choose
from pfl_lm.payload.layout import gather
from pfl_lm.payload.plan import PayloadPlan
from pfl_lm.streams import stream

HERE = Path(__file__).resolve().parent
FOLDER = HERE.parent / "data" / "benchmarks"
BARS = {  # ratio to pfl-research that is asked for
    "W1": {"dense": 1.5, "bf16": 2.5, "method": 4.0, "method bf16": 6.0},
    "W2": {"dense": 2.5, "bf16": 6.0, "method": 15.0, "method bf16": 22.5},
    "W3": {"dense": 3.0, "bf16": 5.0, "method": 30.0, "method bf16": 45.0},
}
CARD_BARS = {"dense": 10, "bf16": 10, "method": 50, "method bf16": 50}  # asked of W2 and W3


class Setting:
    """A workload as we run it.

    ``dense``: everything travels, exact softmax; ``method``: 2,000 rows, LoRA of rank 8, sampled
    softmax over 512 candidates; ``bf16`` and ``method bf16``: the same with bfloat16 products.
    """

    def __init__(self, work: str, kind: str, processor: Processor = CPU) -> None:
        method = kind.startswith("method")
        held, self.processor = open_work(work, FOLDER), processor
        self.tokens = held.pop("tokens").astype(np.int64)
        self.spec = _spec(work, LoraSpec(8) if method else None)
        fresh = models.initialise(self.spec, seed=0)
        self.parameters = {
            name: torch.from_numpy(held[name]) if name in held else fresh[name]
            for name in models.roles(self.spec)
        }
        there = {name: value.to(processor.device) for name, value in self.parameters.items()}
        mass = 1 / (np.arange(VOCABULARY[work]) + 2.7)
        self.unigram = mass / mass.sum()
        plan = PayloadPlan(rows=2000, draw="unigram", dense="lora")
        self.payload = choose(
            plan if method else PayloadPlan(),
            models.roles(self.spec),
            self.unigram,
            range(4),
            seed=0,
            round=0,
        )
        self.values = gather(self.parameters, self.payload)
        self.local = hot.LocalTraining(
            RATE,
            BATCH,
            window=LENGTH,
            loss="sampled" if method else "softmax",
            negatives=512,
            precision="bfloat16" if kind.endswith("bf16") else "float32",
        )
        self.task = Task(
            self.spec, there, self.payload, self.values, self.local, self.unigram, 0, 0
        )
        self.at_once = hot.devices_at_once(self.spec, self.payload, self.local, processor)

    def sum_of_clipped(self, users: list[int]) -> torch.Tensor:
        """Train the users' devices, clip each update, and return their sum, float32[d]."""
        total = torch.zeros(len(self.values), device=self.processor.device)
        for start in range(0, len(users), self.at_once):
            group = users[start : start + self.at_once]
            texts = [self.tokens[user % len(self.tokens)] for user in group]
            updates, traces = hot.train_tensors(self.task, texts, group)
            for update, trace in zip(updates, traces, strict=True):
                total.add_(update, alpha=min(1.0, CLIP / max(trace.update_norm, 1e-12)))
        return total.cpu()


def _spec(work: str, lora: LoraSpec | None) -> ModelSpec:
    if work == "W3":
        return ModelSpec(
            "transformer",
            VOCABULARY[work],
            embedding_dim=128,
            layers=4,
            heads=4,
            feedforward_dim=512,
            activation="relu",
            context=LENGTH,
            output_bias=False,
            lora=lora,
        )
    return ModelSpec(
        "lstm", VOCABULARY[work], embedding_dim=96, hidden_dim=670, tied=False, lora=lora
    )


def difference_to_plain_torch(work: str) -> float:
    """Largest difference between our dense update and a plain torch loop's, for one device."""
    setting = Setting(work, "dense")
    own = setting.tokens[0]
    updates, _ = hot.train(setting.task, [own], [0])
    model = torch_models.build({n: p.numpy() for n, p in setting.parameters.items()})
    sgd = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], RATE)
    order = stream(0, "examples", 0, 0).permutation(len(own))
    for start in range(0, len(own), BATCH):
        batch = torch.from_numpy(own[order[start : start + BATCH]])
        sgd.zero_grad()
        torch_models.loss_of(model, batch[:, :-1], batch[:, 1:]).backward()
        sgd.step()
    trained = {name: parameter.detach().numpy() for name, parameter in model.by_name.items()}
    theirs = gather(trained, setting.payload) - setting.values
    return float(np.abs(updates[0] - theirs).max())


class Lap(NamedTuple):
    """Of one contender in one round."""

    cpu: float  # seconds per device
    wall: float
    limit: float = float("nan")  # GFLOP a CPU second of a large product, while both cores work
    rates: tuple[float, ...] = ()  # of the contender's own products


class Meeting(NamedTuple):
    """Where the two workers of a round meet."""

    together: Barrier
    sums: ctypes.Array[ctypes.c_float]  # (d,): what the second worker's devices add up to
    laps: Queue


def _worker(work: str, kind: str, users: list[list[int]], rank: int, meeting: Meeting) -> None:
    """Train a half of the cohort; the first worker then ends the round."""
    machine.tune(threads=1)
    setting = Setting(work, kind)
    own, cohort = users[rank], sum(map(len, users))
    setting.sum_of_clipped(own[: setting.at_once])  # warm
    meeting.together.wait()
    low = kind.endswith("bf16")
    limits = [products.limit(low)]
    wall, cpu = time.perf_counter(), time.process_time()
    total = setting.sum_of_clipped(own)
    theirs = torch.frombuffer(meeting.sums, dtype=torch.float32)
    if rank > 0:
        theirs.copy_(total)
    meeting.together.wait()
    if rank == 0:  # the sum of both, central noise, a step of the server
        total.add_(theirs).add_(torch.randn(len(total)), alpha=NOISE * CLIP)
        torch.from_numpy(setting.values).add_(total, alpha=1 / cohort)
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    limits.append(products.limit(low))
    reached = products.rates(products.of_work(work, kind, setting.at_once))
    meeting.laps.put(Lap(cpu, wall, statistics.mean(limits), tuple(reached)))


def ours(work: str, kind: str, cohort: int) -> Lap:
    """One round in two processes; what the cores can do is measured while both are at work."""
    context = multiprocessing.get_context("spawn")
    sums = context.RawArray("f", Setting(work, kind).payload.dim)
    meeting = Meeting(context.Barrier(2), sums, context.Queue())
    users = [list(range(start, cohort, 2)) for start in range(2)]
    workers = [
        context.Process(target=_worker, args=(work, kind, users, rank, meeting))
        for rank in range(2)
    ]
    for each in workers:
        each.start()
    done = [meeting.laps.get() for _ in workers]
    for each in workers:
        each.join()
    return Lap(
        sum(lap.cpu for lap in done) / cohort,
        max(lap.wall for lap in done) / cohort,
        statistics.mean(lap.limit for lap in done),
        tuple(np.mean([lap.rates for lap in done], 0).tolist()),
    )


def theirs(work: str, cohort: int, python: Path, processes: int = 2) -> Lap:
    """The same of pfl-research, started by its recommended launcher; on a card if it finds one."""
    command = [python, "-m", "torch.distributed.run", "--standalone"]
    command += [
        f"--nproc_per_node={processes}",
        HERE / "peer_pfl.py",
        "--work",
        work,
        "--folder",
        FOLDER,
    ]
    command += ["--cohort", str(cohort), "--rounds", "1"]
    done = subprocess.run(
        [str(word) for word in command], capture_output=True, text=True, check=False
    )
    line = next((x for x in done.stdout.splitlines() if x.startswith("RESULT ")), None)
    if line is None:
        raise RuntimeError(f"pfl-research gave no result:\n{done.stderr[-2000:]}")
    figures = json.loads(line.removeprefix("RESULT "))
    return Lap(figures["cpu"][0] / cohort, figures["wall"][0] / cohort)


def compare(work: str, cohort: int, repeats: int, python: Path) -> None:
    """Take turns and print medians and ratios."""
    difference = difference_to_plain_torch(work)
    print(f"{work}: dense update against a plain torch loop: largest difference {difference:.1e}")
    if difference > 1e-4:
        raise RuntimeError(f"{work}: our update differs from plain torch's by {difference:.1e}")
    contenders: dict[str, Callable[[], Lap]] = {
        "pfl-research": lambda: theirs(work, cohort, python),
        "dense": lambda: ours(work, "dense", cohort),
        "method": lambda: ours(work, "method", 4 * cohort),
    }
    if {"avx512_bf16", "amx_bf16"} & machine.cpu_flags():
        contenders["bf16"] = lambda: ours(work, "bf16", cohort)
        contenders["method bf16"] = lambda: ours(work, "method bf16", 4 * cohort)
    laps: dict[str, list[Lap]] = {name: [] for name in contenders}
    for _ in range(repeats):
        for name, run in contenders.items():
            laps[name].append(run())
    for name, found in laps.items():
        _print(work, name, found, laps["pfl-research"])


def _print(work: str, name: str, laps: list[Lap], peer: list[Lap]) -> None:
    """One contender's medians, its ratios to the peer, and where its arithmetic stands."""
    cpu = statistics.median(lap.cpu for lap in laps)
    wall = statistics.median(lap.wall for lap in laps)
    line = f"{work} {name:13s} {cpu:.3f} CPU s/device  {1 / wall:6.2f} devices/s"
    if laps is peer:
        print(line, flush=True)
        return
    line += f"  ratio {statistics.median(lap.cpu for lap in peer) / cpu:5.2f} CPU"
    line += f" {statistics.median(lap.wall for lap in peer) / wall:5.2f} wall"
    print(f"{line}  (bar {BARS[work][name]:g})", flush=True)
    parts = products.of_work(work, name, Setting(work, name).at_once)
    limit = statistics.median(lap.limit for lap in laps)
    reached = [statistics.median(rates) for rates in zip(*(lap.rates for lap in laps), strict=True)]
    gflop = sum(part.gflop for part in parts)
    seconds = sum(part.gflop / rate for part, rate in zip(parts, reached, strict=True))
    print(
        f"   {gflop:.1f} GFLOP at {gflop / cpu:.0f} GFLOP/s: {gflop / cpu / limit:.0%} of a large"
        f" product's {limit:.0f}; libraries take {seconds:.3f} s for its products:"
    )
    for row in products.table(parts, reached):
        print(f"   {row}", flush=True)


def on_a_card(work: str, cohort: int, repeats: int, python: Path) -> None:
    """Print what a card does of a workload beside pfl-research there and one thread here."""
    card = open_processor("cuda")
    peer, limit = float("nan"), _large_product_on(card)
    print(f"{work}: {card.name}; a large bfloat16 product reaches {limit:.0f} TFLOP/s there")
    if python.exists():
        laps = [theirs(work, max(8, cohort // 50), python, processes=1) for _ in range(repeats)]
        peer = 1 / statistics.median(lap.wall for lap in laps)
        print(f"{work} pfl-research {peer:8.1f} devices/s there, one process", flush=True)
    for kind, bar in CARD_BARS.items():
        setting = Setting(work, kind, card)
        here, there = _rate(Setting(work, kind), 4, repeats), _rate(setting, cohort, repeats)
        reached = there * sum(p.gflop for p in products.of_work(work, kind, setting.at_once)) / 1e3
        print(
            f"{work} {kind:11s} {there:8.1f} devices/s, {setting.at_once} at once: "
            f"{there / peer:6.1f} x pfl-research (bar {bar}), {there / here:6.1f} x one thread "
            f"here; {reached:.1f} TFLOP/s, {reached / limit:.0%} of the large product's; "
            f"{torch.cuda.max_memory_allocated() / 1e9:.1f} GB",
            flush=True,
        )
        torch.cuda.reset_peak_memory_stats()


def _rate(setting: Setting, users: int, repeats: int) -> float:
    """Devices a second, the median of several cohorts."""
    setting.sum_of_clipped(list(range(min(users, setting.at_once))))  # warm
    walls = []
    for _ in range(repeats):
        began = time.perf_counter()
        setting.sum_of_clipped(list(range(users)))
        walls.append((time.perf_counter() - began) / users)
    return 1 / statistics.median(walls)


def _large_product_on(card: Processor, size: int = 8192, times: int = 20) -> float:
    """TFLOP a second of a square bfloat16 product on the card."""
    left, right = torch.randn(2, size, size, device=card.device, dtype=torch.bfloat16)
    torch.mm(left, right)  # warm
    torch.cuda.synchronize()
    began = time.perf_counter()
    for _ in range(times):
        torch.mm(left, right)
    torch.cuda.synchronize()
    return times * 2 * size**3 / (time.perf_counter() - began) / 1e12


def build_environment(python: Path) -> None:
    """Make pfl-research's own environment, torch first so that it stays the same release."""
    folder = python.parents[1]
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    for package in (f"torch=={torch.__version__.split('+')[0]}", "pfl[pytorch]"):
        subprocess.run([str(python), "-m", "pip", "install", "-q", package], check=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", nargs="+", choices=tuple(BARS), default=list(BARS))
    parser.add_argument("--cohort", type=int, default=50)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--processor", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--pfl-python", type=Path, default=HERE.parent / ".env-pfl/bin/python")
    arguments = parser.parse_args()
    if arguments.processor == "cuda":
        machine.tune(threads=1)
        for work in arguments.work:
            on_a_card(work, arguments.cohort, arguments.repeats, arguments.pfl_python)
        return
    if not arguments.pfl_python.exists():
        build_environment(arguments.pfl_python)
    print(f"machine: {machine.tune(threads=1)}; kernels: {native.backend()}")
    for work in arguments.work:
        compare(work, arguments.cohort, arguments.repeats, arguments.pfl_python)


if __name__ == "__main__":
    main()
