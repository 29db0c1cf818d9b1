"""Frozen weights in few bits, as a small phone holds them while it trains what travels.

Every row of a matrix (and every word of a table) is rounded to a grid of its own: with b bits to
whole multiples of its largest magnitude ÷ (2^(b−1) − 1); with one bit to its mean magnitude with
the weight's sign. What travels is held in float32, as ever: under LoRA the factors, with partial
rows the round's rows. Where a matrix itself travels, its products use the rounded values, and its
gradient (or its move in a forward pass) goes to the values behind them (straight through). Training
along directions multiplies by the values that it moves, in float32.

The simulation computes with the rounded values in float32, which is what a kernel that unpacks
them computes; ``bytes_of`` says what they take on a phone.

Source: LoRA over a quantised model, Dettmers et al. 2023 (arXiv:2305.14314), section 3, with a
uniform grid in place of theirs; binary weights with a scale, Rastegari et al. 2016 (XNOR-Net,
arXiv:1603.05279), equation 6; straight-through, Bengio et al. 2013 (arXiv:1308.3432).
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from pfl_lm.models.lora import is_layer
from pfl_lm.models.spec import Parameters, Role

BITS = (1, 4, 8)
_SCALE_BYTES = 2  # a half-precision scale for each row


def rounded(values: Tensor, bits: int) -> Tensor:
    """Round each row of (…, O, I) to ``bits`` bits, float32; rows of zeros stay.

    Raises:
        ValueError: a number of bits that is not offered.
    """
    if bits not in BITS:
        raise ValueError(f"weight_bits = {bits}: must be one of {', '.join(map(str, BITS))}")
    if bits == 1:
        return torch.where(values >= 0, 1.0, -1.0) * values.abs().mean(-1, keepdim=True)
    steps = 2 ** (bits - 1) - 1
    scale = values.abs().amax(-1, keepdim=True).div_(steps).clamp_min_(torch.finfo().tiny)
    return torch.round(values / scale).clamp_(-steps, steps).mul_(scale)


def rounds(name: str, role: Role) -> bool:
    """Whether a parameter is held in few bits: matrices and word tables, not biases or factors."""
    return len(role.shape) == 2 and (role.kind == "rows" or is_layer(name, role))


def as_used(name: str, role: Role, values: Tensor, bits: int | None) -> Tensor:
    """Return a parameter (…) as products use it: rounded to ``bits`` if it is held so."""
    return values if bits is None or not rounds(name, role) else rounded(values, bits)


def round_model(
    parameters: Mapping[str, Tensor], roles: Mapping[str, Role], bits: int
) -> Parameters:
    """Return the model as a phone holds it; the inputs are left as they are."""
    return {
        name: rounded(parameters[name], bits) if rounds(name, role) else parameters[name]
        for name, role in roles.items()
    }


def bytes_of(roles: Mapping[str, Role], bits: int | None) -> int:
    """Return the bytes that the model takes on a phone; None: all of it float32."""
    total = 0
    for name, role in roles.items():
        size = 1
        for length in role.shape:
            size *= length
        if bits is not None and rounds(name, role):
            total += -(-size * bits // 8) + _SCALE_BYTES * role.shape[0]
        else:
            total += 4 * size
    return total
