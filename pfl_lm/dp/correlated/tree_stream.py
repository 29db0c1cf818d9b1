"""The binary tree as a stream: the reference that other strategies are compared with.

Round t completes the dyadic intervals that end with it. The one whose length is the largest power
of two in t + 1 belongs to the prefix sum of t + 1 rounds: its sum gets fresh noise. What is
released is the difference to the prefix sum that was released last.

Legend: D coordinates; L levels, intervals of 2^l rounds.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass

import numpy as np

from pfl_lm.dp.noise import add_on_lattice, lattice_step
from pfl_lm.dp.sampler.arrays import Doubles
from pfl_lm.dp.sampler.random_bits import RandomBits

_HEAD = struct.Struct("<8sQQQd")  # magic, L, D, round, error
_MAGIC = b"pfl-lm t"


@dataclass(frozen=True)
class TreeState:
    """What a tree remembers.

    Attributes:
        sums: float64[L, D], SECRET: of the rounds since each level's last complete interval.
        noisy: float64[L, D], the noisy sums of the intervals that make up the present prefix.
        prefix: float64[D], the prefix sum that was released last.
        round: the next round that the tree may have.
        error: bound on the rounding errors in ``sums``.
    """

    sums: Doubles
    noisy: Doubles
    prefix: Doubles
    round: int = 0
    error: float = 0.0

    @classmethod
    def begin(cls, rounds: int, size: int) -> TreeState:
        """Return the state before the first of ``rounds`` rounds, of D = ``size`` coordinates."""
        shape = (rounds.bit_length(), size)
        return cls(np.zeros(shape), np.zeros(shape), np.zeros(size))

    def to_bytes(self) -> bytes:
        """Return the state as bytes; SECRET."""
        head = _HEAD.pack(_MAGIC, *self.sums.shape, self.round, self.error)
        return b"".join((head, *(a.tobytes() for a in (self.sums, self.noisy, self.prefix))))

    @classmethod
    def from_bytes(cls, content: bytes) -> TreeState:
        """Read what :meth:`to_bytes` wrote.

        Raises:
            ValueError: it is no state of a tree.
        """
        if content[: len(_MAGIC)] != _MAGIC or len(content) < _HEAD.size:
            raise ValueError("this is no state of tree-correlated noise")
        _, levels, size, round, error = _HEAD.unpack_from(content)
        if len(content) != _HEAD.size + 8 * (2 * levels + 1) * size:
            raise ValueError("the state of the tree-correlated noise is damaged: it was cut off")
        rows = np.frombuffer(content, np.float64, offset=_HEAD.size).reshape(-1, size)
        return cls(rows[:levels], rows[levels : 2 * levels], rows[-1], round, error)


def release(
    state: TreeState,
    total: Doubles,
    *,
    round: int,
    rounds: int,
    sensitivity: float,
    clip_norm: float,
    noise_multiplier: float,
    bits: RandomBits,
) -> tuple[Doubles, TreeState]:
    """Add one round's tree noise to a sum: float64[D], and return the state after it.

    Args:
        total: (D,) the round's sum of updates of ℓ2 norm ≤ clip_norm.
        round: its number; rounds between the state's and this one have summed nothing.
        rounds: that the tree was planned for.
        sensitivity: of the tree at clip norm 1.
        noise_multiplier: stddev of a node's noise ÷ clip_norm, above 0.

    Guarantees:
        The whole tree costs at most one Gaussian release at ``noise_multiplier`` ÷
        ``sensitivity``: only left children and the longest intervals are ever noised, which are
        some of the nodes that the sensitivity counts. Rounding is paid for as in ``stream``.

    Raises:
        ValueError: as :meth:`pfl_lm.dp.correlated.stream.Stream.release`.
    """
    if not state.round <= round < rounds:
        raise ValueError(f"round {round} is none of the tree's: it is at {state.round} of {rounds}")
    if not (0 < noise_multiplier < math.inf and 0 < sensitivity < math.inf):
        raise ValueError("noise_multiplier and sensitivity must be positive and finite")
    if not np.isfinite(total).all():
        raise ValueError("the sum must be finite")
    step = lattice_step(clip_norm, noise_multiplier)
    slack = 2 * step * math.sqrt(rounds * len(total))
    widened = noise_multiplier * (1 + slack / (sensitivity * clip_norm)) * (1 + 2.0**-48)
    deviation = widened * clip_norm / step
    sums, noisy, error = state.sums.copy(), state.noisy.copy(), state.error
    for number in range(state.round, round + 1):
        if number == round:
            sums += total
        error += 2.0**-52 * float(np.abs(sums).max(initial=0.0))
        if not error <= step / 2:
            raise ValueError(
                f"the sums cannot be kept to {step:.1e} by float64: errors may reach {error:.1e}"
            )
        complete = number + 1
        level = (complete & -complete).bit_length() - 1
        noisy[level] = add_on_lattice(sums[level], step, deviation, bits)
        noisy[:level] = 0.0
        sums[: level + 1] = 0.0
    prefix = noisy.sum(axis=0)
    return prefix - state.prefix, TreeState(sums, noisy, prefix, round + 1, error)
