"""What a policy makes of each simulated round: who is invited, which noise, when it opens.

A policy describes a deployment with ``report_goal`` reports a round; a simulation of it sums a
smaller ``cohort``. The noise on the simulated MEAN is that of the deployment, so utility is the
policy's; the simulated sum itself carries only cohort ÷ report_goal of the noise that protects,
so the simulated model is not private, and no statement says it were.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np

from pfl_lm.dp.accounting import Events, Spent, spent
from pfl_lm.dp.bits import Bits, reproducible_bits, secure_bits
from pfl_lm.dp.events import RoundEvent
from pfl_lm.dp.grid import Grid
from pfl_lm.dp.guarantee import Guarantee, guarantee
from pfl_lm.dp.mechanisms import decode
from pfl_lm.dp.noise import (
    NoiseShare,
    add_central_gaussian,
    cohort_noise,
    skellam_from_seed,
)
from pfl_lm.dp.policy import Policy
from pfl_lm.dp.rotation import Rotation
from pfl_lm.dp.sampling import CohortRule
from pfl_lm.secagg.noise import NoisePlan, RemovableNoise
from pfl_lm.streams import key

_DEVIATIONS = 8  # a Poisson cohort beyond its mean by more of these is not expected, ever


@dataclass(frozen=True)
class Protection:
    """A policy, or none, at the scale of a simulation.

    Attributes:
        policy: what is deployed; None: no privacy, ε = ∞.
        cohort: simulated reports per round, the divisor of every simulated sum.
        clip_norm: ℓ2 bound on an update.
        rule: who is invited in the simulation.
        reproducible: rounding and noise come from named streams, not from the operating system.
        separate_noise: every simulated device draws its own share, as the protocol needs it;
            otherwise Skellam shares, whose sum is Skellam noise again, are drawn at once.
        rotate: updates are rotated at random before they are rounded: a narrower ring.
        modulus_bits: width of the ring, if it was fixed.
        foreign_noise: another library's runtime sums and adds the noise; what it releases has no
            proven guarantee.

    Raises:
        ValueError: foreign noise, where that library has no such noise.
    """

    policy: Policy | None
    cohort: int
    clip_norm: float
    rule: CohortRule
    seed: int
    reproducible: bool
    separate_noise: bool = False
    rotate: bool = False
    modulus_bits: int | None = None
    foreign_noise: bool = False

    def __post_init__(self) -> None:
        if not self.foreign_noise or self.policy is None:
            return
        if self.kind == "discrete_gaussian" or self.policy.excess_removed:
            raise ValueError(
                'aggregator = "tff" adds Gaussian noise at the server or Skellam noise at the '
                "device, and removes none of it; the policy states other noise"
            )
        if self.reproducible and self.kind != "none":
            raise ValueError('reproducible: noise of aggregator = "tff" comes from no seed of ours')

    @property
    def guarantee(self) -> Guarantee | None:
        return None if self.policy is None else guarantee(self.policy)

    @property
    def simulated(self) -> bool:
        """Whether the run's own model falls short of the policy's guarantee."""
        policy = self.policy
        return (
            policy is None
            or self.cohort < policy.report_goal
            or self.rule.population < policy.population
            or self.reproducible
            or self.coins_are_known
            or self.foreign_noise
        )

    @property
    def coins_are_known(self) -> bool:
        """Whether the guarantee needs cohorts that nobody can recompute; the seed's are in print.

        Rotation amplifies nothing, so its cohorts may be known.
        """
        return self.rule.kind != "rotation"

    @property
    def sum_multiplier(self) -> float:
        """Stddev of the noise on the simulated sum ÷ clip_norm.

        In the deployment a sum of ``report_goal`` reports carries that many shares; the simulated
        one carries what gives its mean the same noise.
        """
        if self.policy is None or self.guarantee is None:
            return 0.0
        goal = self.policy.report_goal
        if self.policy.noise.at == "server":
            deployed = self.guarantee.noise_multiplier
        else:
            deployed = self.guarantee.share_multiplier * math.sqrt(goal)
        return deployed * self.cohort / goal

    @property
    def least_reports(self) -> int:
        """The fewest reports that a simulated round opens.

        The policy's share of the cohort; under Poisson sampling lower by the spread of a small
        cohort, which is no dropout.
        """
        if self.policy is None or self.policy.noise.at != "device":
            return 2
        least = self.cohort * self.policy.least_reports / self.policy.report_goal
        if self.rule.kind == "poisson" and self.cohort < self.policy.report_goal:
            least -= _DEVIATIONS * math.sqrt(self.cohort)
        return max(2, math.ceil(least))

    @property
    def most_reports(self) -> int | None:
        """Reports beyond these are dropped; None under Poisson sampling, which a cap breaks."""
        return None if self.rule.kind == "poisson" else self.cohort

    def grid(self, dim: int) -> Grid:
        """Choose the integer grid and the ring of a round with ``dim`` coordinates."""
        noise = None if self.policy is None else self.policy.noise
        at_device = noise is not None and noise.at == "device"
        spread = _DEVIATIONS * math.ceil(math.sqrt(self.cohort))
        return Grid.choose(
            dim,
            self.clip_norm,
            reports_max=self.cohort + (spread if self.rule.kind == "poisson" else 0),
            noise_multiplier=self.sum_multiplier if at_device else 0.0,
            noise_reports=self._noise_reports,
            kind=self.kind if at_device and self.kind != "none" else "skellam",  # type: ignore[arg-type]
            grid_steps=8.0 if noise is None else noise.grid_steps,
            rotated=self.rotate,
            modulus_bits=self.modulus_bits,
        )

    @property
    def _noise_reports(self) -> int:
        """Reports that carry the whole noise: with removable components on top, fewer do."""
        if self.policy is None or not self.policy.excess_removed:
            return self.cohort
        levels, step = self.noise_levels(self.cohort)
        return self.cohort - levels * step

    def rotation(self, dim: int, round: int) -> Rotation | None:
        """Open the public rotation of a round; None where updates are not rotated."""
        return Rotation(dim, key(self.seed, "rotation", round)) if self.rotate else None

    def noise_levels(self, cohort: int) -> tuple[int, int]:
        """Return how many removable components a cohort's devices add, and dropouts for each.

        Together they cover every dropout at which a round still opens.
        """
        if self.policy is None or not self.policy.excess_removed:
            return 0, 1
        gone = cohort - self.least_reports
        if gone < 1:
            return 0, 1
        step = math.ceil(gone / self.policy.noise.levels)
        while math.ceil(gone / step) * step >= cohort:
            step -= 1
        return math.ceil(gone / step), step

    def noise_plan(self, grid: Grid, cohort: int) -> NoisePlan | None:
        """Return which noise the sum of a cohort keeps at any dropout; None: all of it."""
        if self.policy is None or not self.policy.excess_removed:
            return None
        variance = grid.noise_variance(self.sum_multiplier)
        return NoisePlan(variance, cohort, *self.noise_levels(cohort))

    def removable_noise(self, grid: Grid, cohort: int) -> RemovableNoise | None:
        """Return what devices add and what comes off with the excess; None where nothing does."""
        plan = self.noise_plan(grid, cohort)
        return None if plan is None else RemovableNoise(plan, skellam_from_seed)

    @property
    def kind(self) -> Literal["skellam", "discrete_gaussian", "gaussian", "none"]:
        return "none" if self.policy is None else self.policy.noise.kind

    @property
    def drawn(self) -> str:
        """How the noise is drawn, in the words of the manifest."""
        if self.foreign_noise and self.kind != "none":
            return "by tensorflow-federated"
        separate = "by every device, its own share"
        if self.policy is not None and self.policy.excess_removed:
            separate += " and removable components"
        return {
            "skellam": separate
            if self.separate_noise
            else "once per cohort, as the sum of all shares",
            "discrete_gaussian": "by every device, its own share",
            "gaussian": "by the server, on the sum",
            "none": "not at all",
        }[self.kind]

    def share(self, grid: Grid, cohort: int | None = None) -> NoiseShare | None:
        """Return the noise that each device adds and that is never removed; None where none does.

        Args:
            cohort: devices invited, among whom the noise is divided where the excess is removed.
        """
        if self.kind not in ("skellam", "discrete_gaussian"):
            return None
        plan = self.noise_plan(grid, cohort or self.cohort)
        shares = self.cohort if plan is None else plan.cohort
        return NoiseShare(
            self.kind,  # type: ignore[arg-type]
            grid.noise_variance(self.sum_multiplier) / shares,
        )

    def own_share(self, grid: Grid, cohort: int) -> NoiseShare | None:
        """Return the noise that each simulated device draws itself; None where none does."""
        at_once = self.kind == "skellam" and not self.separate_noise
        return None if at_once else self.share(grid, cohort)

    def bits(self, purpose: str, round: int, user: int = 0) -> Bits:
        """Open the source of rounding or noise for one device (or the cohort) in one round."""
        if self.reproducible:
            return reproducible_bits(key(self.seed, purpose, round, user))
        return secure_bits()

    def mean(
        self, total: np.ndarray, grid: Grid, reports: int, round: int, plan: NoisePlan | None = None
    ) -> np.ndarray:
        """Decode an opened sum into the mean update, float32[d], with what noise is missing.

        Args:
            total: int64[d], the opened sum.
            reports: how many reports it holds; each carries one share of the noise.
            plan: of the round's cohort, where the excess is removed.
        """
        if self.kind == "gaussian":
            # Rounding to the grid lengthens an update: the noise covers what may really be summed.
            sensitivity = grid.norm_bound / grid.scale
            noisy = add_central_gaussian(
                total / grid.scale, sensitivity, self.sum_multiplier, self.bits("noise", round)
            )
            mean = (noisy / self.cohort).astype(np.float32)
        else:
            if self.kind == "skellam" and not self.separate_noise:
                total = total + self._shares_at_once(grid, reports, round, plan)
            mean = decode(total, grid, self.cohort)
        rotation = self.rotation(grid.dim, round)
        if rotation is not None:
            rotation.inverse(mean[None])
        return mean

    def _shares_at_once(
        self, grid: Grid, reports: int, round: int, plan: NoisePlan | None
    ) -> np.ndarray:
        """Draw what the devices' Skellam noise adds up to, once the excess is removed: int64[d]."""
        share = self.share(grid, None if plan is None else plan.cohort)
        assert share is not None
        if plan is not None:
            share = NoiseShare(share.kind, plan.achieved(reports) / reports)
        return cohort_noise(share, reports, grid.dim, self.bits("noise", round))

    def event(self, reports: int, dim: int, round: int) -> RoundEvent | None:
        """Return what an opened round costs in the deployment it stands for; None without one.

        Args:
            reports: simulated reports that were summed. A shortfall against the cohort is the
                same shortfall against the report goal; the spread of a Poisson cohort is not one.
        """
        if self.policy is None or self.guarantee is None:
            return None
        deployed = self.policy.report_goal
        if self.rule.kind != "poisson":
            deployed = deployed * min(reports, self.cohort) // self.cohort
        planned = self.guarantee.noise_multiplier
        return self.policy.event(planned, reports=deployed, dim=dim, round=round)

    def noise_record(self, reports: int, plan: NoisePlan | None) -> dict[str, float] | None:
        """Return the noise planned for a round and that in its sum, at the deployment's scale.

        Stddev of the noise on the sum ÷ clip_norm, of honest devices, before any caution about
        counts that are random: the event states what is accounted for. None without noise.
        """
        if self.policy is None or self.guarantee is None or self.policy.noise.at == "none":
            return None
        planned = achieved = self.guarantee.noise_multiplier
        if plan is not None:
            achieved *= math.sqrt(plan.achieved(reports) / plan.variance)
        elif self.policy.noise.at == "device":
            came = (
                reports / self.cohort * self.policy.report_goal * self.policy.noise.honest_fraction
            )
            achieved *= math.sqrt(came / self.policy.honest_reports)
        return {"planned": planned, "achieved": achieved}

    def spent(self, events: Events) -> Spent | None:
        """Return what a deployment has spent after these rounds; None without a policy."""
        return None if self.policy is None else spent(events, self.policy.delta)
