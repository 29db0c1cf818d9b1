"""The whole protocol in one process: every message is written, carried and read.

For simulations with ``secure_aggregation = "protocol"``, for tests and for benchmarks. It stands
where ``IdealAggregator`` stands and opens the same bytes.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Literal

import numpy as np

from pfl_lm.distributed import Ranks
from pfl_lm.secagg import device as phases
from pfl_lm.secagg.config import LEAST_COHORT, DevicePolicy, MessageKind, RoundConfig, sends
from pfl_lm.secagg.errors import Refused, SumLost, WrongState
from pfl_lm.secagg.ideal import PAST_GOAL, Reports, in_memory, within_goal
from pfl_lm.secagg.keys import Identity, certify, public_key
from pfl_lm.secagg.noise import RemovableNoise
from pfl_lm.secagg.opening import OpenedRound
from pfl_lm.secagg.server import CollectingAnswers, CollectingConfirmations, CollectingKeys
from pfl_lm.secagg.sharing import Entropy
from pfl_lm.secagg.traffic import Traffic


class ProtocolAggregator:
    """Sum integer vectors with the protocol, among devices of this process.

    Args:
        config: the round.
        goal: the most reports that are summed, or None.
        past_goal: as in ``IdealAggregator``.
        silent: device → the first message that it does not send; others take part to the end.
            Devices that were never given a vector by ``close`` drop out at ``MessageKind.INPUT``.
        entropy: ``n -> n`` unpredictable bytes; anything but the default is for tests.
        noise: the removable components that devices add; what of them is in excess is still in
            the opened sum, whose ``noise_secrets`` name it. None: no components.

    Raises:
        TooFewReports: fewer devices advertised or shared keys than the round needs.
    """

    def __init__(
        self,
        config: RoundConfig,
        goal: int | None = None,
        past_goal: Literal["drop", "refuse"] = "drop",
        silent: Mapping[int, MessageKind] | None = None,
        entropy: Entropy = os.urandom,
        noise: RemovableNoise | None = None,
    ) -> None:
        if past_goal not in PAST_GOAL:
            raise ValueError(f'past_goal must be "drop" or "refuse": {past_goal!r}')
        self.config = config
        self.reports = 0
        self.upload_bytes = np.zeros(config.cohort, dtype=np.int64)
        self.download_bytes = np.zeros(config.cohort, dtype=np.int64)
        self._goal = goal
        self._past_goal = past_goal
        self._silent = dict(silent or {})
        self._noise = noise
        self._open = True
        authority, identities = _identities(config, entropy)
        policy = DevicePolicy(config.min_reports, LEAST_COHORT, 2, config.adversary, authority)
        advertised = {
            device: phases.KeysAdvertised.join(config, device, policy, identity, entropy)
            for device, identity in enumerate(identities)
            if self._sends(device, MessageKind.KEYS)
        }
        collecting = CollectingKeys(config, goal, authority, entropy)
        self._deliver(collecting, advertised)
        dealing, rosters = collecting.close()
        shared = {
            device: advertised[device].share_keys(self._download(device, roster))
            for device, roster in rosters.items()
            if self._sends(device, MessageKind.SHARES)
        }
        self._deliver(dealing, shared)
        self._inputs, self._inboxes = dealing.close()
        self._waiting = {d: shared[d] for d in sorted(shared) if self._sends(d, MessageKind.INPUT)}
        self._answered: list[int] = []
        self._masked: dict[int, phases.InputMasked] = {}

    @property
    def waiting(self) -> list[int]:
        """The devices that have yet to report, and will if they are let."""
        return list(self._waiting)

    def submit(self, vectors: Reports, devices: Sequence[int] | None = None) -> int:
        """Let K devices report, integers (K, d); return how many reports were summed.

        Args:
            vectors: one for each device, noise included.
            devices: by their place in the cohort; by default the next in order.

        Raises:
            ValueError: another shape or dtype, or a vector without a device that can report.
            Refused: past the goal, where the aggregator refuses.
            WrongState: the round is closed.
        """
        if not self._open:
            raise WrongState("the round is closed: a late report is not summed")
        room = None if self._goal is None else self._goal - self.reports
        ring, dim = self.config.ring, self.config.dim
        summed = in_memory(within_goal(vectors, dim, ring, room, self._past_goal))
        chosen = self.waiting[: len(vectors)] if devices is None else list(devices)
        check_devices(chosen[: len(summed)], self._waiting, len(summed))
        for index, vector in zip(chosen, summed, strict=False):
            state = self._waiting.pop(index)
            inbox = self._download(index, self._inboxes[index])
            masked = state.mask_input(inbox, vector, self._noise)
            self._masked[index] = masked
            self._inputs.receive(index, self._upload(index, masked.message))
            masked.message = b""  # delivered; a whole cohort's vectors would fill the memory
        self.reports += len(summed)
        return len(summed)

    def merge(self, ranks: Ranks) -> None:
        """Do nothing: the protocol's messages are exchanged within one process."""
        assert ranks.count == 1

    def close(self) -> OpenedRound:
        """Run the rest of the protocol and open the sum.

        Raises:
            TooFewReports, TooFewAnswers: the sum stays closed.
            SumLost: too few devices answered, or one found too few of its neighbours among the
                survivors; likelier than 2^-30 only past the dropout that the graph was planned
                for. The devices were asked, so the round is paid for.
            WrongState: closed before.
        """
        if not self._open:
            raise WrongState("the round is closed already: a sum is opened once")
        self._open = False
        phase, messages = self._inputs.close()
        holders: dict[int, Any] = dict(self._masked)
        if isinstance(phase, CollectingConfirmations):
            holders = {
                device: holders[device].confirm(self._download(device, message))
                for device, message in messages.items()
                if self._sends(device, MessageKind.CONFIRMATION)
            }
            self._deliver(phase, holders)
            phase, messages = phase.close()
        answers = {
            device: self._answer(device, holders[device], message)
            for device, message in messages.items()
            if self._sends(device, MessageKind.ANSWER)
        }
        assert isinstance(phase, CollectingAnswers)
        self._deliver(phase, answers)
        self._answered = list(answers)
        return phase.close()

    def traffic(self) -> Traffic:
        """What the devices that took part to the end sent and received, in the mean."""
        if not self._answered:
            return Traffic(0, 0, 0)
        up, down = (
            round(float(counted[self._answered].mean()))
            for counted in (self.upload_bytes, self.download_bytes)
        )
        return Traffic(up, down, self.config.ring.packed_bytes(self.config.dim))

    def _answer(self, device: int, holder: Any, request: bytes) -> phases.Unmasked:
        """Let a device answer the request; devices were asked, so a refusal loses the sum."""
        try:
            answered: phases.Unmasked = holder.unmask(self._download(device, request))
            return answered
        except Refused as refusal:
            reason = f"device {device} refused to answer: {refusal}"
            raise SumLost(self.reports, reason, device) from refusal

    def _sends(self, device: int, kind: MessageKind) -> bool:
        return sends(self._silent, device, kind)

    def _deliver(self, phase: Any, states: Mapping[int, Any]) -> None:
        for device, state in states.items():
            phase.receive(device, self._upload(device, state.message))

    def _upload(self, device: int, message: bytes) -> bytes:
        self.upload_bytes[device] += len(message)
        return message

    def _download(self, device: int, message: bytes) -> bytes:
        self.download_bytes[device] += len(message)
        return message


def check_devices(chosen: Sequence[int], waiting: Collection[int], vectors: int) -> None:
    """Raise ``ValueError`` unless each vector has one device that has yet to report."""
    if (
        len(chosen) < vectors
        or len(set(chosen)) < len(chosen)
        or not all(map(waiting.__contains__, chosen))
    ):
        raise ValueError(
            f"{vectors} vectors for {len(chosen)} of {len(waiting)} devices that have yet to report"
        )


def _identities(
    config: RoundConfig, entropy: Entropy
) -> tuple[bytes | None, list[Identity] | list[None]]:
    """An authority of this process and an identity per device, where the round is signed."""
    if not config.signed:
        return None, [None] * config.cohort
    authority = entropy(32)
    return public_key(authority), [certify(authority, entropy(32)) for _ in range(config.cohort)]
