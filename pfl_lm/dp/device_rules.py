"""What devices insist on in real rounds, whatever a server proposes: a part of the policy."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from pfl_lm.validate import typed


@dataclass(frozen=True)
class DeviceRules:
    """The least protection that a device accepts from secure aggregation, and from time.

    Attributes:
        adversary: the weakest server that rounds must withstand; ``active``: keys and survivor
            sets are signed.
        corrupt: share of a cohort that may collude with the server, at least.
        least_neighbours: devices with which a device shares masks, at least; fewer than follow
            from ``corrupt``, ``tolerated_dropout`` and ``adversary`` are never accepted.
        trust_days: how long a phone waits that has no record of what it took part in, because
            the app was installed or installed again.

    Raises:
        ValueError: at construction, naming the field and what would be right.
    """

    adversary: Literal["semi-honest", "active"] = "active"
    corrupt: float = 0.05
    least_neighbours: int = 0
    trust_days: float = 30.0

    def __post_init__(self) -> None:
        typed(self)
        if self.adversary not in ("semi-honest", "active"):
            raise ValueError(f'adversary must be "semi-honest" or "active", got {self.adversary!r}')
        if not 0 <= self.corrupt < 1:
            raise ValueError(f"corrupt must lie in [0, 1), got {self.corrupt}")
        if self.least_neighbours < 0:
            raise ValueError(f"least_neighbours must be 0 or more, got {self.least_neighbours}")
        if not 0 <= self.trust_days < math.inf:
            raise ValueError(f"trust_days must be 0 or more and finite, got {self.trust_days}")
