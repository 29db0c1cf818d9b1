"""How a run sums reports: the rounds that devices and server agree on, and who falls silent.

The graph follows from the cohort, the corrupt share and the dropout by exact tail bounds
(``secagg.parameters``); what ran, and with which bounds, is in the manifest.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import numpy as np

from pfl_lm.dp.grid import WRAP_BITS, Grid
from pfl_lm.dp.policy import Policy
from pfl_lm.phones.fleet import Fleet
from pfl_lm.run.privacy import RunPrivacy
from pfl_lm.run.scenario import Scenario
from pfl_lm.secagg.config import LEAST_COHORT, MessageKind, RoundConfig
from pfl_lm.secagg.errors import TooFewReports
from pfl_lm.secagg.parameters import Adversary, GraphParameters, at_best, bounds, required
from pfl_lm.secagg.ring import MIN_BITS
from pfl_lm.secagg.rounds import Aggregator, Kind, open_aggregator
from pfl_lm.server.state import Broadcast
from pfl_lm.streams import stream


class ExternalAggregator(Protocol):
    """Another library's runtime, which sums a run's reports, adds the noise and divides.

    Attributes:
        name: what ``aggregator`` of a scenario calls it.
    """

    name: str

    def check(self) -> None:
        """Raise ``ValueError`` where the library is not installed."""

    def unsupported_reason(self, policy: Policy) -> str | None:
        """Return why it cannot add the noise that a policy states, or None."""

    def open(self, counted: Aggregator, grid: Grid, privacy: RunPrivacy) -> Aggregator:
        """Return a round whose ``close`` gives a ``NoisyMean``; ``counted`` counts its reports."""


@dataclass(frozen=True)
class Aggregation:
    """How the rounds of a run are summed.

    Attributes:
        kind: the ideal functionality, or the protocol itself.
        adversary: the server that the rounds withstand.
        corrupt: share of the cohort that may collude with it.
        dropout: share of the invited that falls silent in the simulation.
        planned_dropout: share that the graph is planned for: what the policy tolerates, or more.
        external: another library's runtime, which sums in place of ours.
    """

    kind: Kind
    adversary: Adversary
    corrupt: float
    dropout: float
    planned_dropout: float
    privacy: RunPrivacy
    external: ExternalAggregator | None = None

    @classmethod
    def of(
        cls,
        scenario: Scenario,
        privacy: RunPrivacy,
        fleet: Fleet | None = None,
        external: ExternalAggregator | None = None,
    ) -> Aggregation:
        """Read a scenario's choices.

        Args:
            fleet: invites more than report, and the graph is planned for that, too.

        Raises:
            ValueError: cohorts so small that the simulated dropout would end every round.
        """
        noise = None if privacy.policy is None else privacy.policy.noise
        planned = (
            scenario.dropout if noise is None else max(scenario.dropout, noise.tolerated_dropout)
        )
        if fleet is not None:
            planned = max(planned, fleet.planned_dropout)
        silent = 0.0 if noise is None else 1 - noise.honest_fraction
        aggregation = cls(
            scenario.secure_aggregation,
            Adversary(scenario.adversary or Adversary.SEMI_HONEST),
            max(scenario.corrupt, silent),
            scenario.dropout,
            planned,
            privacy,
            external,
        )
        if aggregation.kind == "protocol":
            aggregation._check()
        return aggregation

    def _check(self) -> None:
        cohort = self.privacy.cohort // self.privacy.groups
        if cohort < LEAST_COHORT:
            raise ValueError(f"cohort = {cohort} is below the protocol's {LEAST_COHORT} devices")
        try:
            required(
                cohort,
                self.corrupt,
                self.dropout,
                self.adversary,
                least_neighbours=self._least_neighbours,
            )
        except ValueError as error:
            raise ValueError(f'secure_aggregation = "protocol": {error}; raise cohort') from None

    def graph(self, cohort: int) -> GraphParameters:
        """Neighbours k and threshold t of a cohort."""
        least = self._least_neighbours
        return at_best(cohort, self.corrupt, self.planned_dropout, self.adversary, least)

    @property
    def _least_neighbours(self) -> int:
        """How many neighbours the policy has devices insist on."""
        policy = self.privacy.policy
        return 0 if policy is None else policy.devices.least_neighbours

    def config(self, broadcast: Broadcast, cohort: int) -> RoundConfig:
        """Return what devices and server agree on before a round.

        Args:
            cohort: devices invited.

        Raises:
            TooFewReports: a cohort that is below the least count, or too small for the protocol.
        """
        least = self.privacy.opens_from(cohort)
        if cohort < max(least, LEAST_COHORT):
            raise TooFewReports(cohort, max(least, LEAST_COHORT))
        levels, step = self.privacy.noise_levels(cohort)
        grid = self.privacy.grid(broadcast.payload.dim)
        return RoundConfig(
            round=broadcast.round,
            model=hashlib.sha256(broadcast.values.tobytes()).digest(),
            payload=broadcast.digest,
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
        self,
        broadcast: Broadcast,
        cohort: int,
        silent: dict[int, MessageKind] | None = None,
        group: int = 0,
    ) -> Aggregator:
        """Begin a round of the simulation: its devices advertise and share keys.

        Args:
            cohort: devices invited.
            silent: place → the first message that a device does not send; None: ``dropout``
                decides.
            group: of a round's public groups, the one whose sum this is.

        Raises:
            TooFewReports: too few devices got as far as that.
        """
        config, privacy = self.config(broadcast, cohort), self.privacy
        if silent is None:
            silent = absences(self.dropout, privacy.seed, config.round, cohort)
        bits = privacy.bits("secure aggregation", config.round, group)

        def entropy(count: int) -> bytes:
            drawn = np.empty(count, dtype=np.uint8)
            bits.fill(drawn)
            return drawn.tobytes()

        grid = privacy.grid(broadcast.payload.dim)
        noise = privacy.removable_noise(grid, cohort)
        goal = privacy.most_reports
        opened = open_aggregator(self.kind, config, goal, silent, entropy, noise)
        return opened if self.external is None else self.external.open(opened, grid, privacy)

    def describe(self, grid: Grid) -> dict[str, Any]:
        """Say for the manifest what runs, and how unlikely it is to fail."""
        policy = self.privacy.policy
        groups = self.privacy.groups
        deployed = self.privacy.cohort if policy is None else policy.report_goal
        external = self.privacy.external_noise  # then no graph of ours ran
        return {
            "ran": self.privacy.aggregator if external else self.kind,
            "adversary": self.adversary.value,
            "corrupt": self.corrupt,
            "dropout": {"simulated": self.dropout, "planned": self.planned_dropout},
            "ring": {
                "bits": grid.modulus_bits,
                "rotated": self.privacy.rotate,
                "wrap_probability": 2.0**-WRAP_BITS,
            },
            "simulated": None if external else self._graph_of(self.privacy.cohort // groups),
            "deployed": self._graph_of(deployed // groups),
        }

    def _graph_of(self, cohort: int) -> dict[str, Any] | None:
        if cohort < LEAST_COHORT:
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
            if bits < 1:
                return "without a bound"
            return f"but for a probability below 2^-{math.floor(bits)}"

        article = "an" if self.adversary is Adversary.ACTIVE else "a"
        private = but_for(min(exact["secret"], exact["connected"]))
        devices = "device" if graph.corrupt == 1 else "devices"
        return (
            f"{graph}; nothing but the sum is learnt by {graph.corrupt} corrupt {devices} and "
            f"{article} {self.adversary.value} server together ({private}); at "
            f"{self.planned_dropout:.0%} dropout the sum can be opened "
            f"({but_for(exact['correct'])})"
        )


def silent_devices(dropout: float, invited: int) -> int:
    """Return how many of the invited devices fall silent in a round."""
    return math.floor(dropout * invited + 1e-9)


def absences(dropout: float, seed: int, round: int, invited: int) -> dict[int, MessageKind]:
    """Draw which of the invited devices fall silent in a round, and from which message on.

    ⌊dropout·invited⌋ devices fall silent, each set of them equally likely, and each device before
    any of its messages with equal chance. A fleet decides this instead where there is one.

    Args:
        dropout: share of the invited.
        seed, round: name the stream.
        invited: places 0 … invited − 1 of the cohort.
    """
    gone = silent_devices(dropout, invited)
    if not gone:
        return {}
    draws = stream(seed, "absences", round)
    places = draws.choice(invited, gone, replace=False).tolist()
    kinds = draws.choice([int(kind) for kind in MessageKind], gone).tolist()
    return {place: MessageKind(kind) for place, kind in zip(places, kinds, strict=True)}
