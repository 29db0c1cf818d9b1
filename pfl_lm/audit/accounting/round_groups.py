"""What was released, in the auditor's own words: rounds that cost one user alike.

Nothing here is taken from ``pfl_lm.dp``: an audit that called the accountant it audits would
repeat its mistakes.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import groupby

from scipy import stats

from pfl_lm.validate import at_least, one_of, within

MECHANISMS = ("gaussian", "skellam", "discrete_gaussian", "none")
SAMPLINGS = ("none", "poisson", "fixed")
NEIGHBORING = ("zero_out", "add_remove", "replace_one")
_LEAST, _MOST = 1e-100, 1e100  # of what is squared: doubles end at 1e-308 and 1e308


@dataclass(frozen=True)
class RoundGroup:
    """Rounds that cost one user alike.

    Attributes:
        mechanism: ``gaussian`` | ``skellam`` | ``discrete_gaussian`` | ``none``.
        neighboring: ``zero_out`` | ``add_remove`` | ``replace_one``.
        sampling: ``none`` (the user is in every round counted) | ``poisson`` | ``fixed``.
        noise_multiplier: stddev of the noise on the SUM ÷ clip_norm, honest shares only.
        rounds: how many of them touch one user.
        rate: chance to be in a round (Poisson), or cohort ÷ population (fixed).
        population: users who may take part.
        least_reports: a round with fewer is not opened; 0 where every round is.
        most_reports: a Poisson cohort is cut to so many; 0 where it is not, as it should be.
        dim: coordinates on the integer grid (discrete noise).
        grid_steps: the clip is grid_steps·√dim grid units long (discrete noise).
        shares: honest shares in the sum (discrete Gaussian).
    """

    mechanism: str
    neighboring: str
    sampling: str
    noise_multiplier: float
    rounds: int
    rate: float = 1.0
    population: int = 0
    least_reports: int = 0
    most_reports: int = 0
    dim: int = 1
    grid_steps: float = 8.0
    shares: int = 1

    def __post_init__(self) -> None:
        one_of(MECHANISMS, mechanism=self.mechanism)
        one_of(NEIGHBORING, neighboring=self.neighboring)
        one_of(SAMPLINGS, sampling=self.sampling)
        if self.noise_multiplier:
            within(_LEAST, _MOST, noise_multiplier=self.noise_multiplier)
        if self.rate:
            within(_LEAST, 1, rate=self.rate)
        within(_LEAST, _MOST, grid_steps=self.grid_steps)
        at_least(0, rounds=self.rounds)
        at_least(1, dim=self.dim)

    @property
    def sensitivity(self) -> int:
        """Clip norms by which one user moves the sum of a round that he is known to be in."""
        return 2 if self.neighboring == "replace_one" or self._is_displaced else 1

    @property
    def _is_displaced(self) -> bool:
        """Whether another user takes the place of one who is removed.

        So it is in a cohort of fixed size, and in a Poisson cohort that is cut.
        """
        may_be = self.sampling == "fixed" or self.most_reports > 0
        return self.neighboring == "add_remove" and may_be

    @property
    def is_sampled(self) -> bool:
        return self.sampling != "none" and self.rate < 1

    @property
    def pivotal(self) -> float:
        """Chance that one Poisson coin decides whether the round is opened; it is charged to δ."""
        if self.sampling != "poisson" or self.least_reports < 1:
            return 0.0
        at = self.least_reports - 1
        return float(stats.binom.pmf(at, self.population - 1, self.rate))

    def seen_by_server(self) -> RoundGroup:
        """Return the group for one who knows in which rounds the user was: no sampling helps."""
        sampling = "fixed" if self._is_displaced else "none"
        return replace(self, sampling=sampling, rate=1.0, most_reports=0)


def coarsened(groups: Iterable[RoundGroup], most: int = 6) -> list[RoundGroup]:
    """Merge groups that differ only in a little noise, each counted with the least of its cell.

    Never cheaper than the exact list; accountants of loss distributions need few distinct groups.
    """
    families: dict[RoundGroup, list[RoundGroup]] = {}
    for group in groups:
        families.setdefault(replace(group, noise_multiplier=0.0, rounds=0), []).append(group)
    merged = []
    for members in families.values():
        ordered = sorted(members, key=lambda group: group.noise_multiplier)
        low, high = ordered[0].noise_multiplier, ordered[-1].noise_multiplier
        spread = math.log(high / low) if low > 0 else 0.0

        def cell(group: RoundGroup, low: float = low, spread: float = spread) -> int:
            if spread == 0:
                return 0
            return min(most - 1, int(most * math.log(group.noise_multiplier / low) / spread))

        merged += [_together(list(alike)) for _, alike in groupby(ordered, key=cell)]
    return merged


def _together(cell: Sequence[RoundGroup]) -> RoundGroup:
    return replace(cell[0], rounds=sum(group.rounds for group in cell))
