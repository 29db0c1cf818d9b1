"""A round's sum, its noise and its mean through tensorflow-federated's runtime.

What devices send is as ever: clipped, and on the integer grid, so that no vector is longer than
the grid's norm bound. TFF takes over from there.

    noise of the policy     what TFF runs
    gaussian, or none       DifferentiallyPrivateFactory.gaussian_fixed: noise by the server
    skellam                 ddp_secure_aggregator: every client's share, rotated, in integers

Guarantees:
    None for the model that comes out. TFF draws Gaussian noise in floating point, whose low bits
    betray their input (Mironov 2012), and no noise from a cryptographic source, so no ε is proven
    for what it releases: a run says of itself that it is a simulation (``RunPrivacy.simulated``).
    The ledger's ε is that of the deployment which the policy describes, with exact noise of the
    same multiplier. Counts, thresholds and abandoned rounds are ours, before TFF sees a vector.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pfl_lm.distributed import Ranks
from pfl_lm.dp.grid import Grid
from pfl_lm.dp.policy import Policy
from pfl_lm.interop.tff import Worker, find_python, shared_worker
from pfl_lm.run.privacy import RunPrivacy
from pfl_lm.secagg.ideal import Reports, in_memory
from pfl_lm.secagg.rounds import Aggregator, NoisyMean
from pfl_lm.secagg.traffic import Traffic

KINDS = {"none": "gaussian", "gaussian": "gaussian", "skellam": "distributed"}


class TffAggregator:
    """TFF's runtime as the aggregator of a run: hand it to ``open_run`` or ``simulate``."""

    name = "tff"

    def check(self) -> None:
        """Refuse where no Python has tensorflow-federated.

        Raises:
            TffMissing: the message says how to get one.
        """
        find_python()

    def unsupported_reason(self, policy: Policy) -> str | None:
        """Return why TFF cannot add the noise that a policy states, or None."""
        if policy.noise.kind in KINDS and not policy.excess_removed:
            return None
        return (
            "adds Gaussian noise at the server or Skellam noise at the device, and removes none "
            "of it; the policy states other noise"
        )

    def open(self, counted: Aggregator, grid: Grid, privacy: RunPrivacy) -> TffRound:
        """Open a round that TFF sums, noises and divides; ``counted`` counts its reports."""
        mean = TffMean(
            privacy.mechanism.name, privacy.clip_norm, privacy.sum_multiplier, privacy.cohort
        )
        return TffRound(counted, grid, mean)


def external_aggregator(name: str) -> TffAggregator | None:
    """Return the aggregator that a scenario names; None where the sum is ours."""
    return TffAggregator() if name == TffAggregator.name else None


@dataclass(frozen=True)
class TffMean:
    """What TFF is asked for.

    Attributes:
        kind: of the policy's noise, a key of ``KINDS``.
        clip_norm: the devices' bound, in model units.
        noise_multiplier: stddev of the noise on the sum ÷ clip_norm.
        divisor: the public number that the sum is divided by.
    """

    kind: str
    clip_norm: float
    noise_multiplier: float
    divisor: int

    def of(self, vectors: np.ndarray, grid: Grid, worker: Worker) -> np.ndarray:
        """Return the noisy mean float32[d] of vectors, integers[K, d] on the grid.

        Central noise covers what rounding may have added to a vector's length, as ours does.
        """
        longest = grid.norm_bound / grid.scale
        multiplier = self.noise_multiplier
        if self.kind == "skellam":
            multiplier *= self.clip_norm / longest
        _, arrays = worker.call(
            "mean",
            {"vectors": (vectors / grid.scale).astype(np.float32)},
            kind=KINDS[self.kind],
            clip_norm=longest,
            noise_multiplier=multiplier,
            clients=self.divisor,
        )
        return arrays["mean"].astype(np.float32)


class TffRound:
    """A round whose reports are counted here and summed by TFF: an ``Aggregator``.

    Args:
        counted: the ideal functionality, which knows who reports and when a sum may open.
    """

    def __init__(self, counted: Aggregator, grid: Grid, asked: TffMean) -> None:
        self._counted, self._grid, self._asked = counted, grid, asked
        self._vectors: list[np.ndarray] = []
        self.config = counted.config

    @property
    def waiting(self) -> list[int]:
        return self._counted.waiting

    def submit(self, vectors: Reports, devices: Sequence[int] | None = None) -> int:
        """Add the reports of these devices, integers[K, d]; return how many of them count."""
        taken = self._counted.submit(vectors, devices)
        self._vectors.append(in_memory(vectors[:taken]).copy())
        return taken

    def merge(self, ranks: Ranks) -> None:
        """Nothing to merge: TFF runs beside one process.

        Raises:
            ValueError: there are several.
        """
        if ranks.count > 1:
            raise ValueError('aggregator = "tff" runs in one process; leave out --workers')

    def close(self) -> NoisyMean:
        """Open the sum where it may be opened, and let TFF turn the reports into the noisy mean.

        Raises:
            TooFewReports: as the ideal functionality; TFF is not asked then.
        """
        opened = self._counted.close()
        mean = self._asked.of(np.concatenate(self._vectors), self._grid, shared_worker())
        return NoisyMean(opened.vector, opened.reports, mean)

    def traffic(self) -> Traffic:
        return self._counted.traffic()
