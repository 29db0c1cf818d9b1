"""The compiled block of a transformer against the same block in torch, in double precision."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import Tensor

from pfl_lm import native
from pfl_lm.language import block, transformer
from pfl_lm.language.models import LoraSpec, ModelSpec, roles

K = 3
SMALL = ModelSpec("transformer", 9, 42, layers=1, heads=3, feedforward_dim=29, context=64)
WIDE = ModelSpec("transformer", 9, 64, layers=1, heads=2, feedforward_dim=350, context=64)


@pytest.fixture(scope="module", autouse=True)
def loops():
    if native.library("block") is None:
        pytest.skip("no compiled loops: no compiler, or PFL_LM_NATIVE=0")


class Case:
    """Random tensors of one block; ``shared``: all devices hold the same, but for the factors."""

    def __init__(self, spec: ModelSpec, shared: bool, windows: int, length: int) -> None:
        self.draw = torch.Generator().manual_seed(0)
        self.spec = spec
        self.weights = {
            name: self.of(*(() if shared and "lora" not in name else (K,)), *role.shape)
            for name, role in roles(spec).items()
            if role.kind != "rows"
        }
        for name, tensor in self.weights.items():
            if name.endswith("_gain"):
                tensor.data += 1
        self.embedded = self.of(K, windows, length, spec.embedding_dim)

    def of(self, *shape: int) -> Tensor:
        return (0.3 * torch.randn(shape, generator=self.draw)).requires_grad_()

    def run(self, precision: torch.dtype = torch.float32) -> list[Tensor]:
        """Outputs, and gradients by everything of a fixed weighting of them."""
        held = {n: w.to(precision) for n, w in self.weights.items()}
        y = transformer.hidden(self.spec, held, self.embedded.to(precision))
        weighted = (torch.cos(torch.arange(y[0].numel())).view_as(y[0]) * y).sum()
        return [y.detach(), *torch.autograd.grad(weighted, [self.embedded, *self.weights.values()])]


def spec_with(base: ModelSpec, positions: str, activation: str, rank: int) -> ModelSpec:
    lora = LoraSpec(rank) if rank else None
    return ModelSpec(
        **vars(base) | {"positions": positions, "activation": activation, "lora": lora}
    )


@pytest.mark.parametrize("base", [SMALL, WIDE], ids=["odd", "wide"])
@pytest.mark.parametrize("rank", [0, 2, 8, 19])
@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize(
    ("positions", "activation"), [("learned", "gelu"), ("rotary", "relu"), ("learned", "relu")]
)
def test_the_same_output_and_gradients_as_in_torch(
    base: ModelSpec, rank: int, shared: bool, positions: str, activation: str
) -> None:
    for windows, length in ((2, 1), (9, 13), (1, 33)):
        case = Case(spec_with(base, positions, activation, rank), shared, windows, length)
        assert block.suits(case.embedded)
        for ours, exact in zip(case.run(), case.run(torch.float64), strict=True):
            error, size = map(torch.linalg.vector_norm, (ours - exact, exact))
            assert error < size * (2e-4 if activation == "gelu" else 1e-2)  # a corner may flip


def test_nothing_is_kept_where_nothing_learns_and_the_bits_are_the_same() -> None:
    case = Case(spec_with(SMALL, "rotary", "gelu", 2), True, 9, 7)
    learning = case.run()[0]
    with torch.no_grad():
        assert torch.equal(transformer.hidden(case.spec, case.weights, case.embedded), learning)


@pytest.mark.parametrize("shared", [True, False])
def test_a_device_has_the_same_bits_beside_any_others(shared: bool) -> None:
    case = Case(spec_with(SMALL, "learned", "gelu", 3), shared, 9, 7)
    together = case.run()
    for device in range(K):
        alone = Case(case.spec, shared, 9, 7)
        alone.embedded = case.embedded.detach()[device : device + 1].requires_grad_()
        alone.weights = {
            name: tensor.detach()[device : device + 1].requires_grad_()
            if shared is False or "lora" in name
            else tensor
            for name, tensor in case.weights.items()
        }
        for own, all_of_them, name in zip(
            alone.run(), together, ("", "", *case.weights), strict=True
        ):
            if not shared or not name or "lora" in name:
                assert torch.equal(own[0], all_of_them[device])


@pytest.mark.parametrize("shared", [True, False])
def test_a_device_has_the_same_bits_on_any_number_of_threads(shared: bool) -> None:
    case = Case(spec_with(SMALL, "learned", "relu", 2), shared, 9, 7)
    found = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        try:
            assert block.suits(case.embedded)
            found.append(case.run()[:2])
        finally:
            torch.set_num_threads(1)
    for before, after in pairwise(found):
        assert all(torch.equal(x, y) for x, y in zip(before, after, strict=True))


def test_other_precisions_and_fewer_devices_than_threads_go_through_torch() -> None:
    x = torch.zeros(K, 4, 8)
    assert block.suits(x, None, 0.5)
    assert not block.suits(x, x.double())
    assert not block.suits(x, x.bfloat16())
    torch.set_num_threads(K + 1)
    try:
        assert not block.suits(x)
    finally:
        torch.set_num_threads(1)
