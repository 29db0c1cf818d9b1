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
from dataclasses import dataclass

import numpy as np

from pfl_lm.dp.correlated.buffers import Buffers
from pfl_lm.dp.correlated.history import History
from pfl_lm.dp.correlated.strategy import Strategy
from pfl_lm.dp.noise import add_on_lattice, lattice_step
from pfl_lm.dp.sampler.arrays import Doubles, Int64s
from pfl_lm.dp.sampler.random_bits import RandomBits

Memory = Buffers | History


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

    def begin(self, size: int) -> Memory:
        """Return the state before the first round, of D = ``size`` coordinates."""
        if self.strategy.is_banded:
            return History(size)
        return Buffers.begin(self.strategy.memory, size)

    def release(
        self,
        state: Memory,
        total: Doubles,
        *,
        round: int,
        clip_norm: float,
        noise_multiplier: float,
        bits: RandomBits,
        places: Int64s | None = None,
    ) -> tuple[Doubles, Memory]:
        """Add one round's correlated noise to a sum: float64[d], and return the state after it.

        Args:
            total: (d,) the round's sum of updates of ℓ2 norm ≤ clip_norm, which is the same
                number in every round of the stream: rounded updates are longest in the round of
                the fewest coordinates, and a later round goes on from its sum.
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
            state = state.pass_by(self.strategy, self._errors(state, 0.0)[1])
        past = state.look_back(self.strategy, self.own_time, places)
        product = total + past.sums
        step = lattice_step(clip_norm, noise_multiplier)
        off, error = self._errors(state, float(np.abs(total).max(initial=0.0)))
        if not off <= step / 2:
            raise ValueError(
                f"the sums cannot be kept to {step:.1e} by float64: errors may reach {off:.1e}"
            )
        slack = 2 * step * math.sqrt(self.rounds * state.size)
        widened = noise_multiplier * (1 + slack / (self.sensitivity * clip_norm)) * (1 + 2.0**-48)
        noisy = add_on_lattice(product, step, widened * clip_norm / step, bits)
        mean = noisy - past.released
        pair = (product, noisy) if self.strategy.remembers_products else (total, mean)
        after = state.remember(self.strategy, self.own_time, round, places, pair, past, error)
        return mean, after

    def _check(self, state: Memory, total: Doubles, round: int, noise_multiplier: float) -> None:
        if not 0 <= round < self.rounds:
            raise ValueError(f"the stream was planned for {self.rounds} rounds; {round} is none")
        if round < state.round:
            raise ValueError(f"round {round} has had its noise: the stream is at {state.round}")
        if not (0 < noise_multiplier < math.inf and 0 < self.sensitivity < math.inf):
            raise ValueError("noise_multiplier and sensitivity must be positive and finite")
        if not np.isfinite(total).all():
            raise ValueError("the sum must be finite")

    def _errors(self, state: Memory, new: float) -> tuple[float, float]:
        """Bound the rounding errors of a round's product, and of the sums remembered after it.

        An operation of float64 is off by 2^-53 of its result; each bound here has twice that.

        Args:
            new: the largest coordinate of the round's sum.
        """
        strategy = self.strategy
        if not strategy.memory:
            return 0.0, 0.0
        gain, old = float(np.abs(strategy.weights).sum()), state.largest
        off = gain * state.error + (strategy.memory + 1) * 2.0**-52 * (new + gain * old)
        after = off if strategy.remembers_products else 0.0
        if strategy.kind == "blt":
            after = max(strategy.decays) * state.error + 2.0**-52 * (new + 2 * old)
        return off, max(after, state.error)
