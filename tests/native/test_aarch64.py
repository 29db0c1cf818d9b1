"""The C kernels on a 64-bit ARM processor, which qemu emulates, against the same calls here.

Each case runs product code or a kernel with the kernels of this x86 machine and records its calls:
the memory that a call may reach, before and after. A C program with the same calls is then written,
compiled for aarch64 together with the kernel's source, and run on the recorded memory. The privacy
kernels must leave the same bytes, the training kernels the same numbers to float32's rounding.

The kernels here are compiled for x86-64-v2, whose vectors are as long as those of aarch64: packed
operands then have one layout.
"""

from __future__ import annotations

import ctypes
import platform
import shutil
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

from pfl_lm import native
from pfl_lm.devices.candidates import contrast
from pfl_lm.devices.tables import Table, slots_of
from pfl_lm.dp.sampler.discrete_noise import table as noise_table
from pfl_lm.models import exact_softmax, transformer
from pfl_lm.models.compiled import recurrence, top_words
from pfl_lm.models.losses import Candidates
from pfl_lm.models.models import LoraSpec, ModelSpec, roles
from pfl_lm.native import bindings, products
from pfl_lm.native.bindings import BINDINGS, PRIVACY

GCC, QEMU = "aarch64-linux-gnu-gcc", "qemu-aarch64"
EXACT = set(PRIVACY) - {"hadamard"}  # which adds in floating point


@pytest.fixture(autouse=True)
def emulator(monkeypatch) -> Iterator[None]:
    for command in (GCC, QEMU):
        if shutil.which(command) is None:
            pytest.skip(f"{command} is not installed")
    if platform.machine() != "x86_64" or native.load("products") is None:
        pytest.skip("needs the C kernels of an x86 machine to compare with")
    monkeypatch.setenv("PFL_LM_CFLAGS", "-march=x86-64-v2")
    native.attempt.cache_clear()
    yield
    native.attempt.cache_clear()


# ── cases ────────────────────────────────────────────────────────────────────────────────────────


def numbers(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def run_products(_: Any) -> None:
    x, weight, dy = numbers(3, 9, 37), numbers(29, 37), numbers(3, 9, 29)
    bias = numbers(3, 29)
    products.times(x, weight.mT, bias)
    products.times(x, numbers(3, 29, 37).mT, None)
    products.pack(numbers(9, 37)), products.pack(numbers(37, 9).mT)
    products.gradient(dy, x)
    products.gradient(dy, x, numbers(3, 29, 37), bias, -0.3)
    products.has_bfloat16(), products.has_tiles()  # what a processor has, it answers for itself


def run_factored(_: Any) -> None:
    for rank in (3, 8, 21):
        weight, a, b = numbers(29, 37), numbers(2, rank, 37), numbers(2, 29, rank)
        products.through_layer(numbers(2, 9, 37), weight, a, b, 0.7, numbers(29))
        products.through_layer(numbers(2, 9, 29), weight, a, b, 0.7, back=True)


def run_recurrence(_: Any) -> None:
    for gates, state in ((3, 7), (4, 13)):
        sums, r, c = numbers(2, 3, 4, gates * 13), numbers(2, 4, state), numbers(2, 4, 13)
        dense = [numbers(gates * 13, state), None, numbers(2, 2, state), numbers(2, gates * 13, 2)]
        project = [numbers(2, state, 13), *(None,) * 4] if gates == 3 else [None] * 5
        tensors = [sums, r, c, *dense, 0.7, *project]
        leaves = [t.requires_grad_() for t in tensors if isinstance(t, torch.Tensor)]
        sums_in = sums * 1.0
        outputs = recurrence.Recurrence.apply(sums_in, *tensors[1:])
        torch.autograd.grad(sum(y.sum() for y in outputs), leaves)


def run_block(_: Any) -> None:
    for positions in ("learned", "rotary"):
        spec = ModelSpec(
            *("transformer", 9, 24), layers=1, heads=2, feedforward_dim=29, context=16,
            positions=positions, lora=LoraSpec(3),
        )  # fmt: skip
        weights = {
            name: (0.3 * numbers(2, *role.shape, seed=at)).requires_grad_()
            for at, (name, role) in enumerate(roles(spec).items())
            if role.kind != "rows"
        }
        x = (0.3 * numbers(2, 9, 7, 24)).requires_grad_()
        y = transformer.hidden(spec, weights, x)
        torch.autograd.grad((y * numbers(*y.shape)).sum(), [x, *weights.values()])


def run_candidates(_: Any) -> None:
    held = {"t": numbers(90, 24), "b": numbers(90)}
    now = {"t": numbers(2, 40, 24), "b": numbers(2, 40)}
    slots = slots_of(torch.arange(0, 80, 2), 90)
    table, bias = (Table(held, now, now, name, slots) for name in ("t", "b"))
    words = np.sort(np.random.default_rng(0).permutation(90)[:23])
    chosen = Candidates(words, numbers(23).numpy(), np.ones(23, np.float32))
    targets = torch.randint(0, 90, (2, 61), generator=torch.Generator().manual_seed(2))
    weight = numbers(2, 61).abs()
    contrast(numbers(2, 61, 24), targets, weight, table, bias, -0.1, chosen)


def run_softmax(_: Any) -> None:
    table, bias = numbers(331, 17), numbers(331)
    targets = torch.randint(0, 331, (21,), generator=torch.Generator().manual_seed(2))
    into = (torch.zeros_like(table), torch.zeros_like(bias))
    exact_softmax.full_softmax(numbers(21, 17), table, bias, targets, numbers(21).abs(), into, 2.0)


def run_top_words(_: Any) -> None:
    top_words.rank(numbers(21, 17), numbers(331, 17), numbers(331), torch.rand(331) < 0.2)


def run_encode(kernels: Any) -> None:
    draw = np.random.default_rng(0)
    count, alias = 5001, noise_table("skellam", 253.0**2).alias
    values = (100 * draw.standard_normal(count)).astype(np.float32)
    words = draw.integers(0, 2**32, count, np.uint32)
    left = np.zeros(count, np.uint32)
    kernels.sum_of_squares(values, count)
    for out in (np.arange(count, dtype=np.int32), np.arange(count)):
        into = (out.itemsize, out)
        for entries, past_caches, factor in (
            *((None, 0, 0.7), (alias.entries, 1, 0.7)),
            (None, 1, 1e-20),
        ):
            noted = np.zeros(1, np.int64)
            about = (entries, alias.low_bits, left, noted, past_caches, *into)
            kernels.round_at_random(values, factor, count, words, *about)
        kernels.add_samples(count, words, alias.entries, alias.low_bits, left, *into)


def run_inversion(kernels: Any) -> None:
    draw = np.random.default_rng(0)
    rest = noise_table("skellam", 253.0**2).rest
    drawn = np.concatenate([rest.sorted[::9], draw.integers(0, 2**64, 999, np.uint64)])
    places = draw.permutation(len(drawn)).astype(np.uint32)
    places[::3] |= np.uint32(1 << 31)
    ties = np.zeros(len(drawn), np.uint32)
    for out in (np.zeros(len(drawn), np.int32), np.zeros(len(drawn), np.int64)):
        kernels.add_magnitudes(
            *(drawn, places, len(drawn), rest.sorted, len(rest.sorted), rest.start, rest.shift),
            *(rest.magnitude, out.itemsize, out, ties),
        )


def run_rejection(kernels: Any) -> None:
    draw = np.random.default_rng(0)
    steps, words = draw.integers(-9, 9, 999), draw.integers(0, 2**64, 999, np.uint64)
    samples, doubtful = np.zeros(999, np.int64), np.zeros(999, np.uint32)
    kernels.propose(999, steps, words, 13, 2**20 + 7, samples, doubtful)


def run_hadamard(kernels: Any) -> None:
    draw = np.random.default_rng(0)
    for size in (8, 2**10, 2**14):
        block = draw.standard_normal(size).astype(np.float32)
        kernels.turn_signs(block, draw.integers(0, 256, size // 8, np.uint8), size)
        kernels.hadamard(block, size, size**-0.5)


def run_packed(kernels: Any) -> None:
    draw = np.random.default_rng(0)
    for bits, word in ((8, np.uint32), (21, np.uint32), (31, np.uint32), (33, np.uint64)):
        words = draw.integers(0, 2**bits, 401).astype(word)
        packed = np.zeros((401 * bits + 7) // 8, np.uint8)
        kernels.pack(packed, words, words.itemsize, 401, bits)
        total = words.copy()
        vectors = (ctypes.c_void_p * bindings.TOGETHER)(*[kernels.see(packed)] * 3)
        about = bindings.PackedSum(kernels.see(total), vectors, total.itemsize, bits, 0)
        kernels.add_packed(ctypes.byref(about), 0, 401, 3)


def run_field(kernels: Any) -> None:
    draw = np.random.default_rng(0)
    elements = draw.integers(0, 2**63, (7, 5), np.uint64)
    elements[:, 4] = 0
    points = np.arange(1, 8, dtype=np.uint64)
    values, weights, scratch = (np.zeros((7, 5), np.uint64) for _ in range(3))
    kernels.evaluate(elements.tobytes(), 7, points, 7, values)
    kernels.lagrange(points, 7, weights, scratch)
    shares = values.view(np.uint8)[:, :33].copy()
    kernels.combine(weights, shares, 7, np.zeros(5, np.uint64))


def run_elementwise(kernels: Any) -> None:
    special = [np.inf, -np.inf, np.nan, 0.0, -0.0, 1e-40, 88.0, -88.0, 130.0]
    x = np.concatenate([special, np.linspace(-20, 20, 1000)]).astype(np.float32)
    for function in kernels.binding.functions:
        getattr(kernels, function)(len(x), x, np.zeros_like(x))


CASES = {name.removeprefix("run_"): case for name, case in vars().items() if name[:4] == "run_"}


@pytest.mark.parametrize("name", CASES)
def test_the_emulated_kernel_leaves_what_the_kernel_here_does(
    name, recorder, emulate, tmp_path, monkeypatch
) -> None:
    kernels = {name: recorder(name)}
    pointer = torch.Tensor.data_ptr

    def load(other: str) -> Any:
        return kernels.setdefault(other, recorder(other))

    def data_ptr(tensor: torch.Tensor) -> int:
        for kernel in kernels.values():
            kernel.see(tensor)
        return pointer(tensor)

    with monkeypatch.context() as patch:
        patch.setattr(native, "load", load)
        patch.setattr(torch.Tensor, "data_ptr", data_ptr)
        CASES[name](kernels[name])
    calls = kernels[name].calls
    assert {call.function for call in calls} == set(kernels[name].binding.functions)
    written, at = emulate(name, calls, tmp_path), 0
    for call in calls:
        if name in EXACT:
            assert written[at : at + len(call.result)] == call.result
        at += len(call.result)
        for number, region in enumerate(call.after):
            theirs = np.frombuffer(written, region.dtype, region.size, at).copy()
            at += region.nbytes
            for inside, place, *_ in call.pointers:  # addresses differ
                if inside == number:
                    theirs[place : place + 8] = region[place : place + 8]
            if name in EXACT or region.dtype.kind != "f":
                np.testing.assert_array_equal(theirs, region)
            else:
                np.testing.assert_allclose(theirs, region, rtol=2e-5, atol=2e-5)
    assert at == len(written)


def test_every_library_has_a_case() -> None:
    assert set(CASES) == {*BINDINGS, "elementwise"}
