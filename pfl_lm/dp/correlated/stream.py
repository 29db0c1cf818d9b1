"""Correlated noise as a stream: each round's sum in, the noisy sum out, a small state between.

Round t computes y_t = ⌊(Cx)_t⌉ + z_t: the product is rounded to a lattice and discrete Gaussian
noise on that lattice is added. It releases x̂_t = (C⁻¹y)_t, a function of y alone.

**Which time a coordinate's sequence runs in.** A coordinate may stay at home in some rounds, and a
round may release nothing. A public schedule decides the first, and the second is public.

* Where a user is in several rounds, sequences run in the time of rounds. A round in which a
  coordinate has no release strikes its row and its column from the C of that coordinate: the
  memory decays or shifts as if 0 had been summed and 0 released.
* Where nobody is in two rounds, a sequence runs in its own time: it counts the coordinate's own
  releases. The noise then cancels in what the coordinate itself adds up, however rarely it travels.

Legend: D coordinates that ever travel, d of them in this round; m values of each are remembered.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass

import numpy as np

from pfl_lm.dp.correlated.strategy import Strategy
from pfl_lm.dp.noise import add_on_lattice, lattice_step
from pfl_lm.dp.sampler.arrays import Doubles, Int64s
from pfl_lm.dp.sampler.random_bits import RandomBits

_HEAD = struct.Struct("<8sQQQd")  # magic, m, D, round, error
_MAGIC = b"pfl-lm s"


@dataclass(frozen=True)
class StreamState:
    """What a stream remembers of its past.

    Attributes:
        sums: float64[m, D], SECRET: of the true sums (or of C times them), without noise.
        released: float64[m, D], the same of what was released.
        round: the next round that the stream may have.
        error: bound on the rounding errors in ``sums``, in units of the sums.
    """

    sums: Doubles
    released: Doubles
    round: int = 0
    error: float = 0.0

    @classmethod
    def begin(cls, memory: int, size: int) -> StreamState:
        """Return the state before the first round, of D = ``size`` coordinates."""
        return cls(np.zeros((memory, size)), np.zeros((memory, size)))

    def to_bytes(self) -> bytes:
        """Return the state as bytes; SECRET."""
        head = _HEAD.pack(_MAGIC, *self.sums.shape, self.round, self.error)
        return b"".join((head, self.sums.tobytes(), self.released.tobytes()))

    @classmethod
    def from_bytes(cls, content: bytes) -> StreamState:
        """Read what :meth:`to_bytes` wrote.

        Raises:
            ValueError: it is no state of a stream.
        """
        if content[: len(_MAGIC)] != _MAGIC or len(content) < _HEAD.size:
            raise ValueError("this is no state of correlated noise")
        _, memory, size, round, error = _HEAD.unpack_from(content)
        if len(content) != _HEAD.size + 16 * memory * size:
            raise ValueError("the state of the correlated noise is damaged: it was cut off")
        values = np.frombuffer(content, np.float64, offset=_HEAD.size).reshape(2, memory, size)
        return cls(values[0], values[1], round, error)


@dataclass(frozen=True)
class Stream:
    """The numbers of a stream that stay the same from round to round.

    Attributes:
        strategy: the matrix C.
        rounds: the most that the stream will ever have; the rounding to the lattice is paid for
            in each of them.
        sensitivity: of C at clip norm 1, for the rounds that a user may be in.
        own_time: coordinates count their own releases; only where nobody is in two rounds.
    """

    strategy: Strategy
    rounds: int
    sensitivity: float
    own_time: bool

    def release(
        self,
        state: StreamState,
        total: Doubles,
        *,
        round: int,
        clip_norm: float,
        noise_multiplier: float,
        bits: RandomBits,
        places: Int64s | None = None,
    ) -> tuple[Doubles, StreamState]:
        """Add one round's correlated noise to a sum: float64[d], and return the state after it.

        Args:
            total: (d,) the round's sum of updates of ℓ2 norm ≤ clip_norm, which is the same
                number in every round of the stream.
            round: its number; rounds between the state's and this one have released nothing.
            noise_multiplier: stddev of z ÷ clip_norm, above 0.
            places: int64[d], which of the D coordinates travel; None: all, in order.

        Guarantees:
            The whole stream costs at most what one release of Gaussian noise at multiplier
            ``noise_multiplier`` ÷ ``sensitivity`` costs, also when each sum depends on what was
            released before. What is released is computed from y alone, to the last bit. Proof:

            1. Let Δ[t, i] be by how much a user moves coordinate i in round t; ‖Δ[t]‖ ≤ clip_norm,
               and Δ[t] = 0 but for the rounds that the user may be in. Let C_i be the matrix of
               coordinate i. The centres of two neighbouring streams differ by Σ_i ‖C_i·Δ[:, i]‖²
               squared, before rounding.
            2. In the time of rounds C_i is C less some rows and the same columns, which are those
               in which coordinate i has no release, so Δ is 0 there: ‖C_i·Δ[:, i]‖ ≤ ‖C·Δ[:, i]‖,
               and the sum over i is at most ‖CΔ‖² ≤ (sensitivity·clip_norm)², whatever the
               schedule is and whichever rounds are lost. The one clip over all coordinates is
               what bounds the sum.
            3. In own time a user is in one round t, and moves coordinate i by Δ[t, i] at its s_i-th
               release: ‖C[:, s_i]‖² ≤ ‖c‖², so the sum is at most ‖c‖²·‖Δ[t]‖².
            4. Rounding to the lattice and the errors of float64, which are bounded as they arise,
               move each of at most rounds·D centres by less than a lattice step in each stream; the
               noise is widened by (sensitivity·clip_norm + 2·step·√(rounds·D)) ÷
               (sensitivity·clip_norm).
            5. Given the past, y_t is a discrete Gaussian around a centre. Releases that are chosen
               adaptively, of one total sensitivity, compose like one release.
            6. That holds for Rényi divergences of every order. What the exact (ε, δ) curve of the
               Gaussian needs beside it is in ``accounting.lattice``.

        Raises:
            ValueError: a sum that is not finite; a round outside the plan, or before the state's;
                sums so large that float64 cannot hold them to half a lattice step.

        Source: Denisov et al. 2022 (arXiv:2202.08312), Theorem 2.1, for adaptive streams;
        Whitehouse et al. 2023 (arXiv:2203.05481) for zCDP of adaptively chosen releases; Canonne,
        Kamath, Steinke 2020 (arXiv:2004.00010), Theorem 7, for the discrete Gaussian.
        """
        self._check(state, total, round, noise_multiplier)
        while not self.own_time and state.round < round:
            state = self._passed_by(state)
        here: Int64s | slice = slice(None) if places is None else places
        weights, size = np.array(self.strategy.weights), state.sums.shape[1]
        sums, released = state.sums[:, here], state.released[:, here]
        product = total + weights @ sums
        step = lattice_step(clip_norm, noise_multiplier)
        off, error = self._errors(state, float(np.abs(total).max(initial=0.0)))
        if not off <= step / 2:
            raise ValueError(
                f"the sums cannot be kept to {step:.1e} by float64: errors may reach {off:.1e}"
            )
        slack = 2 * step * math.sqrt(self.rounds * size)
        widened = noise_multiplier * (1 + slack / (self.sensitivity * clip_norm)) * (1 + 2.0**-48)
        noisy = add_on_lattice(product, step, widened * clip_norm / step, bits)
        mean = noisy - weights @ released
        pair = (product, noisy) if self.strategy.remembers_products else (total, mean)
        before = state if self.own_time or places is None else self._passed_by(state)
        after = [_placed(memory, here, _remember(self.strategy, past, value))
                 for memory, past, value in ((before.sums, sums, pair[0]),
                                             (before.released, released, pair[1]))]  # fmt: skip
        return mean, StreamState(after[0], after[1], round + 1, max(error, state.error))

    def _check(
        self, state: StreamState, total: Doubles, round: int, noise_multiplier: float
    ) -> None:
        if not 0 <= round < self.rounds:
            raise ValueError(f"the stream was planned for {self.rounds} rounds; {round} is none")
        if round < state.round:
            raise ValueError(f"round {round} has had its noise: the stream is at {state.round}")
        if not (0 < noise_multiplier < math.inf and 0 < self.sensitivity < math.inf):
            raise ValueError("noise_multiplier and sensitivity must be positive and finite")
        if not np.isfinite(total).all():
            raise ValueError("the sum must be finite")

    def _passed_by(self, state: StreamState) -> StreamState:
        """Return the state after a round that released nothing: 0 was summed, 0 released."""
        _, error = self._errors(state, 0.0)
        weights, memories = np.array(self.strategy.weights), (state.sums, state.released)
        products = self.strategy.remembers_products
        sums, released = (
            _remember(self.strategy, m, weights @ m if products else np.zeros(m.shape[1]))
            for m in memories
        )
        return StreamState(sums, released, state.round + 1, max(error, state.error))

    def _errors(self, state: StreamState, new: float) -> tuple[float, float]:
        """Bound the rounding errors of a round's product, and of the sums remembered after it.

        An operation of float64 is off by 2^-53 of its result; each bound here has twice that.

        Args:
            new: the largest coordinate of the round's sum.
        """
        strategy = self.strategy
        if not strategy.memory:
            return 0.0, 0.0
        gain = float(np.abs(strategy.weights).sum())
        old = float(np.abs(state.sums).max(initial=0.0))
        off = gain * state.error + (strategy.memory + 1) * 2.0**-52 * (new + gain * old)
        if strategy.kind == "blt":
            return off, max(strategy.decays) * state.error + 2.0**-52 * (new + 2 * old)
        return off, max(off, state.error) if strategy.remembers_products else 0.0


def _remember(strategy: Strategy, memory: Doubles, value: Doubles) -> Doubles:
    """Return the memory after one more value: decayed and added to, or shifted by one."""
    if strategy.kind == "blt":
        return np.array(strategy.decays)[:, None] * memory + value
    return np.concatenate([value[None], memory[:-1]]) if len(memory) else memory


def _placed(memory: Doubles, here: Int64s | slice, values: Doubles) -> Doubles:
    """Return the memory with ``values`` at the coordinates that travelled."""
    if isinstance(here, slice):
        return values
    placed = memory.copy()
    placed[:, here] = values
    return placed
