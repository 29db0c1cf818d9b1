"""Ours against apple/pfl-research on the fixed workloads, in one run, as ratios.

    python -m benchmarks.simulator --work W1 W2 W3

Each contender runs two processes of one thread; contenders take turns, so that whatever else
the machine does falls on all of them alike. The figure that survives a busy machine is CPU
seconds per device; seconds on the wall are printed beside it. Before anything is timed, our dense
update is compared with a plain torch loop's.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

# Before numpy and torch are imported: the parent and every worker compute with one thread.
os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np
import torch

from benchmarks import torch_models
from benchmarks.workloads import (
    BATCH,
    CLIP,
    LENGTH,
    NOISE,
    RATE,
    VOCABULARY,
    WINDOWS,
    open_work,
)
from pfl_lm import machine, payload
from pfl_lm.devices import training as hot
from pfl_lm.language import models
from pfl_lm.language.models import LoraSpec, ModelSpec
from pfl_lm.streams import stream

HERE = Path(__file__).resolve().parent
FOLDER = HERE.parent / "data" / "benchmarks"
BARS = {  # ratio to pfl-research that is asked for
    "W1": {"dense": 1.5, "bf16": 2.5, "method": 4.0},
    "W2": {"dense": 2.5, "bf16": 4.0, "method": 15.0},
    "W3": {"dense": 3.0, "bf16": 4.0, "method": 30.0},
}


class Setting:
    """A workload as we run it.

    ``dense``: everything travels, exact softmax; ``bf16``: the same with bfloat16 products;
    ``method``: 2,000 rows, LoRA of rank 8, sampled softmax over 512 candidates.
    """

    def __init__(self, work: str, kind: str) -> None:
        method = kind == "method"
        held = open_work(work, FOLDER)
        self.tokens = held.pop("tokens").astype(np.int64)
        self.spec = _spec(work, LoraSpec(8) if method else None)
        fresh = models.initialise(self.spec, seed=0)
        self.parameters = {
            name: torch.from_numpy(held[name]) if name in held else fresh[name]
            for name in models.roles(self.spec)
        }
        mass = 1 / (np.arange(VOCABULARY[work]) + 2.7)
        self.unigram = mass / mass.sum()
        plan = payload.PayloadPlan(rows=2000, draw="unigram", dense="lora")
        self.payload = payload.choose(
            plan if method else payload.PayloadPlan(),
            models.roles(self.spec),
            self.unigram,
            range(4),
            seed=0,
            round=0,
        )
        self.values = payload.gather(self.parameters, self.payload)
        self.local = hot.LocalTraining(
            RATE,
            BATCH,
            window=LENGTH,
            loss="sampled" if method else "softmax",
            negatives=512,
            precision="bfloat16" if kind == "bf16" else "float32",
        )

    def sum_of_clipped(self, users: list[int]) -> np.ndarray:
        """Train the users' devices, clip each update, and return their sum, float32[d]."""
        total = np.zeros_like(self.values)
        at_once = hot.devices_at_once(self.spec, self.payload, self.local)
        for start in range(0, len(users), at_once):
            group = users[start : start + at_once]
            updates, traces = hot.train(
                self.spec,
                self.parameters,
                self.payload,
                self.values,
                [self.tokens[user % len(self.tokens)] for user in group],
                self.local,
                self.unigram,
                seed=0,
                round=0,
                users=group,
            )
            for update, trace in zip(updates, traces, strict=True):
                total += min(1.0, CLIP / max(trace.update_norm, 1e-12)) * update
        return total


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
    updates, _ = hot.train(
        setting.spec,
        setting.parameters,
        setting.payload,
        setting.values,
        [own],
        setting.local,
        setting.unigram,
        seed=0,
        round=0,
        users=[0],
    )
    model = torch_models.build({n: p.numpy() for n, p in setting.parameters.items()})
    sgd = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], RATE)
    order = stream(0, "examples", 0, 0).permutation(len(own))
    for start in range(0, len(own), BATCH):
        batch = torch.from_numpy(own[order[start : start + BATCH]])
        sgd.zero_grad()
        torch_models.loss_of(model, batch[:, :-1], batch[:, 1:]).backward()
        sgd.step()
    trained = {name: parameter.detach().numpy() for name, parameter in model.by_name.items()}
    theirs = payload.gather(trained, setting.payload) - setting.values
    return float(np.abs(updates[0] - theirs).max())


def _worker(work: str, kind: str, users: list[int], queue: multiprocessing.Queue) -> None:
    machine.tune(threads=1)
    setting = Setting(work, kind)
    setting.sum_of_clipped(users[:2])  # warm
    wall, cpu = time.perf_counter(), time.process_time()
    total = setting.sum_of_clipped(users)
    total += np.random.default_rng(0).standard_normal(len(total), np.float32) * (NOISE * CLIP)
    queue.put((time.process_time() - cpu, time.perf_counter() - wall))


def matrix_rate() -> float:
    """GFLOP a CPU second of one large float32 product: what a core can do at the moment."""
    left, right, seconds = torch.randn(1024, 1024), torch.randn(1024, 1024), []
    for _ in range(5):
        start = time.process_time()
        left @ right
        seconds.append(time.process_time() - start)
    return 2 * 1024**3 / 1e9 / min(seconds)


def products(work: str, kind: str) -> float:
    """GFLOP of a device's matrix products: three for a trained weight, two for a frozen one."""
    if work == "W3":
        trunk, width, factors = 4 * 12 * 128 * 128, 128, 4 * 8 * (4 * 128 + 2 * 128 + 2 * 640)
    else:
        trunk, width = 2680 * (96 + 670) + 670 * 96, 96
        factors = 8 * (2 * 2680 + 96 + 670 + 670 + 96)
    tokens = WINDOWS * LENGTH
    if kind == "method":
        return tokens * (4 * trunk + 6 * factors + 6 * width * 512) / 1e9
    return tokens * 6 * (trunk + width * VOCABULARY[work]) / 1e9


def ours(work: str, kind: str, cohort: int) -> tuple[float, float]:
    """CPU and wall seconds per device of one round in two processes."""
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    shares = [list(range(start, cohort, 2)) for start in range(2)]
    workers = [context.Process(target=_worker, args=(work, kind, s, queue)) for s in shares]
    for each in workers:
        each.start()
    done = [queue.get() for _ in workers]
    for each in workers:
        each.join()
    return sum(cpu for cpu, _ in done) / cohort, max(wall for _, wall in done) / cohort


def theirs(work: str, cohort: int, python: Path) -> tuple[float, float]:
    """The same of pfl-research, started by its recommended launcher."""
    command = [python, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    command += [HERE / "peer_pfl.py", "--work", work, "--folder", FOLDER]
    command += ["--cohort", str(cohort), "--rounds", "1"]
    done = subprocess.run(
        [str(word) for word in command], capture_output=True, text=True, check=False
    )
    line = next((x for x in done.stdout.splitlines() if x.startswith("RESULT ")), None)
    if line is None:
        raise RuntimeError(f"pfl-research gave no result:\n{done.stderr[-2000:]}")
    figures = json.loads(line.removeprefix("RESULT "))
    return figures["cpu"][0] / cohort, figures["wall"][0] / cohort


def compare(work: str, cohort: int, repeats: int, python: Path) -> None:
    """Take turns and print medians and ratios."""
    difference = difference_to_plain_torch(work)
    print(f"{work}: dense update against a plain torch loop: largest difference {difference:.1e}")
    if difference > 1e-4:
        raise RuntimeError(f"{work}: our update differs from plain torch's by {difference:.1e}")
    contenders: dict[str, Callable[[], tuple[float, float]]] = {
        "pfl-research": lambda: theirs(work, cohort, python),
        "dense": lambda: ours(work, "dense", cohort),
        "method": lambda: ours(work, "method", 4 * cohort),
    }
    if machine.has_bfloat16():
        contenders["bf16"] = lambda: ours(work, "bf16", cohort)
    laps: dict[str, list[tuple[float, float]]] = {name: [] for name in contenders}
    rates = []
    for _ in range(repeats):
        for name, run in contenders.items():
            laps[name].append(run())
            rates.append(matrix_rate())
    cpu = {name: statistics.median(c for c, _ in found) for name, found in laps.items()}
    wall = {name: statistics.median(w for _, w in found) for name, found in laps.items()}
    rate = statistics.median(rates)
    for name in contenders:
        _print_line(work, name, cpu, wall, rate)


def _print_line(
    work: str, name: str, cpu: dict[str, float], wall: dict[str, float], rate: float
) -> None:
    count = products(work, name)
    line = f"{work} {name:13s} {cpu[name]:.3f} CPU s/device  {1 / wall[name]:6.2f} devices/s"
    line += f"  ratio {cpu['pfl-research'] / cpu[name]:5.1f} CPU"
    line += f" {wall['pfl-research'] / wall[name]:5.1f} wall"
    if name in BARS[work]:
        line += f"  (bar {BARS[work][name]:g})"
    line += f"  {count:.0f} GFLOP: {count / cpu[name] / rate:.0%} of {rate:.0f} GFLOP/s"
    print(line, flush=True)


def build_environment(python: Path) -> None:
    """Make pfl-research's own environment, torch first so that it stays the same release."""
    folder = python.parents[1]
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    for package in (f"torch=={torch.__version__.split('+')[0]}", "pfl[pytorch]"):
        subprocess.run([str(python), "-m", "pip", "install", "-q", package], check=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", nargs="+", choices=tuple(BARS), default=list(BARS))
    parser.add_argument("--cohort", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--pfl-python", type=Path, default=HERE.parent / ".env-pfl/bin/python")
    arguments = parser.parse_args()
    if not arguments.pfl_python.exists():
        build_environment(arguments.pfl_python)
    print(f"machine: {machine.tune(threads=1)}")
    for work in arguments.work:
        compare(work, arguments.cohort, arguments.repeats, arguments.pfl_python)


if __name__ == "__main__":
    main()
