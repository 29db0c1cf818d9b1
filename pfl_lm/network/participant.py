"""A device's rounds as a straight line, whatever it reports: a trained update or an answer.

The text, the report as it was computed, the noise and the masks' secrets stay here; a masked vector
leaves, and shares of secrets in boxes for other devices.
"""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable

import numpy as np

from pfl_lm.dp.cohort import cohort
from pfl_lm.dp.policy import Policy
from pfl_lm.network import requirements
from pfl_lm.network.identity import DeviceKey
from pfl_lm.network.participation_record import ParticipationRecord
from pfl_lm.network.participation_rules import InvitationRefused, Task
from pfl_lm.network.rpc_client import DroppedFromRound, RpcClient
from pfl_lm.network.task_config import DeviceSetup, stated
from pfl_lm.network.transport import Message
from pfl_lm.run.privacy import RunPrivacy
from pfl_lm.run.round import protect_updates
from pfl_lm.secagg.config import DevicePolicy, RoundConfig
from pfl_lm.secagg.device import InputMasked, KeysAdvertised, SurvivorsConfirmed
from pfl_lm.secagg.errors import Refused, SecaggError
from pfl_lm.server.state import Broadcast

log = logging.getLogger("pfl_lm.network")

_OVER = 255
_KIND_AT = 5  # of a frame

Sending = Callable[[int, int], None]  # (round, kind of the message that is about to be sent)


class Participant(ABC):
    """A device that takes part in rounds until the run is over.

    Args:
        client: its connection to the server.
        key: who it is.
        setup: its vocabulary, policy and text.
        sending: called before every message of the protocol; trials let processes die there.
    """

    _task: Task  # by which the participation record knows the run
    _rounds: int  # of the run

    def __init__(
        self,
        client: RpcClient,
        key: DeviceKey,
        setup: DeviceSetup,
        sending: Sending = lambda round, kind: None,
    ) -> None:
        self._client, self._key, self._sending = client, key, sending
        self._setup = setup
        self._last = -1  # the round last taken part in: in none twice

    def run(self) -> int:
        """Take part whenever invited, until the run is over; return in how many rounds."""
        taken_part, cursor, item = 0, (-1, 0), None
        log.info("device %d is admitted and waits for an invitation", self._key.number)
        while True:
            item = item or self._client.fetch(*cursor)
            content, told = item.WhichOneof("content"), None
            if content is None:
                log.info("device %d still waits for an invitation", self._key.number)
            elif content == "finished":
                log.info("device %d: %s", self._key.number, item.finished)
                return taken_part
            elif content == "invitation" and item.round > self._last:
                told = self._try(item.round, item.invitation)
                taken_part += told is not None
                cursor = (item.round, _OVER)
            else:
                cursor = (item.round, item.step)
            item = told

    @property
    def _insists(self) -> bool:
        """Whether this device holds rounds against its own policy: always, but in a trial."""
        return not self._setup.trial

    @property
    def _policy(self) -> Policy:
        assert self._setup.policy is not None
        return self._setup.policy

    @property
    def _record(self) -> ParticipationRecord:
        assert self._setup.record is not None
        return self._setup.record

    def _try(self, round: int, invitation: Message) -> Message | None:
        """Take part in a round and return what the server says next; or say why not."""
        self._last = round
        try:
            self._check_invitation(round)
            told = self._take_part(round, invitation)
        except (DroppedFromRound, InvitationRefused, SecaggError) as reason:
            log.warning("device %d leaves round %d: %s", self._key.number, round, reason)
            return None
        log.info("device %d took part in round %d", self._key.number, round)
        return told

    def _check_invitation(self, round: int) -> None:
        """Refuse a round that is none of the run, and one that the record forbids.

        Raises:
            InvitationRefused: naming the rule.
        """
        if not 0 <= round < self._rounds:
            last = self._rounds - 1
            raise InvitationRefused(f"round {round} is none of the run's rounds 0 to {last}")
        if self._insists:
            self._record.check(self._task, self._policy, round)

    def _take_part(self, round: int, invitation: Message) -> Message:
        """Download, train or answer, protect, and speak the protocol to its end.

        Guarantees:
            What leaves the device is clipped, carries the device's own share of the noise as its
            own copy of the policy has it, and is masked. It reports once in a round.
            The participation is on this device's disk before the report leaves.

        Returns:
            The item that the server answers the last message with: of the next round, or empty.
        """
        log.info("device %d is invited to round %d: downloads and works", self._key.number, round)
        broadcast = self._receive(round, invitation)
        config, place = self._config(broadcast, invitation)
        update = self._update(broadcast)  # first: a device that is switched off now costs no mask
        keys = KeysAdvertised.join(config, place, self._rules(config), self._key.identity)
        privacy, number = self._privacy, self._key.number
        vectors, _ = protect_updates(privacy, update, broadcast, [number], config.cohort)
        grid = privacy.grid(broadcast.payload.dim)
        removable = privacy.removable_noise(grid, config.cohort)
        shared = keys.share_keys(self._exchange(round, keys.message))
        masked = shared.mask_input(self._exchange(round, shared.message), vectors[0], removable)
        if self._insists:
            self._record.enter(self._task, self._policy, round)
        holder: InputMasked | SurvivorsConfirmed = masked
        if config.signed:
            holder = masked.confirm(self._exchange(round, masked.message))
        answer = holder.unmask(self._exchange(round, holder.message))
        return self._send(round, answer.message, seen=_OVER)

    @property
    @abstractmethod
    def _privacy(self) -> RunPrivacy:
        """The clip norm, the grid and the noise of the round under way."""

    @abstractmethod
    def _receive(self, round: int, invitation: Message) -> Broadcast:
        """Download what the round is about; it must be what the invitation names.

        Raises:
            DroppedFromRound: other bytes came.
            Refused: it states what this device does not accept.
        """

    @abstractmethod
    def _agree(self, broadcast: Broadcast, invited: int) -> RoundConfig:
        """Compute what devices and server agree on in a round; raises ValueError."""

    @abstractmethod
    def _update(self, broadcast: Broadcast) -> np.ndarray:
        """Compute from the device's own text what it reports before its clip: float32[1, d]."""

    def _config(self, broadcast: Broadcast, invitation: Message) -> tuple[RoundConfig, int]:
        """Compute what the round must be like and refuse any other.

        Raises:
            Refused: naming what differs.
        """
        number = self._key.number
        if self._insists:
            requirements.check_payload(self._policy, broadcast.payload)
        invited = cohort(self._privacy.rule, self._task.seed, broadcast.round)
        place = invitation.place
        if place >= len(invited) or invited[place] != number:
            raise Refused(
                f"device {number} is not invited by the cohort rule of the task configuration"
            )
        try:
            config = self._agree(broadcast, len(invited))
        except ValueError as error:
            raise Refused(f"the run's numbers make no round: {error}") from None
        for name, mine in stated(config).items():
            if (theirs := getattr(invitation, name)) != mine:
                raise Refused(f"the server states {name} = {theirs!r}, it should be {mine!r}")
        return config, place

    def _rules(self, config: RoundConfig) -> DevicePolicy:
        """What this device insists on: its policy's numbers; in a trial what it computed."""
        if self._insists:
            return requirements.device_policy(self._policy, self._key.authority)
        least = config.min_reports
        return DevicePolicy(
            least,
            max(3, least),
            config.graph.neighbours,
            config.adversary,
            self._key.authority,
        )

    def _exchange(self, round: int, frame: bytes) -> bytes:
        """Send a message and return the server's next.

        Raises:
            DroppedFromRound: the round ended, or goes on without this device.
        """
        kind = frame[_KIND_AT]
        item = self._send(round, frame, seen=kind)
        while (content := item.WhichOneof("content")) is None:
            log.info("device %d waits for others in round %d", self._key.number, round)
            item = self._client.fetch(round, kind)
        if content == "frame" and item.round == round:
            return bytes(item.frame)
        raise DroppedFromRound(item.over or "the round ended in the meantime")

    def _send(self, round: int, frame: bytes, seen: int) -> Message:
        self._sending(round, frame[_KIND_AT])
        return self._client.send(round, frame, seen)
