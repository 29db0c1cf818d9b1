"""The server's side: one class per phase, bytes in and bytes out, no input or output of its own.

    CollectingKeys --> CollectingShares --> CollectingInputs
      --> (active: CollectingConfirmations) --> CollectingAnswers --> OpenedRound

``receive(sender, message)`` takes one device's message, with the sender as the transport
authenticated it. It raises for a message that must not count and changes nothing then: the caller
logs the line and treats that device as dropped. ``close()`` ends the phase, also where devices are
missing, and returns the next phase with the messages to send by device, or raises.
``TooFewReports`` and ``TooFewAnswers`` end a round whose sum nobody can open. ``SumLost``, in the
last phase alone, ends one that is paid for: devices may have answered what opens it.

Of the masked inputs the server keeps their sum, (d,) words, and the last few, which are added to it
together.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping

from pfl_lm.secagg import checks, keys
from pfl_lm.secagg.config import RoundConfig
from pfl_lm.secagg.errors import (
    Refused,
    SumLost,
    TooFewAnswers,
    TooFewReports,
    WrongShares,
)
from pfl_lm.secagg.graph import Graph, draw_graph
from pfl_lm.secagg.keys import KeyPair
from pfl_lm.secagg.messages import (
    AdvertiseKeys,
    Confirmation,
    MaskedInput,
    Roster,
    ShareInbox,
    ShareKeys,
    SurvivorSet,
    UnmaskAnswer,
    UnmaskRequest,
)
from pfl_lm.secagg.opening import OpenedRound, Registry, check_answer, open_round
from pfl_lm.secagg.packing import TOGETHER, Words
from pfl_lm.secagg.phase import Outgoing, Phase, Written
from pfl_lm.secagg.sharing import Entropy


class CollectingKeys(Phase[AdvertiseKeys]):
    """First phase: devices advertise the public keys of the round.

    Args:
        config: the round.
        goal: the most reports that are summed; later ones are refused and their devices treated
            as dropped. None: no limit.
        authority: the identity authority's public key, in signed rounds.
        entropy: draws the graph of an unsigned round.
        clock: seconds since 1970, for the dates of certificates.
    """

    message = AdvertiseKeys

    def __init__(
        self,
        config: RoundConfig,
        goal: int | None = None,
        authority: bytes | None = None,
        entropy: Entropy = os.urandom,
        clock: Callable[[], float] = time.time,
    ) -> None:
        super().__init__(config, frozenset(range(config.cohort)))
        if goal is not None and goal < config.min_reports:
            raise ValueError(f"goal ({goal}) is below min_reports ({config.min_reports})")
        if config.signed and authority is None:
            raise ValueError("authority is needed: the round has signed keys")
        self._goal = goal
        self._authority = authority
        self._entropy, self._clock = entropy, clock
        self._probe = KeyPair.from_secret(entropy(keys.KEY_BYTES))
        self._seen: set[bytes] = set()

    def _check(self, sender: int, content: AdvertiseKeys) -> None:
        unique = {content.box_key, content.mask_key, content.identity} - {b""}
        if self._seen & unique or content.box_key == content.mask_key:
            raise Refused(f"device {sender} advertises keys that were advertised before")
        self._probe.agree(content.box_key)
        self._probe.agree(content.mask_key)
        if self.config.signed:
            assert self._authority is not None
            identity, certificate = content.identity, content.certificate
            keys.check_certificate(self._authority, identity, certificate, self._clock())
            checks.check_advertised(content, self.config, sender)
        self._seen |= unique

    def close(self) -> tuple[CollectingShares, Outgoing]:
        """Draw the graph and tell each device its neighbours' keys."""
        config = self.config
        advertised = self._end(max(config.min_reports, config.graph.threshold))
        members = sorted(advertised)
        everybody = Roster(len(members), advertised)
        signed = config.signed
        seed = checks.graph_seed(everybody, config) if signed else self._entropy(keys.KEY_BYTES)
        graph = draw_graph(seed, members, config.graph.neighbours)
        rosters: Outgoing
        if signed:
            rosters = dict.fromkeys(members, everybody.encode_from_server(config))
        else:
            rosters = Written(
                members,
                lambda device: everybody.only(graph.neighbours(device)).encode_from_server(config),
            )
        return CollectingShares(config, advertised, graph, self._goal), rosters


class CollectingShares(Phase[ShareKeys]):
    """Second phase: devices deal shares of their secrets, in boxes that the server cannot open."""

    message = ShareKeys

    def __init__(
        self,
        config: RoundConfig,
        advertised: Mapping[int, AdvertiseKeys],
        graph: Graph,
        goal: int | None,
    ) -> None:
        super().__init__(config, frozenset(advertised))
        self._advertised = advertised
        self._graph = graph
        self._goal = goal

    def _check(self, sender: int, content: ShareKeys) -> None:
        if list(content.shares) != self._graph.holders(sender):
            raise Refused(f"device {sender} dealt shares to others than its holders")

    def close(self) -> tuple[CollectingInputs, Outgoing]:
        """Hand each box to its holder."""
        dealt, graph, config = self._end(self.config.min_reports), self._graph, self.config

        def inbox(holder: int) -> bytes:
            dealers = [dealer for dealer in graph.holders(holder) if dealer in dealt]
            boxes = {dealer: dealt[dealer].shares[holder] for dealer in dealers}
            return ShareInbox(boxes).encode_from_server(config)

        registry = Registry(self._advertised, dealt, graph)
        return CollectingInputs(config, registry, self._goal), Written(dealt, inbox)


class CollectingInputs(Phase[MaskedInput]):
    """Third phase: masked inputs are added up as they arrive."""

    message = MaskedInput

    def __init__(self, config: RoundConfig, registry: Registry, goal: int | None) -> None:
        super().__init__(config, frozenset(registry.dealt))
        self._registry = registry
        self._goal = goal
        self._survivors: set[int] = set()
        self._total = config.ring.zeros(config.dim)
        self._waiting: list[bytes | memoryview] = []  # to be added to the total

    @property
    def missing(self) -> frozenset[int]:
        return self.awaited - self._survivors

    @property
    def full(self) -> bool:
        """Was the goal reached?"""
        return self._goal is not None and len(self._survivors) >= self._goal

    def receive(self, sender: int, message: bytes) -> None:
        """Take one masked input into the sum.

        Raises:
            Refused: past the goal too; the late vector stays masked for good.
        """
        if sender in self._survivors:
            raise Refused(f"device {sender} has spoken in this phase already")
        if self.full:
            raise Refused(f"the goal of {self._goal} reports was reached: this one is dropped")
        super().receive(sender, message)
        self._waiting.append(self._received.pop(sender).packed)
        self._survivors.add(sender)
        if len(self._waiting) == TOGETHER:
            self._add_waiting()

    def _add_waiting(self) -> None:
        self.config.ring.add_packed(self._total, self._waiting)
        self._waiting = []

    def close(self) -> tuple[CollectingConfirmations | CollectingAnswers, Outgoing]:
        """Fix the survivor set: from here on nobody joins it."""
        self._end(0)
        config = self.config
        if len(self._survivors) < config.min_reports:
            self._total.fill(0)
            self._waiting = []
            raise TooFewReports(len(self._survivors), config.min_reports)
        self._add_waiting()
        survivors = frozenset(self._survivors)
        outcome = SurvivorSet(survivors, self.awaited - survivors)
        if config.signed:
            message = outcome.encode_from_server(config)
            confirming = CollectingConfirmations(config, self._registry, outcome, self._total)
            return confirming, dict.fromkeys(survivors, message)
        request = UnmaskRequest(outcome, {}).encode_from_server(config)
        answers = CollectingAnswers(config, survivors, self._registry, outcome, self._total)
        return answers, dict.fromkeys(survivors, request)


class CollectingConfirmations(Phase[Confirmation]):
    """Fourth phase, signed rounds: survivors sign the survivor set."""

    message = Confirmation

    def __init__(
        self, config: RoundConfig, registry: Registry, outcome: SurvivorSet, total: Words
    ) -> None:
        super().__init__(config, outcome.survivors)
        self._registry = registry
        self._outcome = outcome
        self._total = total

    def _check(self, sender: int, content: Confirmation) -> None:
        keys.check_signature(
            self._registry.advertised[sender].identity,
            content.signature,
            self.config.context,
            checks.SURVIVORS,
            self._outcome.body(self.config),
        )

    def close(self) -> tuple[CollectingAnswers, Outgoing]:
        """Show a quorum's signatures to all who signed."""
        config = self.config
        quorum = config.quorum(len(self._registry.advertised))
        confirmed = self._end(0)
        if len(confirmed) < quorum:
            raise TooFewAnswers(f"{len(confirmed)} devices confirmed, the quorum is {quorum}")
        signatures = {device: confirmed[device].signature for device in sorted(confirmed)[:quorum]}
        request = UnmaskRequest(self._outcome, signatures).encode_from_server(config)
        answers = CollectingAnswers(
            config, frozenset(confirmed), self._registry, self._outcome, self._total
        )
        return answers, dict.fromkeys(confirmed, request)


class CollectingAnswers(Phase[UnmaskAnswer]):
    """Last phase: shares arrive; every one is held against its dealer's commitment."""

    message = UnmaskAnswer

    def __init__(
        self,
        config: RoundConfig,
        awaited: frozenset[int],
        registry: Registry,
        outcome: SurvivorSet,
        total: Words,
    ) -> None:
        super().__init__(config, awaited)
        self._registry = registry
        self._outcome = outcome
        self._total = total

    def _check(self, sender: int, content: UnmaskAnswer) -> None:
        check_answer(content, sender, self._outcome, self._registry, self.config)

    def close(self) -> OpenedRound:
        """Recover the masks' seeds, remove the masks, and open the sum.

        Raises:
            SumLost: too few answers for some device's secret, or a dealer's shares belong to
                another secret than it committed to. The devices were asked, so the sum counts as
                opened.
        """
        answers, reports = self._end(0), len(self._outcome.survivors)
        try:
            return open_round(self._total, answers, self._outcome, self._registry, self.config)
        except WrongShares as wrong:
            raise SumLost(reports, str(wrong), wrong.device) from wrong
        except TooFewAnswers as few:
            raise SumLost(reports, str(few)) from few
