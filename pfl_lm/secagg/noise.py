"""Noise that survives dropout: add more than enough, remove what proved superfluous (XNoise).

A round is planned for n reports whose sum shall carry noise of variance V. Device i adds, beside
its share V/n, components j = 1 ... L that make up for the first dropouts, the next, and so on.
When D devices dropped out, the first ``ceil(D / step)`` components stay, and the survivors
reveal the seeds of the others, whose noise the server subtracts. With step 1 and L the tolerated
dropouts, component j has variance V / ((n - j)(n - j + 1)), and what stays is V / (n - D) per
survivor: V in all, exactly, at any D up to L.

The components hang on a chain of hashes, so one secret reveals all components from some level on
and none before it:  secret(j + 1) = H(secret(j)),  seed(j) = H'(secret(j)).

What noise is drawn from a seed is not decided here: those who add and those who remove pass the
same function ``draw(seed, variance, dim)``. A distribution closed under addition (Skellam) keeps
its shape through all of this.

Source: Jiang, Wang, Chen 2024, "Dordis: Efficient federated learning with dropout-resilient
differential privacy", EuroSys (XNoise). The chain and the steps are this project's.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pfl_lm.secagg.config import RoundConfig
from pfl_lm.secagg.packing import Integers
from pfl_lm.secagg.sharing import SECRET_BYTES
from pfl_lm.secagg.wire import LABEL

Draw = Callable[[bytes, float, int], NDArray[np.int64]]
"""``draw(seed of 32 bytes, variance, dim) -> int64[dim]``, the same for the same seed."""


@dataclass(frozen=True)
class NoisePlan:
    """The variances of a round's components.

    Args:
        variance: of the noise on the opened sum, V, in squared grid steps.
        cohort: reports for which the round is planned, n.
        levels: removable components, L; they cover ``levels * step`` dropouts.
        step: dropouts that one component covers; above 1 fewer seeds are shared, and up to
            ``step - 1`` dropouts are paid for though they did not happen.

    Raises:
        ValueError: a number outside its range, or components that cover the whole cohort.

    Guarantees:
        For every D from 0 to ``levels * step`` the sum over ``n - D`` survivors keeps variance
        ``achieved(n - D) >= variance``, with equality where ``step`` divides D.
    """

    variance: float
    cohort: int
    levels: int
    step: int = 1

    def __post_init__(self) -> None:
        if not self.variance >= 0:
            raise ValueError(f"variance must not be negative: {self.variance}")
        if self.step < 1 or self.levels < 0 or self.levels * self.step >= self.cohort:
            raise ValueError(
                f"levels x step must leave part of the cohort of {self.cohort}: "
                f"{self.levels} x {self.step}"
            )

    @classmethod
    def of(cls, config: RoundConfig, variance: float) -> NoisePlan:
        """The plan of a round that shares noise seeds."""
        return cls(variance, config.cohort, config.noise_levels, config.noise_step)

    @property
    def share(self) -> float:
        """Variance of the share that always stays."""
        return self.variance / self.cohort

    def component(self, level: int) -> float:
        """Variance of component ``level``, from 1 to ``levels``.

        Dropouts up to ``level * step`` need a share of ``V / (n - level * step)`` from each
        survivor; the component adds what the levels below it lack.
        """
        if not 1 <= level <= self.levels:
            raise ValueError(f"level must be from 1 to {self.levels}: {level}")
        now = self.cohort - level * self.step
        return self.variance * self.step / (now * (now + self.step))

    def kept(self, reports: int) -> int:
        """Components that stay when ``reports`` were summed.

        Raises:
            ValueError: more dropouts than the components cover.
        """
        level = -(-(self.cohort - reports) // self.step)
        if not 0 <= level <= self.levels:
            raise ValueError(f"{reports} reports of {self.cohort}: the noise would fall short")
        return level

    def achieved(self, reports: int) -> float:
        """Variance on the sum of ``reports`` after the others' components were removed."""
        return reports * self.variance / (self.cohort - self.kept(reports) * self.step)


@dataclass(frozen=True)
class RemovableNoise:
    """A round's components and how they are drawn: what adds them and what removes them."""

    plan: NoisePlan
    draw: Draw

    def add(self, chain: NoiseChain, vector: Integers) -> Integers:
        """Return a device's vector with its components, in the same integers; they wrap."""
        return _add_all(self.plan, [chain], vector.copy(), self.draw)

    def remove(
        self,
        config: RoundConfig,
        vector: NDArray[np.int64],
        opened: Mapping[int, bytes],
        reports: int,
    ) -> NDArray[np.int64]:
        """Return an opened sum without what proved superfluous."""
        return vector - superfluous(self.plan, config, opened, reports, self.draw)


@dataclass(frozen=True)
class NoiseChain:
    """The secrets of one device's components, from ``first``, that of level ``start``, upwards."""

    first: bytes
    context: bytes
    device: int
    levels: int
    start: int = 1

    def secrets(self) -> list[bytes]:
        """The 32-byte secrets of levels ``start`` to ``levels``."""
        chain = [self.first]
        while len(chain) <= self.levels - self.start:
            chain.append(self._hash(b"next", chain[-1]))
        return chain

    def seeds(self) -> dict[int, bytes]:
        """The seed from which each level's noise is drawn."""
        return {
            level: self._hash(b"seed", secret)
            for level, secret in enumerate(self.secrets(), start=self.start)
        }

    @property
    def commitment(self) -> bytes:
        """The end of the chain: whatever secret is revealed must lead to it."""
        return self._hash(b"next", self.secrets()[-1])

    def _hash(self, purpose: bytes, secret: bytes) -> bytes:
        header = LABEL + b"noise " + purpose + self.context
        return hashlib.sha256(header + self.device.to_bytes(4, "little") + secret).digest()

    def __repr__(self) -> str:
        return f"NoiseChain(device={self.device}, start={self.start}, levels={self.levels})"


def add_components(plan: NoisePlan, chain: NoiseChain, dim: int, draw: Draw) -> NDArray[np.int64]:
    """The removable noise that a device adds: int64[dim], all levels; not its constant share."""
    return _add_all(plan, [chain], np.zeros(dim, dtype=np.int64), draw)


def superfluous(
    plan: NoisePlan, config: RoundConfig, opened: Mapping[int, bytes], reports: int, draw: Draw
) -> NDArray[np.int64]:
    """What the server subtracts from the centred sum: int64[dim].

    Args:
        plan: the round's plan.
        config: the round.
        opened: by survivor, the secret of level ``plan.kept(reports) + 1``
            (``OpenedRound.noise_secrets``). A survivor that is missing leaves its noise in: more
            noise than stated, never less.
        reports: reports in the sum.
        draw: what the devices drew with.
    """
    start = plan.kept(reports) + 1
    chains = [
        NoiseChain(secret, config.context, device, plan.levels, start)
        for device, secret in opened.items()
    ]
    return _add_all(plan, chains, np.zeros(config.dim, dtype=np.int64), draw)


def _add_all(plan: NoisePlan, chains: list[NoiseChain], total: Integers, draw: Draw) -> Integers:
    for chain in chains:
        for level, seed in chain.seeds().items():
            total += draw(seed, plan.component(level), len(total))
    return total


assert hashlib.sha256().digest_size == SECRET_BYTES  # a link of the chain is a shared secret
