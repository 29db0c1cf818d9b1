"""Dense layers whose gradients go straight to what is trained."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from pfl_lm.models import dense
from pfl_lm.models.dense import Dense
from pfl_lm.native import products

K, N, I, O = 2, 9, 20, 150


def one_layer(with_bias: bool, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Dense]:
    draw = torch.Generator().manual_seed(0)
    x, weight, bias = (
        torch.randn(s, generator=draw).to(dtype) for s in ((K, N, I), (K, O, I), (K, O))
    )
    return x.requires_grad_(), Dense(
        weight.requires_grad_(), bias.requires_grad_() if with_bias else None
    )


def gradients(x: Tensor, layer: Dense) -> list[Tensor | None]:
    """By x, weight and bias, of a fixed weighting of the layer's outputs."""
    y = dense.apply(x, layer)
    leaves = [each for each in (x, layer.weight, layer.bias) if each is not None]
    weighting = torch.cos(torch.arange(y.numel(), dtype=y.dtype)).view_as(y)
    return list(torch.autograd.grad(y, leaves, weighting, allow_unused=True))


@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize("own_memory", [True, False])
def test_a_layer_adds_its_gradients_where_they_are_to_go(with_bias: bool, own_memory: bool) -> None:
    if not products.supports(torch.zeros(1)):
        pytest.skip("no C kernels: no compiler, or PFL_LM_NATIVE=0")
    x, layer = one_layer(with_bias)
    expected = gradients(x, layer)
    held = [tensor for tensor in (layer.weight, layer.bias) if tensor is not None]
    wanted = [
        (tensor if own_memory else torch.zeros_like(tensor)) - 0.1 * gradient
        for tensor, gradient in zip(held, expected[1:], strict=True)
    ]
    places = [tensor.data if own_memory else torch.zeros_like(tensor) for tensor in held]
    for tensor, into in zip(held, places, strict=True):
        dense.route_gradient(tensor, into, -0.1)
    by_x, *others = gradients(x, layer)
    torch.testing.assert_close(by_x, expected[0])
    assert others == [None] * len(held)
    for into, moved in zip(places, wanted, strict=True):
        torch.testing.assert_close(into, moved, atol=1e-5, rtol=1e-5)


def test_kernels_that_cannot_leave_their_gradients_to_autograd() -> None:
    x, layer = one_layer(True, torch.float64)
    expected = gradients(x, layer)
    for tensor in (layer.weight, layer.bias):
        dense.route_gradient(tensor, torch.full_like(tensor, 7), -0.1)
    for ours, theirs in zip(gradients(x, layer), expected, strict=True):
        torch.testing.assert_close(ours, theirs)
    assert (layer.weight.gradient_route.grad_out == 7).all()
