"""Clip and round a simulation's updates on the graphics card that trained them.

The same clip, grid and check as in :mod:`pfl_lm.dp.encoding`, by torch's operations, for devices
that draw no noise of their own: the processor adds the noise to the sum. No deployment comes here.

The rounding's random bits protect nobody: whatever they are, the norm of every rounded row is
checked in whole numbers, and the noise is made for that norm. So they come from a statistical
generator that a card computes place by place (SplitMix64), with a seed from the device's own
cryptographic stream; and they are the same on every card and processor.

Source: Steele, Lea, Flood 2014, "Fast splittable pseudorandom number generators" (OOPSLA),
Section 5 and Figure 17, for SplitMix64.

Legend: K devices, R ≤ K rows rounded together, d coordinates of the payload.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pfl_lm.dp.encoding import TRIES, Clipped, clip_factors
from pfl_lm.dp.grid import Grid
from pfl_lm.dp.sampler.arrays import Doubles
from pfl_lm.dp.sampler.random_bits import RandomBits

_STEP = 0x9E3779B97F4A7C15  # of SplitMix64's counter; the next two scatter its bits
_FIRST, _SECOND = 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
_TOGETHER = 1 << 26  # coordinates rounded at a time: some 2 GB of what lies between
_DITHER_BITS = 16  # of the random number that decides a rounding, as in ``sampler.rounding``


def clip_and_round(
    updates: Tensor, grid: Grid, bits: Sequence[RandomBits]
) -> tuple[Tensor, Clipped]:
    """Clip and round the updates of K devices to the grid, where they are: float32[K, d] → (K, d).

    Args:
        updates: (K, d) in model units, on any processor of torch; left as they are.
        grid: of the round, ``grid.dim`` = d.
        bits: each device's own source; names the seed of its rounding.

    Returns:
        The vectors, in ``grid.integer``, on the same processor, and what clipping did.

    Guarantees:
        Every row's integer norm is ≤ ``grid.norm_bound``, checked in integers of 64 bits whatever
        the input; rows, retries and edge cases are those of :func:`pfl_lm.dp.encoding.protect`.
        A norm is summed in float64, in an order that the card chooses.

    Raises:
        ValueError: wrong dtype or shape; sources that are not one for each row.
    """
    if updates.dtype != torch.float32 or updates.dim() != 2 or updates.shape[1] != grid.dim:
        shape = tuple(updates.shape)
        raise ValueError(f"updates must be float32[K, {grid.dim}], got {updates.dtype}{shape}")
    if len(bits) != len(updates):
        raise ValueError(f"bits must be one source for each of {len(updates)} rows")
    lengths = torch.linalg.vector_norm(updates, dim=1, dtype=torch.float64).cpu().numpy()
    factors = clip_factors(lengths, grid.clip_norm)
    integer = torch.int32 if grid.integer.itemsize == 4 else torch.int64
    vectors = torch.zeros(updates.shape, dtype=integer, device=updates.device)
    left, together = np.flatnonzero(factors), max(1, _TOGETHER // grid.dim)
    for _ in range(TRIES):
        parts = [left[start : start + together] for start in range(0, len(left), together)]
        long = [_round(updates, factors * grid.scale, bits, part, grid, vectors) for part in parts]
        again = [part[each.cpu().numpy()] for part, each in zip(parts, long, strict=True)]
        left = np.concatenate([left[:0], *again])
    for row in left.tolist():
        _round_towards_zero(updates[row], float(factors[row]) * grid.scale, grid, vectors[row])
    return vectors, Clipped.of(lengths, factors)


def _round(
    updates: Tensor,
    factors: Doubles,
    bits: Sequence[RandomBits],
    rows: NDArray[np.int64],
    grid: Grid,
    out: Tensor,
) -> Tensor:
    """Write ⌊row·factor + (dither + ½)/2^16⌋, in float32, of R rows; return bool[R], too long."""
    place, chosen = updates.device, torch.from_numpy(rows).to(updates.device)
    seeds = b"".join(bits[row].octets(8).tobytes() for row in rows)
    words = torch.from_numpy(np.frombuffer(seeds, "<i8").copy()).to(place)
    offsets = _dithers(words, grid.dim).mul_(0.5**_DITHER_BITS).add_(0.5 ** (_DITHER_BITS + 1))
    rounded = _scaled(updates[chosen], factors[rows]).add_(offsets).floor_()
    out[chosen] = rounded.to(out.dtype)
    squares = rounded.to(torch.int64).square_().sum(1)
    return squares > grid.norm_bound_squared


def _round_towards_zero(row: Tensor, factor: float, grid: Grid, out: Tensor) -> None:
    """Write the row rounded towards zero, which lengthens nothing; zeros if it is too long yet."""
    out.copy_((row.double() * factor).trunc_())
    if int(out.to(torch.int64).square_().sum()) > grid.norm_bound_squared:
        out.zero_()


def _scaled(rows: Tensor, factors: Doubles) -> Tensor:
    """Return rows·factors, (R, d), in float32; in float64 where a factor would lose bits."""
    narrow = torch.from_numpy(factors.astype(np.float32)).to(rows.device)
    if factors.min() >= 2.0**-64:
        return rows * narrow.unsqueeze(1)
    wide = torch.from_numpy(factors).to(rows.device)
    products = (rows.double() * wide.unsqueeze(1)).float()
    return torch.where(wide.unsqueeze(1) < 2.0**-64, products, rows * narrow.unsqueeze(1))


def _dithers(seeds: Tensor, count: int) -> Tensor:
    """Return float32[R, count], whole numbers below 2^16, that SplitMix64 makes of int64[R]."""
    steps = torch.arange(1, count // 4 + 2, dtype=torch.int64, device=seeds.device)
    words = seeds.unsqueeze(1) + steps * _signed(_STEP)
    words = (words ^ _shifted(words, 30)).mul_(_signed(_FIRST))
    words = (words ^ _shifted(words, 27)).mul_(_signed(_SECOND))
    words = words ^ _shifted(words, 31)
    halves = torch.stack([words >> shift & 0xFFFF for shift in (0, 16, 32, 48)], 2)
    return halves.flatten(1)[:, :count].to(torch.float32)


def _shifted(words: Tensor, by: int) -> Tensor:
    """Shift words of 64 bits right, and zeros into them."""
    return words >> by & (1 << (64 - by)) - 1


def _signed(word: int) -> int:
    """Return the signed integer of 64 bits with the same bits."""
    return word - (1 << 64) if word >> 63 else word
