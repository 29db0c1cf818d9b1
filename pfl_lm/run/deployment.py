"""What a run stands for: a policy, the guarantee that follows, and what its rounds cost there."""

from __future__ import annotations

import math
from dataclasses import dataclass

from pfl_lm.dp.accounting.accountant import PrivacyCost, compose
from pfl_lm.dp.accounting.worst_user import Events
from pfl_lm.dp.events import RoundEvent
from pfl_lm.dp.guarantee import Guarantee, guarantee
from pfl_lm.dp.mechanisms import MECHANISMS, Mechanism
from pfl_lm.dp.policy import Policy


@dataclass(frozen=True)
class Deployment:
    """A policy and what follows from it; without a policy there is no privacy, ε = ∞.

    Counts of reports are those of the deployment, whose rounds aim at the policy's report goal.
    """

    policy: Policy | None

    @property
    def guarantee(self) -> Guarantee | None:
        return None if self.policy is None else guarantee(self.policy)

    @property
    def mechanism(self) -> Mechanism:
        return MECHANISMS["none"] if self.policy is None else self.policy.mechanism

    @property
    def excess_removed(self) -> bool:
        """Whether noise beyond the plan is taken off the sum again (XNoise)."""
        return self.policy is not None and self.policy.excess_removed

    @property
    def goal_multiplier(self) -> float:
        """Stddev of the noise on a sum of ``report_goal`` reports ÷ clip_norm."""
        if self.policy is None or self.guarantee is None:
            return 0.0
        if self.mechanism.place == "device":
            return self.guarantee.share_multiplier * math.sqrt(self.policy.report_goal)
        return self.guarantee.noise_multiplier

    def event(self, reports: int, dim: int, round: int) -> RoundEvent | None:
        """Return what an opened round costs; None without a policy.

        Args:
            reports: reports that were summed.
            dim: coordinates that were summed.
        """
        if self.policy is None or self.guarantee is None:
            return None
        planned = self.guarantee.noise_multiplier
        return self.policy.event(planned, reports=reports, dim=dim, round=round)

    def compose(self, events: Events) -> PrivacyCost | None:
        """Return what these rounds cost together; None without a policy."""
        return None if self.policy is None else compose(events, self.policy.delta)
