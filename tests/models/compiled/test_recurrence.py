"""The compiled recurrence against the same steps in torch."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import Tensor

from pfl_lm import native
from pfl_lm.models import recurrence as by_torch
from pfl_lm.models import recurrent
from pfl_lm.models.compiled import recurrence
from pfl_lm.models.dense import Dense

K, T, B, H, S = 3, 4, 5, 13, 7


@pytest.fixture(scope="module", autouse=True)
def compiled_here():
    if native.load("recurrence") is None:
        pytest.skip("no C kernels: no compiler, or PFL_LM_NATIVE=0")


class Layer:
    """Random tensors of one layer; ``shared``: all devices hold the same matrices."""

    def __init__(self, kind: str, rank: int, shared: bool, steps: int = T) -> None:
        self.draw = torch.Generator().manual_seed(0)
        gates, state = recurrent.FORMS[kind].gates * H, S if kind == "cifg_lstm" else H
        self.sums, self.r, self.c = (
            self.of(K, steps, B, gates),
            self.of(K, B, state),
            self.of(K, B, H),
        )
        lead = () if shared else (K,)
        self.layers = [*self.dense(gates, state, rank, lead), *(None,) * 5]
        if kind == "cifg_lstm":
            self.layers[5:] = self.dense(state, H, rank, lead)

    def of(self, *shape: int) -> Tensor:
        return (0.5 * torch.randn(shape, generator=self.draw)).requires_grad_()

    def dense(self, outputs: int, inputs: int, rank: int, lead: tuple[int, ...]) -> list:
        factors = [self.of(K, rank, inputs), self.of(K, outputs, rank)] if rank else [None, None]
        return [self.of(*lead, outputs, inputs), None, *factors, 0.7]

    def run(self, walk) -> list[Tensor]:
        """Outputs, and gradients by everything of a fixed weighting of them."""
        outputs = walk.apply(self.sums * 1.0, self.r, self.c, *self.layers)
        weighted = sum((torch.cos(torch.arange(y.numel())).view_as(y) * y).sum() for y in outputs)
        held = [self.sums, self.r, self.c, *self.layers]
        leaves = [each for each in held if isinstance(each, Tensor) and each.requires_grad]
        return [*(y.detach() for y in outputs), *torch.autograd.grad(weighted, leaves)]


@pytest.mark.parametrize("kind", ["cifg_lstm", "lstm"])
@pytest.mark.parametrize("rank", [0, 2])
@pytest.mark.parametrize("shared", [True, False])
def test_the_same_outputs_and_gradients_as_in_torch(kind: str, rank: int, shared: bool) -> None:
    layer = Layer(kind, rank, shared)
    pairs = zip(layer.run(recurrence.Recurrence), layer.run(by_torch.Recurrence), strict=True)
    for ours, torchs in pairs:
        torch.testing.assert_close(ours, torchs, atol=2e-6, rtol=2e-6)


@pytest.mark.parametrize("kind", ["cifg_lstm", "lstm"])
@pytest.mark.parametrize("rank", [0, 2])
@pytest.mark.parametrize("steps", [1, 2, T])
def test_a_state_of_zero_is_not_multiplied_and_changes_nothing(
    kind: str, rank: int, steps: int
) -> None:
    layer = Layer(kind, rank, False, steps)
    layer.r = torch.zeros_like(layer.r).requires_grad_()  # its gradient wanted: multiplied
    wanted = layer.run(recurrence.Recurrence)
    without = [x for number, x in enumerate(wanted) if number != 3]  # the state's gradient
    layer.r = torch.zeros_like(layer.r)
    for ours, kept in zip(layer.run(recurrence.Recurrence), without, strict=True):
        torch.testing.assert_close(ours, kept, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("kind", ["cifg_lstm", "lstm"])
def test_nothing_is_kept_where_nothing_learns_and_the_bits_are_the_same(kind: str) -> None:
    layer = Layer(kind, 2, True)
    with torch.no_grad():
        kept = recurrence.Recurrence.apply(layer.sums * 1.0, layer.r, layer.c, *layer.layers)
    for ours, learning in zip(kept, layer.run(recurrence.Recurrence), strict=False):
        assert torch.equal(ours, learning)


@pytest.mark.parametrize("shared", [True, False])
def test_a_device_has_the_same_bits_on_any_number_of_threads(shared: bool) -> None:
    layer = Layer("cifg_lstm", 2, shared)
    found = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        try:
            assert recurrence.supports(layer.sums)
            found.append(layer.run(recurrence.Recurrence)[:5])  # later ones are torch's products
        finally:
            torch.set_num_threads(1)
    for before, after in pairwise(found):
        assert all(torch.equal(x, y) for x, y in zip(before, after, strict=True))


def test_other_precisions_and_fewer_devices_than_threads_go_through_torch() -> None:
    layer = Layer("lstm", 0, True)
    assert recurrence.supports(layer.sums, None, 0.5)
    assert not recurrence.supports(layer.sums, layer.r.double())
    assert not recurrence.supports(layer.sums, layer.r.bfloat16())
    assert not recurrence.supports(layer.sums, Dense(layer.r.double()))
    torch.set_num_threads(K + 1)
    try:
        assert not recurrence.supports(layer.sums)
    finally:
        torch.set_num_threads(1)
