"""Dense products for K devices at once, each weight shared by all of them or held per device.

The shapes say which: a weight (O, I) is shared, and its product is ONE matrix multiplication over
the rows of all devices; a weight (K, O, I) is per device, a batched one. A weight (K, O, I) whose
first stride is 0 (``tensor.expand``) is per device and still equal everywhere, as in the first
local step: its forward product is shared, its gradient is per device. A weight in bfloat16 has
its products made in bfloat16, with sums and everything between layers in float32. C kernels make
products where there are any (``native/products``), in bfloat16 if the processor does; else torch.

Legend: K devices, N rows of a device (batch · time), I input width, O output width, R LoRA rank.

Source: LoRA, Hu et al. 2021 (arXiv:2106.09685), equation 3.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from pfl_lm.models.spec import LoraSpec
from pfl_lm.native import products

NARROW = 64  # columns of a product

Linear = Callable[[str, Tensor], Tensor]


class Dense(NamedTuple):
    """A layer y = x Wᵀ + bias + scale · (x Aᵀ) Bᵀ, without ever forming W + scale · B A.

    The factors' work stays narrow: R wide, but for two products that add into what is there.
    """

    weight: Tensor  # (O, I) or (K, O, I)
    bias: Tensor | None = None  # (O,) or (K, O)
    a: Tensor | None = None  # (R, I) or (K, R, I)
    b: Tensor | None = None  # (O, R) or (K, O, R)
    scale: float = 1.0

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return y (K, N, O) and scale · x Aᵀ (K, N, R), which the factors' gradients need."""
        fused = self._in_one(x, self.bias)
        if fused is not None:
            return fused
        y = times(x, self.weight, self.bias)
        return y, self.add_factors(y, x)

    def add_factors(self, y: Tensor, x: Tensor) -> Tensor | None:
        """Add the factors' part to y (K, N, O) in place and return scale · x Aᵀ (K, N, R)."""
        if self.a is None or self.b is None:
            return None
        inner = times(x, self.a).mul_(self.scale)
        add_times(y, inner, self.b)
        return inner

    def backward(self, dy: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return the gradients by x (K, N, I) and by x Aᵀ (K, N, R)."""
        fused = self._in_one(dy, back=True)
        if fused is not None:
            return fused
        dx = times_back(dy, self.weight)
        inner = self.inner_gradient(dy)
        if inner is not None and self.a is not None:
            add_times_back(dx, inner, self.a)
        return dx, inner

    def _in_one(
        self, x: Tensor, bias: Tensor | None = None, back: bool = False
    ) -> tuple[Tensor, Tensor] | None:
        """Make the products with the weight and with both factors in one kernel, if it takes them.

        The factors' part is added while sums are in registers: alone, it waits for the memory.
        """
        a, b = self.a, self.b
        if a is None or b is None or not products.takes_factors(self.weight, a, b, x, bias):
            return None
        return products.through_layer(x, self.weight, a, b, self.scale, bias, back)

    def inner_gradient(self, dy: Tensor) -> Tensor | None:
        """Return the gradient by x Aᵀ (K, N, R), which A's gradient needs."""
        return None if self.b is None else times_back(dy, self.b).mul_(self.scale)

    def gradients(
        self,
        dy: Tensor,
        d_inner: Tensor | None,
        x: Tensor,
        inner: Tensor | None,
        needs: Sequence[bool],
    ) -> list[Tensor | None]:
        """Return the gradients by weight, bias, A and B that ``needs`` asks for.

        None in place of one that went where :func:`route_gradient` said.
        """
        gradients: list[Tensor | None] = [None] * 4
        if self._routes(dy, x, needs):
            needs = (False, False, *needs[2:])
        if needs[0]:
            gradients[0] = weight_gradient(dy, x, self.weight)
        if needs[1] and self.bias is not None:
            gradients[1] = dy.sum(1 if self.bias.dim() == 2 else (0, 1))
        if needs[2] and self.a is not None and d_inner is not None:
            gradients[2] = weight_gradient(d_inner, x, self.a)
        if needs[3] and self.b is not None and inner is not None:
            gradients[3] = weight_gradient(dy, inner, self.b)
        return gradients

    def _routes(self, dy: Tensor, x: Tensor, needs: Sequence[bool]) -> bool:
        """Add the gradients by weight and bias where they are to go; False if they cannot so."""
        weight, bias = _route(self.weight), _route(self.bias)
        if not needs[0] or weight is None or (needs[1] and bias is None):
            return False
        if not products.takes(self.weight, dy, x):
            return False
        to_bias = bias.grad_out if needs[1] and bias else None
        low = self.weight.dtype == torch.bfloat16
        products.gradient(dy, x, weight.grad_out, to_bias, weight.rate, low)
        return True


class GradientRoute(NamedTuple):
    """Where a tensor's gradient is added when it is made: grad_out += rate · gradient."""

    grad_out: Tensor
    rate: float


def route_gradient(tensor: Tensor, grad_out: Tensor, rate: float) -> None:
    """Let a layer add the gradient by its weight or bias straight to ``grad_out``.

    A layer does so if its kernel can, and tells autograd None. ``grad_out`` may be the tensor's own
    memory, since a layer has read its weights when it makes their gradients; not if two layers use
    the tensor. Weight and bias of a layer have one rate.
    """
    tensor.gradient_route = GradientRoute(grad_out, rate)  # type: ignore[attr-defined]


def add_to_route(tensor: Tensor, gradient: Tensor | None) -> Tensor | None:
    """Add a gradient where :func:`route_gradient` said and return None; else return it.

    One in float32 by a weight in bfloat16 would be rounded on its way through autograd.
    """
    route = _route(tensor)
    if route is None or gradient is None:
        return gradient
    route.grad_out.add_(gradient, alpha=route.rate)
    return None


def _route(tensor: Tensor | None) -> GradientRoute | None:
    route: GradientRoute | None = getattr(tensor, "gradient_route", None)
    return route


def layer(weights: Mapping[str, Tensor], name: str, lora: LoraSpec | None) -> Dense:
    """Collect the tensors of the dense layer ``name``: its weight, its bias, its factors if any.

    The second factor is laid out with its long side along the memory, which doubles the speed of
    the products with its narrow side.
    """
    weight, bias = weights[name], weights.get(f"{name}_bias")
    a, b = weights.get(f"{name}.lora_a"), weights.get(f"{name}.lora_b")
    if lora is None or a is None or b is None:
        return Dense(weight, bias)
    return Dense(weight, bias, a, b.mT.contiguous().mT, lora.scale)


def by_name(weights: Mapping[str, Tensor], lora: LoraSpec | None) -> Linear:
    """Return how a model applies its dense layers: name and x (K, N, I) → (K, N, O)."""
    return lambda name, x: apply(x, layer(weights, name, lora))


def apply(x: Tensor, dense: Dense) -> Tensor:
    """Return the layer's output (K, N, O) for x (K, N, I), differentiable in every tensor."""
    y: Tensor = _Layer.apply(x, *dense)
    return y


def times(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return x Wᵀ (+ bias): (K, N, I) → (K, N, O)."""
    if products.takes(weight, x, bias):
        return products.times(x, weight.mT, bias)
    one = _the_one(weight)
    if one is not None and one.dtype == x.dtype and bias is not None and bias.dim() == 1:
        return F.linear(x, one, bias)
    y = _product(x, weight.mT)
    return y if bias is None else y.add_(bias if bias.dim() == 1 else bias.unsqueeze(1))


def add_times(y: Tensor, x: Tensor, weight: Tensor) -> None:
    """Add x Wᵀ to y (K, N, O) in place."""
    one = _the_one(weight)
    if products.supports(y, x, weight) and y.stride(-1) == 1:
        products.times(x, weight.mT, None, y)
    elif weight.dtype == y.dtype and one is None:
        y.baddbmm_(x, weight.mT)
    elif weight.dtype == y.dtype and one is not None and y.is_contiguous():
        y.view(-1, y.shape[-1]).addmm_(x.reshape(-1, x.shape[-1]), one.mT)
    else:
        y.add_(_product(x, weight.mT))


def times_back(dy: Tensor, weight: Tensor) -> Tensor:
    """Return dy W, the gradient with respect to x: (K, N, O) → (K, N, I)."""
    return _product(dy, weight)


def add_times_back(dx: Tensor, dy: Tensor, weight: Tensor) -> None:
    """Add dy W to dx (K, N, I) in place."""
    add_times(dx, dy, weight.mT)


def weight_gradient(dy: Tensor, x: Tensor, weight: Tensor) -> Tensor:
    """Return dyᵀ x in the weight's shape: per device, or summed over devices if it is shared."""
    dy, x = dy.to(weight.dtype), x.to(weight.dtype)
    if weight.dim() == 2:
        dy, x = dy.reshape(1, -1, dy.shape[-1]), x.reshape(1, -1, x.shape[-1])
    # Where one side is narrow, the product with the longer output rows is the faster one.
    narrow = x.shape[-1] < min(NARROW, dy.shape[-1])
    if products.supports(dy, x):
        gradient = products.gradient(x, dy).mT if narrow else products.gradient(dy, x)
    else:
        gradient = torch.bmm(x.mT, dy).mT if narrow else torch.bmm(dy.mT, x)
    return gradient[0] if weight.dim() == 2 else gradient


def _product(x: Tensor, matrix: Tensor) -> Tensor:
    """(K, N, I) times (I, O) or (K, I, O), in the matrix's precision, returned in that of x."""
    if products.takes(matrix, x):
        return products.times(x, matrix)
    one, low = _the_one(matrix), x.to(matrix.dtype)
    if one is None:
        return torch.bmm(low, matrix).to(x.dtype)
    return F.linear(low.contiguous(), one.mT).to(x.dtype)


def _the_one(weight: Tensor) -> Tensor | None:
    """The matrix (O, I) that all devices hold, or None where theirs may differ."""
    if weight.dim() == 2:
        return weight
    return weight[0] if weight.shape[0] == 1 or weight.stride(0) == 0 else None


class _Layer(torch.autograd.Function):
    """A dense layer, its gradients per device or summed as the shapes say.

    The tensors are kept on ``ctx`` itself: training steps on weights in place once their last
    gradient is made, which autograd's own keeping would take for an error.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, *tensors: Any) -> Tensor:
        ctx.dense, ctx.x = Dense(*tensors), x
        y, ctx.inner = ctx.dense.forward(x)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        dy = dy.contiguous()
        if ctx.needs_input_grad[0]:
            dx, d_inner = ctx.dense.backward(dy)
        else:
            dx, d_inner = None, ctx.dense.inner_gradient(dy)
        needs = ctx.needs_input_grad[1:5]
        return (dx, *ctx.dense.gradients(dy, d_inner, ctx.x, ctx.inner, needs), None)
