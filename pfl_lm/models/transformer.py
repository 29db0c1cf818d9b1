"""A causal pre-norm transformer for K devices at once.

Legend: K devices, B windows, T tokens, D width, N = B · T rows of a device, h heads, e = D / h.

Source: pre-norm, Xiong et al. 2020 (arXiv:2002.04745), figure 1b; GELU, Hendrycks and Gimpel 2016
(arXiv:1606.08415), the exact form; rotary positions, Su et al. 2021 (arXiv:2104.09864), eq. 34.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from pfl_lm.models import dense
from pfl_lm.models.body import Body
from pfl_lm.models.compiled import block
from pfl_lm.models.dense import Linear
from pfl_lm.models.spec import ModelSpec, Role


def roles(spec: ModelSpec) -> dict[str, Role]:
    """Name the parameters between embedding and output, in order, with their shapes."""
    width, inner = spec.embedding_dim, spec.feedforward_dim
    named: dict[str, Role] = {}
    if spec.positions == "learned":
        named["positions"] = Role("dense", (spec.context, width))
    for number in range(spec.layers):
        block = f"block{number}"
        named |= _norm(f"{block}.attention_norm", width)
        named |= _dense(f"{block}.attention", 3 * width, width)
        named |= _dense(f"{block}.attention_out", width, width)
        named |= _norm(f"{block}.feedforward_norm", width)
        named |= _dense(f"{block}.feedforward_in", inner, width)
        named |= _dense(f"{block}.feedforward_out", width, inner)
    return named | _norm("final_norm", width)


def hidden(
    spec: ModelSpec,
    weights: Mapping[str, Tensor],
    embedded: Tensor,
    linear: Linear | None = None,
) -> Tensor:
    """Run the blocks over windows: (K, B, T, D) → (K, B, T, D).

    Args:
        linear: how a dense layer is applied; a caller that watches the layers passes its own.

    Raises:
        ValueError: the windows are longer than the model's context.
    """
    x = embedded
    for stage in stages(spec, weights, embedded.shape, linear):
        x = stage(x)
    return x


def stages(
    spec: ModelSpec,
    weights: Mapping[str, Tensor],
    shape: Sequence[int],
    linear: Linear | None = None,
) -> list[Callable[[Tensor], Tensor]]:
    """Return the model as functions to be applied one after another: entry, blocks, exit.

    Args:
        shape: (K, B, T, D) of the embedded words.

    Raises:
        ValueError: the windows are longer than the model's context.
    """
    devices, windows, length, width = shape
    if length > spec.context:
        raise ValueError(f"windows of {length} tokens; the model's context is {spec.context}")

    def enter(embedded: Tensor) -> Tensor:
        x = embedded
        if spec.positions == "learned":
            positions = weights["positions"]  # (context, D) or (K, context, D)
            x = x + positions[..., :length, :].reshape(-1, 1, length, width)
        return x.reshape(devices, windows * length, width)  # (K, N, D)

    def leave(x: Tensor) -> Tensor:
        return _normalise(weights, "final_norm", x).view(devices, windows, length, width)

    def pass_block(number: int) -> Callable[[Tensor], Tensor]:
        name = f"block{number}"
        return lambda x: _block(spec, weights, name, x, (windows, length), linear)

    return [enter, *(pass_block(number) for number in range(spec.layers)), leave]


def _block(
    spec: ModelSpec,
    weights: Mapping[str, Tensor],
    name: str,
    x: Tensor,
    shape: tuple[int, int],
    linear: Linear | None,
) -> Tensor:
    """Pass (K, N, D) through a block; in C unless a caller watches its layers."""
    around = ("attention_norm", "feedforward_norm")
    norms = [(weights[f"{name}.{n}_gain"], weights[f"{name}.{n}_bias"]) for n in around]
    parts = ("attention", "attention_out", "feedforward_in", "feedforward_out")
    layers = [dense.layer(weights, f"{name}.{part}", spec.lora) for part in parts]
    held = [tensor for pair in norms for tensor in pair]
    if linear is not None or not block.supports(x, *held, *layers):
        return _block_in_torch(
            spec, weights, name, x, shape, linear or dense.by_name(weights, spec.lora)
        )
    about = block.Shape(*shape, spec.heads, spec.activation == "gelu")
    if spec.positions == "rotary":
        cos, sin = _turns(shape[1], spec.embedding_dim // spec.heads // 2, x)
        about = about._replace(cos=cos, sin=sin)
    return block.apply(x, about, norms, layers)


def _block_in_torch(
    spec: ModelSpec,
    weights: Mapping[str, Tensor],
    name: str,
    x: Tensor,
    shape: tuple[int, int],
    linear: Linear,
) -> Tensor:
    normal = _normalise(weights, f"{name}.attention_norm", x)
    mixed = _attend(spec, linear(f"{name}.attention", normal), shape)
    x = x + linear(f"{name}.attention_out", mixed)
    inner = linear(f"{name}.feedforward_in", _normalise(weights, f"{name}.feedforward_norm", x))
    inner = F.gelu(inner) if spec.activation == "gelu" else F.relu(inner)
    return x + linear(f"{name}.feedforward_out", inner)


def _attend(spec: ModelSpec, projected: Tensor, shape: tuple[int, int]) -> Tensor:
    """Causal attention: queries, keys and values (K, N, 3D) → (K, N, D).

    At a keyboard's window lengths two small batched products beat the fused kernels.
    """
    devices, rows, _ = projected.shape
    windows, length = shape
    heads, each = spec.heads, spec.embedding_dim // spec.heads
    split = projected.view(devices * windows, length, 3, heads, each)
    split = split.permute(2, 0, 3, 1, 4)  # (3, K·B, h, T, e)
    q, k, v = split.reshape(3, devices * windows * heads, length, each).unbind(0)
    if spec.positions == "rotary":
        q, k = _rotate(q), _rotate(k)
    ahead = torch.full((length, length), -math.inf, dtype=q.dtype, device=q.device).triu_(1)
    attention = torch.baddbmm(ahead, q, k.mT, alpha=each**-0.5).softmax(-1)
    mixed = torch.bmm(attention, v).view(devices * windows, heads, length, each)
    return mixed.transpose(1, 2).reshape(devices, rows, spec.embedding_dim)


def _rotate(x: Tensor) -> Tensor:
    """Turn each pair of coordinates of (…, T, e) by an angle proportional to the position."""
    length, each = x.shape[-2:]
    half = each // 2
    first, second = x[..., :half], x[..., half:]
    cos, sin = _turns(length, half, x)
    return torch.cat([first * cos - second * sin, first * sin + second * cos], -1)


def _turns(length: int, half: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """Cosines and sines (T, e / 2) of the angles."""
    speeds = 10_000.0 ** (-torch.arange(half, dtype=like.dtype, device=like.device) / half)
    angles = torch.arange(length, dtype=like.dtype, device=like.device)[:, None] * speeds
    return angles.cos(), angles.sin()


def _normalise(weights: Mapping[str, Tensor], name: str, x: Tensor) -> Tensor:
    """Layer norm of (K, N, D) with gain and bias shared or per device."""
    gain, bias = weights[f"{name}_gain"], weights[f"{name}_bias"]
    if gain.dim() == 1 and bias.dim() == 1:
        return F.layer_norm(x, (x.shape[-1],), gain, bias)
    width = x.shape[-1]
    return torch.addcmul(
        bias.reshape(-1, 1, width), F.layer_norm(x, (width,)), gain.reshape(-1, 1, width)
    )


def _norm(name: str, width: int) -> dict[str, Role]:
    return {f"{name}_gain": Role("dense", (width,)), f"{name}_bias": Role("bias", (width,))}


def _dense(name: str, rows: int, columns: int) -> dict[str, Role]:
    return {name: Role("dense", (rows, columns)), f"{name}_bias": Role("bias", (rows,))}


class Transformer(Body):
    """The transformer family, as a model's body."""

    family = "transformer"
    in_blocks = True

    def roles(self, spec: ModelSpec) -> dict[str, Role]:
        return roles(spec)

    def hidden(self, spec: ModelSpec, weights: Mapping[str, Tensor], embedded: Tensor) -> Tensor:
        return hidden(spec, weights, embedded)

    def longest_window(self, spec: ModelSpec) -> int:
        return spec.context

    def inner_dim(self, spec: ModelSpec) -> int:
        return spec.feedforward_dim

    def kept_dim(self, spec: ModelSpec) -> int:
        return 2 * spec.embedding_dim + spec.feedforward_dim  # as compiled blocks keep it

    def heads(self, spec: ModelSpec) -> int:
        return spec.heads
