"""The interface of a kind of noise, and what a kind that the server adds is given of a round."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Literal

from pfl_lm.dp.encoding import decode
from pfl_lm.dp.events import RoundEvent
from pfl_lm.dp.grid import Grid
from pfl_lm.dp.noise import NoiseShare
from pfl_lm.dp.sampler.arrays import Doubles, Int64s, Updates
from pfl_lm.dp.sampler.pmf import Kind
from pfl_lm.dp.sampler.random_bits import RandomBits

Place = Literal["device", "server", "none"]


@dataclass(frozen=True)
class Opened:
    """An opened sum, as a mechanism that adds noise at the server needs it.

    Attributes:
        total: int64[d], on the grid.
        divisor: the public number that the sum is divided by.
        noise_multiplier: stddev of the noise on the sum ÷ clip_norm.
        bits: where the noise comes from; used in this round alone.
        round: its number.
        places: int64[d], where the coordinates stand among all that ever travel; None: all do.
        size: how many coordinates ever travel.
        clip_ratio: the round's clip norm ÷ that of round 0. A stream of correlated noise runs in
            units of the round's clip norm, so that it need not begin again when that moves.
        fewest: coordinates of the smallest sum of any round, by which a stream is noised alike in
            all of them; 0: the noise is this round's own.
    """

    total: Int64s
    grid: Grid
    divisor: int
    noise_multiplier: float
    bits: RandomBits
    round: int
    places: Int64s | None = None
    size: int = 0
    clip_ratio: float = 1.0
    fewest: int = 0

    @property
    def in_model_units(self) -> Doubles:
        """The sum as float64[d]."""
        total: Doubles = self.total / self.grid.scale
        return total

    @property
    def sensitivity(self) -> float:
        """By how much one device may move the sum, in model units; with ``fewest``, that of any
        round at this clip norm.

        Rounding to the grid lengthens an update, and one of few coordinates by more: this is what
        may really be summed.
        """
        grid = replace(self.grid, dim=self.fewest) if self.fewest else self.grid
        return grid.norm_bound / grid.scale


class Mechanism:
    """A kind of noise: what a round of it costs, how it is added, and how it is described.

    Attributes:
        name: in policies, events and ledgers.
        place: who adds it.
        label: in a sentence: "… carries LABEL noise of …".
        assumption: what the accounting of its rounds takes for granted.
        distribution: of a device's share, for the sampler; None where devices add nothing.
        closed_under_sums: the sum of independent shares is noise of the same kind. A simulation
            may then draw the shares of a cohort at once, and components can be removed from a sum.
        stateful: the noise of a round depends on that of earlier rounds. The state that
            :meth:`mean` returns is then never empty; it opens past sums and is kept secret
            (``run.noise_state``). The ledger publishes its digest, so it must hold 256 random bits
            that nothing else tells. It may have parts (``dp.secret_state``), each written once.
        initial_state: what :meth:`mean` is given in the first round.
    """

    name: ClassVar[str]
    place: ClassVar[Place]
    label: ClassVar[str] = ""
    assumption: ClassVar[str] = ""
    distribution: ClassVar[Kind | None] = None
    closed_under_sums: ClassVar[bool] = False
    stateful: ClassVar[bool] = False
    initial_state: bytes = b""

    def for_rounds(self, rounds: int, min_separation: int, participations: int) -> Mechanism:
        """Return the mechanism with the numbers that follow from these; itself where none do.

        Args:
            rounds: of the run.
            min_separation: rounds from one participation of a user to the next, at the least.
            participations: of one user, at the most.
        """
        return self

    def event(self, event: RoundEvent, dim: int, grid_steps: float, shares: int) -> RoundEvent:
        """Complete the event of a round by what this kind is accounted for with.

        Args:
            event: with the noise multiplier, the sampling and the round.
            dim: coordinates on the grid.
            grid_steps: the clip is grid_steps·√dim grid units long.
            shares: honest shares in the sum.
        """
        return event

    def check_share(self, deviation: float) -> None:
        """Refuse a device's share that this kind has no proof for.

        Args:
            deviation: standard deviation of the share, in grid steps.
        """

    def share(self, variance: float) -> NoiseShare | None:
        """Return what one device adds, of a variance in squared grid steps; None for nothing."""
        return None if self.distribution is None else NoiseShare(self.distribution, variance)

    def mean(self, opened: Opened, state: bytes) -> tuple[Updates, bytes]:
        """Decode a sum into the noisy mean, with the noise that the server adds.

        Args:
            state: what the round before returned.

        Returns:
            float32[d], and the state for the next round.
        """
        return decode(opened.total, opened.grid, opened.divisor), state

    def spread(self, round: int) -> float:
        """Return stddev of the noise on one round's sum ÷ that of the multiplier, as a figure."""
        return 1.0

    def drawn(self, separately: bool) -> str:
        """Say who draws the noise in a run, in the words of its manifest.

        Args:
            separately: every device draws its own share, as the protocol needs it.
        """
        return "by the server, on the sum" if self.place == "server" else "not at all"
