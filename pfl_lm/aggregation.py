"""How a run sums reports: the rounds that devices and server agree on, and who falls silent.

The graph follows from the cohort, the corrupt share and the dropout by exact tail bounds
(``secagg.parameters``); what ran, and with which bounds, is in the manifest.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from pfl_lm.devices.fleet import Fleet
from pfl_lm.dp.grid import WRAP_BITS, Grid
from pfl_lm.interop.tff_sum import TffMean, TffRound
from pfl_lm.protection import Protection
from pfl_lm.scenario import Scenario
from pfl_lm.secagg.config import RoundConfig
from pfl_lm.secagg.errors import TooFewReports
from pfl_lm.secagg.local import Step
from pfl_lm.secagg.parameters import Adversary, GraphParameters, at_best, bounds, required
from pfl_lm.secagg.ring import MIN_BITS
from pfl_lm.secagg.rounds import Aggregator, Kind, open_aggregator
from pfl_lm.server.state import Broadcast
from pfl_lm.streams import stream

_LEAST_COHORT = 3  # the protocol needs two others to hide among


@dataclass(frozen=True)
class Aggregation:
    """How the rounds of a run are summed.

    Attributes:
        kind: the ideal functionality, or the protocol itself.
        adversary: the server that the rounds withstand.
        corrupt: share of the cohort that may collude with it.
        dropout: share of the invited that falls silent in the simulation.
        planned_dropout: share that the graph is planned for: what the policy tolerates, or more.
    """

    kind: Kind
    adversary: Adversary
    corrupt: float
    dropout: float
    planned_dropout: float
    protection: Protection

    @classmethod
    def of(
        cls, scenario: Scenario, protection: Protection, fleet: Fleet | None = None
    ) -> Aggregation:
        """Read a scenario's choices.

        Args:
            fleet: invites more than report, and the graph is planned for that, too.

        Raises:
            ValueError: cohorts so small that the simulated dropout would end every round.
        """
        noise = None if protection.policy is None else protection.policy.noise
        planned = (
            scenario.dropout if noise is None else max(scenario.dropout, noise.tolerated_dropout)
        )
        if fleet is not None:
            planned = max(planned, fleet.planned_dropout)
        silent = 0.0 if noise is None else 1 - noise.honest_fraction
        found = cls(
            scenario.secure_aggregation,
            Adversary(scenario.adversary),
            max(scenario.corrupt, silent),
            scenario.dropout,
            planned,
            protection,
        )
        if found.kind == "protocol":
            found._check()
        return found

    def _check(self) -> None:
        cohort = self.protection.cohort
        if cohort < _LEAST_COHORT:
            raise ValueError(f"cohort = {cohort} is below the protocol's {_LEAST_COHORT} devices")
        try:
            required(cohort, self.corrupt, self.dropout, self.adversary)
        except ValueError as error:
            raise ValueError(f'secure_aggregation = "protocol": {error}; raise cohort') from None

    def graph(self, cohort: int) -> GraphParameters:
        """Neighbours k and threshold t of a cohort."""
        return at_best(cohort, self.corrupt, self.planned_dropout, self.adversary)

    def config(self, broadcast: Broadcast, grid: Grid, cohort: int) -> RoundConfig:
        """Return what devices and server agree on before a round.

        Raises:
            TooFewReports: a cohort that is below the least count, or too small for the protocol.
        """
        least = self.protection.least_reports
        if cohort < max(least, _LEAST_COHORT):
            raise TooFewReports(cohort, max(least, _LEAST_COHORT))
        levels, step = self.protection.noise_levels(cohort)
        return RoundConfig(
            round=broadcast.round,
            model=hashlib.sha256(broadcast.values.tobytes()).digest(),
            payload=bytes.fromhex(broadcast.payload.digest),
            dim=grid.dim,
            bits=max(MIN_BITS, grid.modulus_bits),
            cohort=cohort,
            min_reports=least,
            graph=self.graph(cohort),
            adversary=self.adversary,
            noise_levels=levels,
            noise_step=step,
        )

    def open(
        self, config: RoundConfig, grid: Grid, silent: dict[int, Step] | None = None
    ) -> Aggregator:
        """Begin a round of the simulation: its devices advertise and share keys.

        Args:
            silent: from which step on a device is silent; None: as ``dropout`` has it.

        Raises:
            TooFewReports: too few devices got as far as that.
        """
        protection = self.protection
        if silent is None:
            silent = absences(self.dropout, protection.seed, config.round, config.cohort)
        bits = protection.bits("secure aggregation", config.round)

        def entropy(count: int) -> bytes:
            drawn = np.empty(count, dtype=np.uint8)
            bits.fill(drawn)
            return drawn.tobytes()

        noise = protection.removable_noise(grid, config.cohort)
        goal = protection.most_reports
        opened = open_aggregator(self.kind, config, goal, silent, entropy, noise)
        if not protection.foreign_noise:
            return opened
        multiplier, divisor = protection.sum_multiplier, protection.cohort
        asked = TffMean(protection.kind, protection.clip_norm, multiplier, divisor)
        return TffRound(opened, grid, asked)

    def describe(self, grid: Grid) -> dict[str, Any]:
        """Say for the manifest what runs, and how unlikely it is to fail."""
        policy = self.protection.policy
        deployed = self.protection.cohort if policy is None else policy.report_goal
        foreign = self.protection.foreign_noise  # then no graph of ours ran
        return {
            "ran": "tff" if foreign else self.kind,
            "adversary": self.adversary.value,
            "corrupt": self.corrupt,
            "dropout": {"simulated": self.dropout, "planned": self.planned_dropout},
            "ring": {
                "bits": grid.modulus_bits,
                "rotated": self.protection.rotate,
                "wrap_probability": 2.0**-WRAP_BITS,
            },
            "simulated": None if foreign else self._graph_of(self.protection.cohort),
            "deployed": self._graph_of(deployed),
        }

    def _graph_of(self, cohort: int) -> dict[str, Any] | None:
        if cohort < _LEAST_COHORT:
            return None
        graph = self.graph(cohort)
        exact = asdict(bounds(graph, cohort, self.planned_dropout, self.adversary))
        return {
            "cohort": cohort,
            "neighbours": graph.neighbours,
            "threshold": graph.threshold,
            "corrupt": graph.corrupt,
            "window_survivors": graph.window_survivors,
            "complete": graph.complete,
            "failure_bits": {n: bits if math.isfinite(bits) else None for n, bits in exact.items()},
            "statement": self._state(graph, exact),
        }

    def _state(self, graph: GraphParameters, exact: dict[str, float]) -> str:
        """Say what the graph withstands, and with which probability it does not."""

        def but_for(bits: float) -> str:
            if math.isinf(bits):
                return "always"
            return f"but for a probability below 2^-{math.floor(bits)}"

        private = but_for(min(exact["secret"], exact["connected"]))
        return (
            f"{graph}; nothing but the sum is learnt by {graph.corrupt} corrupt devices and a "
            f"{self.adversary.value} server together ({private}); at {self.planned_dropout:.0%} "
            f"dropout the sum can be opened ({but_for(exact['correct'])})"
        )


def absences(dropout: float, seed: int, round: int, invited: int) -> dict[int, Step]:
    """Draw who of the invited falls silent in a round, and from which message on.

    ⌊dropout·invited⌋ of them, all equally likely, each before any of its messages alike. A fleet
    takes this function's place.

    Args:
        dropout: share of the invited.
        seed, round: name the stream.
        invited: places 0 … invited − 1 of the cohort.
    """
    gone = math.floor(dropout * invited + 1e-9)
    if not gone:
        return {}
    draws = stream(seed, "absences", round)
    places = draws.choice(invited, gone, replace=False).tolist()
    steps = draws.choice([int(step) for step in Step], gone).tolist()
    return {place: Step(step) for place, step in zip(places, steps, strict=True)}
