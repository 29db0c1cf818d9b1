"""One round in one process, by the ideal functionality or by the protocol: the same interface.

    IdealRound          the sum alone: the fast path of large simulations
    ProtocolAggregator  every message written, carried and read (``local``)

Both are told who falls silent when, and fail where the counts of the protocol do. What only the
graph decides (one device's share holders all gone) the ideal functionality does not know: with
the dropout that the graph was planned for it happens with probability at most 2^-30.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from pfl_lm.distributed import Ranks
from pfl_lm.secagg.config import LEAST_COHORT, MessageKind, RoundConfig, sends
from pfl_lm.secagg.errors import SumLost, TooFewAnswers, TooFewReports
from pfl_lm.secagg.ideal import IdealAggregator, OpenedSum, Reports
from pfl_lm.secagg.local import ProtocolAggregator, check_devices
from pfl_lm.secagg.noise import RemovableNoise
from pfl_lm.secagg.sharing import Entropy
from pfl_lm.secagg.traffic import Traffic, device_traffic

Kind = Literal["ideal", "protocol"]


@dataclass(frozen=True)
class NoisyMean(OpenedSum):
    """A round that another library's runtime summed, noised and divided: ``mean`` float32[d]."""

    mean: NDArray[np.float32]


class Aggregator(Protocol):
    """What a simulation needs of either."""

    config: RoundConfig

    @property
    def waiting(self) -> list[int]:
        """The devices, by their place in the cohort, that will report if they are let."""

    def submit(self, vectors: Reports, devices: Sequence[int] | None = None) -> int: ...

    def merge(self, ranks: Ranks) -> None: ...

    def close(self) -> OpenedSum: ...

    def traffic(self) -> Traffic:
        """Bytes of a device that took part to the end; the mean over them."""


def open_aggregator(
    kind: Kind,
    config: RoundConfig,
    goal: int | None,
    silent: Mapping[int, MessageKind],
    entropy: Entropy,
    noise: RemovableNoise | None = None,
) -> Aggregator:
    """Begin a round, up to the point where devices report.

    Args:
        kind: "ideal" or "protocol".
        config: the round.
        goal: the most reports that are summed, or None.
        silent: device → the first message that it does not send.
        entropy: where the protocol's secrets come from.
        noise: removable components, which the protocol's devices add; the ideal functionality
            sums what it is given.

    Raises:
        TooFewReports: fewer devices advertised or shared keys than the round needs.
    """
    if kind == "protocol":
        return ProtocolAggregator(config, goal, silent=silent, entropy=entropy, noise=noise)
    return IdealRound(config, goal, silent)


class IdealRound:
    """The ideal functionality of one round, among devices of which some fall silent.

    Raises:
        TooFewReports: fewer devices advertise or share keys than the protocol needs.
    """

    def __init__(
        self, config: RoundConfig, goal: int | None, silent: Mapping[int, MessageKind]
    ) -> None:
        self.config = config
        self._silent = silent
        members, dealers = (
            len(self._sending(step)) for step in (MessageKind.KEYS, MessageKind.SHARES)
        )
        least = max(config.min_reports, config.graph.threshold, LEAST_COHORT)
        if members < least:
            raise TooFewReports(members, least)
        least = max(config.min_reports, config.graph.threshold)
        if dealers < least:
            raise TooFewReports(dealers, least)
        self._members, self._dealers = members, dealers
        self._waiting = set(self._sending(MessageKind.INPUT))
        self._survivors: list[int] = []
        self._sum = IdealAggregator(config.dim, config.bits, config.min_reports, goal)

    @property
    def waiting(self) -> list[int]:
        return sorted(self._waiting)

    def submit(self, vectors: Reports, devices: Sequence[int] | None = None) -> int:
        """Add the reports of these devices (by default the next in order), integers (K, d).

        Raises:
            ValueError: as ``IdealAggregator.submit``; a device that does not report, or twice.
        """
        chosen = self.waiting[: len(vectors)] if devices is None else list(devices)
        check_devices(chosen, self._waiting, len(vectors))
        summed = self._sum.submit(vectors)
        self._survivors += chosen[:summed]
        self._waiting -= set(chosen[:summed])
        return summed

    def merge(self, ranks: Ranks) -> None:
        """Bring the reports that went to several processes together on the first."""
        self._sum.merge(ranks)
        self._survivors = [device for part in ranks.gather(self._survivors) for device in part]
        self._waiting -= set(self._survivors)

    def close(self) -> OpenedSum:
        """Open the sum, if as many devices answered as the protocol needs.

        Raises:
            TooFewReports, TooFewAnswers: the sum stays closed.
            SumLost: too few devices answered once they were asked for what opens the sum.
        """
        opened = self._sum.close()
        config, answering = self.config, self._survivors
        if config.signed:
            answering = self._still(answering, MessageKind.CONFIRMATION)
            quorum = config.quorum(self._members)
            if len(answering) < quorum:
                raise TooFewAnswers(f"{len(answering)} devices confirmed, the quorum is {quorum}")
        answers, needed = len(self._still(answering, MessageKind.ANSWER)), config.graph.threshold
        if answers < needed:
            reason = f"{answers} devices answered, {needed} shares recover a secret"
            raise SumLost(opened.reports, reason)
        return opened

    def traffic(self) -> Traffic:
        """What the protocol's messages come to where every neighbour of a device deals."""
        reports = len(self._survivors) or None
        return device_traffic(self.config, self._members, reports=reports)

    def _sending(self, kind: MessageKind) -> list[int]:
        return self._still(range(self.config.cohort), kind)

    def _still(self, devices: Sequence[int], kind: MessageKind) -> list[int]:
        return [device for device in devices if sends(self._silent, device, kind)]
