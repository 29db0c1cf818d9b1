"""The matrix products of a device's training: their count by shape, and the rate reached there.

A large product reaches the processor's limit; one of 16 rows does not, in any library. So two
bounds are told apart: all products at the limit, and each at the rate that the better library
reaches at its own shape, measured in the run itself. The C kernels may pass the second.

Legend: K devices at once, N rows of a device in a step, O × I a weight, R LoRA rank.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from unittest.mock import patch

import numpy as np
import torch

from benchmarks.workloads import BATCH, LENGTH, VOCABULARY, WINDOWS
from pfl_lm.models import dense, exact_softmax
from pfl_lm.native import products as kernels

STEPS, ROWS = WINDOWS // BATCH, BATCH * LENGTH
RANK, CANDIDATES = 8, 512
LSTM = {"input": (2680, 96), "recurrent": (2680, 670), "projection": (96, 670)}
BLOCK = {  # of the transformer, four times
    "attention": (384, 128),
    "attention out": (128, 128),
    "feed-forward in": (512, 128),
    "feed-forward out": (128, 512),
}


@dataclass(frozen=True)
class Product:
    """One shape: ``calls`` a device, each ``devices`` × (rows × O × I) at once."""

    part: str
    way: str  # "forward" x Wᵀ, "backward" dy W, "gradient" dyᵀ x; else of a block of words
    calls: float
    devices: int  # with a weight of their own each; 1: one weight
    rows: int
    outputs: int
    inputs: int
    low: bool = False  # in bfloat16

    @property
    def gflop(self) -> float:
        return 2e-9 * self.calls * self.devices * self.rows * self.outputs * self.inputs

    def rehearse(self) -> Callable[[], object]:
        """Make operands of this shape and return the product of them, to be timed."""
        if self.way in ("scores", "mixture", "table"):
            return self._rehearse_block()
        kind = _kind(self.low)
        x = torch.randn(self.devices, self.rows, self.inputs).to(kind)
        dy = torch.randn(self.devices, self.rows, self.outputs).to(kind)
        weight = torch.randn(self.devices, self.outputs, self.inputs).to(kind)
        if self.way == "forward":
            return lambda: dense.times(x, weight)
        if self.way == "backward":
            return lambda: dense.times_back(dy, weight)
        return lambda: dense.weight_gradient(dy, x, weight)

    def _rehearse_block(self) -> Callable[[], object]:
        """A block of words as the exact softmax multiplies it: into memory that is there."""
        kind = _kind(self.low)
        table = torch.randn(self.rows, self.inputs).to(kind)
        vectors = torch.randn(self.outputs, self.inputs).to(kind)
        powers, mixed = torch.randn(self.rows, self.outputs).to(kind), torch.zeros_like(vectors)
        if self.way == "scores":
            return lambda: torch.mm(table, vectors.mT, out=powers)
        if self.way == "mixture":
            return lambda: mixed.addmm_(powers.mT, table)
        return lambda: table.addmm_(powers, vectors, alpha=1e-6)


def of_work(work: str, kind: str, at_once: int) -> list[Product]:
    """List a device's products in workload ``work`` where ``at_once`` devices train together.

    In bfloat16 the method has the products with frozen weights, dense training all but attention's.
    """
    whole = {"factors", "output", "positions"} if kind.startswith("method") else {"positions"}
    return [
        replace(each, low=kind.endswith("bf16") and each.part not in whole)
        for each in _of_work(work, kind, at_once)
    ]


def _of_work(work: str, kind: str, at_once: int) -> list[Product]:
    found: list[Product] = []
    layers = BLOCK if work == "W3" else LSTM
    for part, (outputs, inputs) in layers.items():
        times = STEPS * (4 if work == "W3" else 1)
        # Products of a step, one after another; the first state is zero and not multiplied.
        walk, rows = (LENGTH - 1, BATCH) if part == "recurrent" else (1, ROWS)
        shape = (outputs, inputs)
        if kind.startswith("method"):
            found += _through(part, shape, times * walk, 1, rows, at_once)
            found += _factors(part, shape, times, walk, rows, at_once)
        else:
            first = times / STEPS
            found += _through(part, shape, first * walk, 1, rows, at_once)
            found += _through(part, shape, (times - first) * walk, 1, rows, 1)
            found += [Product(part, "gradient", times, 1, walk * rows, *shape)]
    if work == "W3":  # 64 windows' heads side by side: two products, each with two backward
        calls, pairs = 6 * 4 * STEPS / at_once, at_once * BATCH * 4
        found += [Product("positions", "forward", calls, pairs, LENGTH, LENGTH, 32)]
    return found + list(_output(work, kind, at_once))


def _through(
    part: str, shape: tuple[int, int], calls: float, devices: int, rows: int, at_once: int
) -> list[Product]:
    """Forward and backward through a weight that ``at_once`` devices share."""
    return [
        Product(part, way, calls / at_once, devices, rows * at_once, *shape)
        for way in ("forward", "backward")
    ]


def _factors(
    part: str, shape: tuple[int, int], times: int, walk: int, rows: int, at_once: int
) -> Iterator[Product]:
    outputs, inputs = shape
    for factor in ((RANK, inputs), (outputs, RANK)):
        for way in ("forward", "backward"):
            yield Product("factors", way, times * walk / at_once, at_once, rows, *factor)
        yield Product("factors", "gradient", times / at_once, at_once, walk * rows, *factor)


def _output(work: str, kind: str, at_once: int) -> Iterator[Product]:
    width = 128 if work == "W3" else 96
    if kind.startswith("method"):
        for way in ("forward", "backward", "gradient"):
            yield Product("output", way, STEPS / at_once, at_once, ROWS, CANDIDATES, width)
        return
    words = exact_softmax.block_width(ROWS)
    for way in ("scores", "mixture", "table"):
        yield Product("output", way, STEPS * VOCABULARY[work] / words, 1, words, ROWS, width)


def _kind(low: bool) -> torch.dtype:
    return torch.bfloat16 if low else torch.float32


def limit(low: bool, size: int = 1024) -> float:
    """GFLOP a CPU second of one large product: float32's by the faster of two libraries.

    Args:
        low: in bfloat16, by torch.
    """
    left, right = torch.randn(2, size, size).to(_kind(low))
    if low:
        return 2e-9 * size**3 / _seconds(lambda: left @ right, 5)
    laps = {"torch": lambda: left @ right, "numpy": lambda: np.matmul(left.numpy(), right.numpy())}
    return max(2e-9 * size**3 / _seconds(lap, 5) for lap in laps.values())


def rates(products: list[Product]) -> list[float]:
    """GFLOP a CPU second of each product, by libraries."""
    with patch.object(kernels, "supports", lambda *operands: False):
        return [
            each.gflop / each.calls / _seconds(each.rehearse(), 1 + int(0.05 * each.calls))
            for each in products
        ]


def table(products: list[Product], reached: list[float]) -> Iterator[str]:
    """One line for each part and way, its shapes summed: GFLOP, rate, and seconds at that rate."""
    kinds = dict.fromkeys((each.part, each.way) for each in products)
    for part, way in kinds:
        same = [
            (each, rate)
            for each, rate in zip(products, reached, strict=True)
            if (each.part, each.way) == (part, way)
        ]
        gflop = sum(each.gflop for each, _ in same)
        seconds = sum(each.gflop / rate for each, rate in same)
        most = max(same, key=lambda one: one[0].gflop)[0]
        shape = f"{most.rows} × {most.outputs} × {most.inputs}"
        if most.devices > 1:
            shape = f"{most.devices} × ({shape})"
        yield (
            f"{part:17s}{way:9s}{shape:26s}{gflop:6.2f} GFLOP"
            f"{gflop / seconds:5.0f} GFLOP/s{seconds:7.3f} s"
        )


def _seconds(run: Callable[[], object], times: int, laps: int = 7) -> float:
    """CPU seconds of one run: the median of laps that do it several times over."""
    run()
    found = []
    for _ in range(laps):
        start = time.process_time()
        for _ in range(times):
            run()
        found.append((time.process_time() - start) / times)
    return statistics.median(found)
