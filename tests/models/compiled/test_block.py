"""The compiled block of a transformer against the same block in torch, in double precision."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import Tensor

from pfl_lm import native
from pfl_lm.models import dense, transformer
from pfl_lm.models.compiled import block
from pfl_lm.models.models import LoraSpec, ModelSpec, roles
from pfl_lm.native import products

K = 3
SMALL = ModelSpec("transformer", 9, 42, layers=1, heads=3, feedforward_dim=29, context=64)
WIDE = ModelSpec("transformer", 9, 64, layers=1, heads=2, feedforward_dim=350, context=64)


@pytest.fixture(scope="module", autouse=True)
def compiled_here():
    if native.load("block") is None:
        pytest.skip("no C kernels: no compiler, or PFL_LM_NATIVE=0")


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

    def run(self) -> list[Tensor]:
        """Outputs, and gradients by everything of a fixed weighting of them."""
        return self.differentiate(transformer.hidden(self.spec, self.weights, self.embedded))

    def differentiate(self, y: Tensor) -> list[Tensor]:
        weighted = (torch.cos(torch.arange(y[0].numel())).view_as(y[0]) * y).sum()
        return [y.detach(), *torch.autograd.grad(weighted, [self.embedded, *self.weights.values()])]

    def compare(self, tolerance: float) -> None:
        """Compare outputs and gradients with the exact ones, in double precision in torch.

        A ReLU has a corner at 0, where a rounding error decides which gradient passes. There the
        exact block takes the compiled one's side; such inputs are counted and must be all but 0.
        """
        found = transformer.hidden(self.spec, self.weights, self.embedded)
        active = hidden_layer_of(found) > 0 if self.spec.activation == "relu" else None
        held = {n: w.double() for n, w in self.weights.items()}
        apply = dense.by_name(held, self.spec.lora)

        def linear(name: str, x: Tensor) -> Tensor:
            y = apply(name, x)
            if active is None or not name.endswith("feedforward_in"):
                return y
            flipped = (y > 0) != active
            assert flipped.sum() <= 2 + 1e-5 * y.numel()
            assert (y[flipped].abs() < 1e-5 * y.abs().max()).all()
            return y - 2 * (y * flipped).detach()

        exact = transformer.hidden(self.spec, held, self.embedded.double(), linear)
        names = ("output", "x", *self.weights)
        pairs = zip(names, self.differentiate(found), self.differentiate(exact), strict=True)
        for name, ours, wanted in pairs:
            error, size = map(torch.linalg.vector_norm, (ours - wanted, wanted))
            assert error < tolerance * size, name


def hidden_layer_of(output: Tensor) -> Tensor:
    """The feed-forward part's rows (K, N, F) that the compiled block kept for its gradient."""
    nodes = [output.grad_fn]
    for node in nodes:
        if hasattr(node, "kept"):
            return node.kept["hidden"]
        nodes += [other for other, _ in node.next_functions if other is not None]
    raise AssertionError("the block did not run in C")


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
    for windows, length in ((2, 1), (9, 13), (3, 20), (1, 33)):
        case = Case(spec_with(base, positions, activation, rank), shared, windows, length)
        assert block.supports(case.embedded)
        case.compare(2e-4)


def test_the_comparison_sees_an_input_of_relu_that_is_on_the_wrong_side(monkeypatch) -> None:
    case = Case(spec_with(SMALL, "learned", "relu", 0), True, 2, 5)
    case.compare(2e-4)
    genuine = hidden_layer_of
    monkeypatch.setitem(globals(), "hidden_layer_of", lambda y: genuine(y) == 0)
    with pytest.raises(AssertionError):
        case.compare(2e-4)


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
            assert block.supports(case.embedded)
            found.append(case.run()[:2])
        finally:
            torch.set_num_threads(1)
    for before, after in pairwise(found):
        assert all(torch.equal(x, y) for x, y in zip(before, after, strict=True))


def test_other_precisions_and_fewer_devices_than_threads_go_through_torch() -> None:
    x = torch.zeros(K, 4, 8)
    assert block.supports(x, None, 0.5)
    assert not block.supports(x, x.double())
    assert not block.supports(x, x.bfloat16())
    torch.set_num_threads(K + 1)
    try:
        assert not block.supports(x)
    finally:
        torch.set_num_threads(1)


def test_weights_in_bfloat16_change_a_block_as_little_as_their_rounding(monkeypatch) -> None:
    """Products of 8 bits, sums of 24: forward and backward, beside a block of rounded weights."""
    monkeypatch.setattr(products, "has_bfloat16", lambda: True)
    draw = torch.Generator().manual_seed(0)

    def numbers(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=draw)

    x, dy = numbers(3, 35, 24).requires_grad_(), numbers(3, 35, 24)
    norms = [(torch.ones(24), torch.zeros(24))] * 2
    layers = [
        dense.Dense(
            0.2 * numbers(3, o, i), numbers(o), 0.2 * numbers(3, 4, i), 0.2 * numbers(3, o, 4)
        )
        for o, i in ((72, 24), (24, 24), (40, 24), (24, 40))
    ]
    low = [layer._replace(weight=layer.weight.bfloat16()) for layer in layers]
    rounded = [layer._replace(weight=layer.weight.float()) for layer in low]
    found = []
    for each in (low, rounded):
        assert block.supports(x, *each)
        weights = [layer.weight.requires_grad_() for layer in each]
        sums = [torch.zeros(weight.shape) for weight in weights]
        for weight, into in zip(weights, sums, strict=True):
            dense.route_gradient(weight, into, -0.5)
        y = block.apply(x, block.Shape(5, 7, 4, True), norms, each)
        by_x, *rest = torch.autograd.grad(y, [x, *weights], dy, allow_unused=True)
        assert rest == [None] * 4, "gradients by weights are added, in float32, where they go"
        found.append((y.detach(), by_x, *sums))
    for one, other in zip(*found, strict=True):
        assert 0 < (one - other).norm() / other.norm() < 0.01
