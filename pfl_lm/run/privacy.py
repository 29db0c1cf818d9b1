"""A deployment at the scale of a run: who is invited, which noise, when a sum is opened.

A policy describes a deployment with ``report_goal`` reports a round; a simulation of it sums a
smaller ``cohort``. The noise on the simulated MEAN is that of the deployment, so the utility is
the policy's. The simulated sum carries only cohort ÷ report_goal of the noise that protects, so
the simulated model is not private, and no statement says that it is.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from pfl_lm.dp.clipping import Clipping, split, update_weight
from pfl_lm.dp.cohort import CohortRule
from pfl_lm.dp.events import RoundEvent
from pfl_lm.dp.grid import Grid
from pfl_lm.dp.guarantee import Guarantee
from pfl_lm.dp.mechanisms import Mechanism
from pfl_lm.dp.noise import NoiseShare, skellam_from_seed
from pfl_lm.dp.policy import Policy
from pfl_lm.dp.rotation import Rotation
from pfl_lm.dp.sampler.arrays import Updates
from pfl_lm.dp.sampler.random_bits import RandomBits, reproducible_bits, secure_bits
from pfl_lm.run.deployment import Deployment
from pfl_lm.secagg.noise import NoisePlan, RemovableNoise
from pfl_lm.streams import key

TRIAL = "a trial, in which devices check nothing"
_DEVIATIONS = 8  # a Poisson cohort beyond its mean by more of these is not expected, ever


@dataclass(frozen=True)
class RunPrivacy:
    """A deployment at the scale of a run.

    Attributes:
        deployment: the policy that the run stands for, and its guarantee.
        cohort: reports per round of the run, the divisor of every sum.
        clip_norm: ℓ2 bound on an update; of the first round, where it follows the updates.
        rule: who is invited in the run.
        reproducible: rounding and noise come from named streams, not from the operating system.
        separate_noise: every simulated device draws its own share, as the protocol needs it;
            otherwise shares whose sum is noise of the same kind are drawn at once.
        rotate: updates are rotated at random before they are rounded: a narrower ring.
        modulus_bits: width of the ring, if it was fixed.
        aggregator: ``exact``, or the name of another library that sums and adds the noise; what
            that releases has no proven guarantee.
        trial: devices take part over the network and believe any statement of the server's.
    """

    deployment: Deployment
    cohort: int
    clip_norm: float
    rule: CohortRule
    seed: int
    reproducible: bool
    separate_noise: bool = False
    rotate: bool = False
    modulus_bits: int | None = None
    aggregator: str = "exact"
    trial: bool = False

    @property
    def policy(self) -> Policy | None:
        return self.deployment.policy

    @property
    def guarantee(self) -> Guarantee | None:
        return self.deployment.guarantee

    @property
    def mechanism(self) -> Mechanism:
        return self.deployment.mechanism

    @property
    def groups(self) -> int:
        """Public groups that a round's cohort is divided into; each has a sum of its own."""
        return 1 if self.policy is None else self.policy.groups

    def without_policy(self) -> RunPrivacy:
        """Return the same run without noise: no policy, ε = ∞."""
        return replace(self, deployment=Deployment(None))

    def at_clip(self, clip_norm: float | None) -> RunPrivacy:
        """Return the same run at a round's clip norm; None: the one that it has."""
        return self if clip_norm is None else replace(self, clip_norm=clip_norm)

    @property
    def clipping(self) -> Clipping | None:
        """How the clip norm follows the updates; None where it does not."""
        return None if self.policy is None else self.policy.clipping

    @property
    def indicator_weight(self) -> float:
        """Length of a device's indicator ÷ clip_norm; 0 where there is none."""
        return 0.0 if self.guarantee is None else self.guarantee.indicator_weight

    @property
    def update_weight(self) -> float:
        """What indicators leave of a clip norm of 1 to the update."""
        return update_weight(self.indicator_weight)

    def decoded(self, mean: Updates) -> tuple[Updates, float | None]:
        """Return the mean update float32[d] of a released mean, and its share of short updates.

        Args:
            mean: as summed, at this clip norm; with indicators float32[d + 1].
        """
        if self.clipping is None:
            return mean, None
        return split(mean, self.clip_norm, self.indicator_weight)

    @property
    def external_noise(self) -> bool:
        """Whether another library draws the noise: no guarantee is proven for what it releases."""
        return self.aggregator != "exact"

    @property
    def simulated(self) -> bool:
        """Whether the run's own model falls short of the policy's guarantee."""
        policy = self.policy
        return (
            policy is None
            or self.trial
            or self.cohort < policy.report_goal
            or self.rule.population < policy.population
            or self.rule.min_separation < policy.least_separation
            or self.reproducible
            or self.cohorts_are_public
            or self.external_noise
        )

    @property
    def cohorts_are_public(self) -> bool:
        """Whether the guarantee needs secret cohorts, which a published seed lets anyone recompute.

        Rotation amplifies nothing, so its cohorts may be known.
        """
        return self.rule.kind != "rotation"

    @property
    def sum_multiplier(self) -> float:
        """Stddev of the noise on the run's sum ÷ clip_norm: its mean is as noisy as deployed."""
        if self.policy is None:
            return 0.0
        return self.deployment.goal_multiplier * self.cohort / self.policy.report_goal

    def mean_deviation(self, round: int) -> float:
        """Return the stddev of the noise in a coordinate of a round's mean, in model units."""
        spread = self.mechanism.spread(round)
        return self.sum_multiplier * spread * self.clip_norm / self.update_weight / self.cohort

    @property
    def least_reports(self) -> int:
        """The fewest reports of a sum that the run opens; of a group, where there are several.

        The policy's share of the cohort; under Poisson sampling lower by the spread of a small
        cohort, which is no dropout. Dropouts are counted against those invited: see ``opens_from``.
        """
        if self.policy is None or self.mechanism.place != "device":
            return 2
        least = self.cohort * self.policy.least_reports / self.policy.report_goal
        if self.rule.kind == "poisson" and self.cohort < self.policy.report_goal:
            least -= _DEVIATIONS * math.sqrt(self.cohort)
        return max(2, math.ceil(least))

    def opens_from(self, invited: int) -> int:
        """Return the fewest reports that open a round to which ``invited`` devices were invited.

        Never less than ``least_reports``. The spread of a Poisson cohort is in ``invited``
        already, so of those no more may be missing than the policy tolerates.
        """
        policy = self.policy
        if policy is None or self.mechanism.place != "device" or self.rule.kind != "poisson":
            return self.least_reports
        came = math.ceil(invited * (1 - policy.noise.tolerated_dropout) - 1e-9)
        return max(self.least_reports, came)

    @property
    def most_reports(self) -> int | None:
        """Reports beyond these are dropped; None under Poisson sampling, which a cap breaks."""
        return None if self.rule.kind == "poisson" else self.cohort

    def grid(self, dim: int) -> Grid:
        """Choose the integer grid and the ring of a round whose payload has ``dim`` coordinates.

        Where the clip norm follows the updates, indicators are one coordinate more of the grid.
        """
        distribution = self.mechanism.distribution
        spread = _DEVIATIONS * math.ceil(math.sqrt(self.cohort))
        levels, step = self.noise_levels(self.cohort)
        return Grid.choose(
            self.summed_dim(dim),
            self.clip_norm,
            reports_max=self.cohort + (spread if self.rule.kind == "poisson" else 0),
            noise_multiplier=0.0 if distribution is None else self.sum_multiplier,
            # With removable components on top, fewer reports carry the whole noise.
            noise_reports=self.cohort - levels * step,
            kind=distribution or "skellam",
            grid_steps=8.0 if self.policy is None else self.policy.noise.grid_steps,
            rotated=self.rotate,
            modulus_bits=self.modulus_bits,
        )

    def summed_dim(self, dim: int) -> int:
        """Return how many coordinates are summed for ``dim`` of the payload."""
        return dim if self.clipping is None else dim + 1

    def rotation(self, dim: int, round: int) -> Rotation | None:
        """Open the public rotation of a round; None where updates are not rotated."""
        return Rotation(dim, key(self.seed, "rotation", round)) if self.rotate else None

    def noise_levels(self, cohort: int) -> tuple[int, int]:
        """Return how many removable components a cohort's devices add, and dropouts for each.

        Together they cover every dropout at which a round still opens.
        """
        if self.policy is None or not self.policy.excess_removed:
            return 0, 1
        gone = cohort - self.opens_from(cohort)
        if gone < 1:
            return 0, 1
        step = math.ceil(gone / self.policy.noise.levels)
        while math.ceil(gone / step) * step >= cohort:
            step -= 1
        return math.ceil(gone / step), step

    def noise_plan(self, grid: Grid, cohort: int) -> NoisePlan | None:
        """Return which noise the sum of a cohort keeps at any dropout; None: all of it."""
        if not self.deployment.excess_removed:
            return None
        variance = grid.noise_variance(self.sum_multiplier)
        return NoisePlan(variance, cohort, *self.noise_levels(cohort))

    def removable_noise(self, grid: Grid, cohort: int) -> RemovableNoise | None:
        """Return what devices add and what comes off with the excess; None where nothing does."""
        plan = self.noise_plan(grid, cohort)
        return None if plan is None else RemovableNoise(plan, skellam_from_seed)

    @property
    def drawn_at_once(self) -> bool:
        """Whether the run draws the noise of a cohort's devices as one sum of their shares."""
        return self.mechanism.closed_under_sums and not self.separate_noise

    @property
    def noise_description(self) -> str:
        """Who draws the noise, in the words of the manifest."""
        if self.external_noise and self.mechanism.place != "none":
            return "by tensorflow-federated"
        drawn = self.mechanism.drawn(self.separate_noise)
        removable = self.deployment.excess_removed and self.separate_noise
        return f"{drawn} and removable components" if removable else drawn

    def planned_share(self, grid: Grid, cohort: int | None = None) -> NoiseShare | None:
        """Return the noise that each device adds and that is never removed; None where none does.

        Args:
            cohort: devices invited, among whom the noise is divided where the excess is removed.
        """
        plan = self.noise_plan(grid, cohort or self.cohort)
        shares = self.cohort if plan is None else plan.cohort
        return self.mechanism.share(grid.noise_variance(self.sum_multiplier) / shares)

    def device_share(self, grid: Grid, cohort: int) -> NoiseShare | None:
        """Return the noise that each device of the run draws itself; None where none does."""
        return None if self.drawn_at_once else self.planned_share(grid, cohort)

    def bits(self, purpose: str, round: int, user: int = 0) -> RandomBits:
        """Open the source of rounding or noise for one device (or the cohort) in one round."""
        if self.reproducible:
            return reproducible_bits(key(self.seed, purpose, round, user))
        return secure_bits()

    def event(self, reports: int, dim: int, round: int) -> RoundEvent | None:
        """Return what an opened round costs in the deployment it stands for; None without one.

        Args:
            dim: coordinates of the payload.
            reports: the run's reports in the sum, which is a group's where there are several. A
                shortfall against the cohort is the same shortfall against the report goal; the
                spread of a Poisson cohort is not one.
        """
        if self.policy is None:
            return None
        deployed = self.policy.report_goal
        if self.rule.kind != "poisson":
            deployed = deployed * min(reports, self.cohort) // self.cohort
        return self.deployment.event(deployed, self.summed_dim(dim), round)

    def noise_record(self, reports: int, plan: NoisePlan | None) -> dict[str, float] | None:
        """Return the noise planned for a round and that in its sum, at the deployment's scale.

        Stddev of the noise on the sum ÷ clip_norm, of honest devices, before any caution about
        counts that are random: the event states what is accounted for. None without noise.
        """
        if self.policy is None or self.guarantee is None or self.mechanism.place == "none":
            return None
        planned = achieved = self.guarantee.noise_multiplier
        if plan is not None:
            achieved *= math.sqrt(plan.achieved(reports) / plan.variance)
        elif self.mechanism.place == "device":
            came = (
                reports / self.cohort * self.policy.report_goal * self.policy.noise.honest_fraction
            )
            achieved *= math.sqrt(came / self.policy.honest_reports)
        return {"planned": planned, "achieved": achieved}
