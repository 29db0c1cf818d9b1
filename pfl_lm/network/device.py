"""The reference client: one device that trains in rounds, or answers the questions of rounds."""

from __future__ import annotations

import numpy as np

from pfl_lm.devices.training import train
from pfl_lm.models.models import Parameters
from pfl_lm.network import requirements
from pfl_lm.network.identity import DeviceKey
from pfl_lm.network.model_delta import apply, model_bytes, model_digest
from pfl_lm.network.participant import Participant, Sending
from pfl_lm.network.participation_rules import Task
from pfl_lm.network.question_device import QuestionDevice
from pfl_lm.network.question_task import states_question
from pfl_lm.network.rpc_client import DroppedFromRound, RpcClient
from pfl_lm.network.task_config import DeviceSetup, TaskConfig, policy_digest, round_config
from pfl_lm.network.transport import Message
from pfl_lm.payload.layout import Payload
from pfl_lm.run.context import choose_payload, text_of
from pfl_lm.run.privacy import RunPrivacy
from pfl_lm.secagg.config import RoundConfig
from pfl_lm.server.state import Broadcast, ServerState, open_round


def participant(
    client: RpcClient,
    key: DeviceKey,
    setup: DeviceSetup,
    sending: Sending = lambda round, kind: None,
) -> Participant:
    """Return the device that does what the server's task configuration states.

    Raises:
        ValueError: the device's setup does not allow it.
    """
    asks = states_question(client.task_config())
    return (QuestionDevice if asks else Device)(client, key, setup, sending)


class Device(Participant):
    """A device that trains in rounds until the run is over.

    Raises:
        ValueError: the server's task configuration is not the one that the device's setup states.
    """

    def __init__(
        self,
        client: RpcClient,
        key: DeviceKey,
        setup: DeviceSetup,
        sending: Sending = lambda round, kind: None,
    ) -> None:
        super().__init__(client, key, setup, sending)
        self._task_config = TaskConfig.read(client.task_config())
        self._context = self._task_config.context(setup)
        scenario = self._context.scenario
        self._rounds = scenario.rounds
        self._task = Task(self._task_config.run, policy_digest(setup.policy), scenario.seed)
        first = choose_payload(self._context, 0)
        self._privacy.grid(first.dim)  # refuses numbers that make no grid
        if self._insists:
            self._record.check_task(self._task)
            requirements.check_payload(self._policy, first)
        self._parameters: Parameters = {}
        self._have = -1  # the round whose model these are

    @property
    def _privacy(self) -> RunPrivacy:
        return self._context.privacy

    def _receive(self, round: int, invitation: Message) -> Broadcast:
        """Bring the model up to date; it must be the one that the invitation is about."""
        clip = requirements.check_clip(self._privacy, round, invitation.clip_norm)
        for have in (self._have, -1):
            values = self._client.model(have, round, model_bytes(self._context))
            try:
                model = apply(self._context, self._parameters, values, have, round)
            except ValueError as error:
                raise DroppedFromRound(str(error)) from None
            if model_digest(self._task_config, model) == invitation.model:
                self._parameters, self._have = model, round
                payload: Payload = choose_payload(self._context, round)
                return open_round(ServerState(round, model, clip=clip), payload)
        raise DroppedFromRound("the model that came is not the one that the round is about")

    def _agree(self, broadcast: Broadcast, invited: int) -> RoundConfig:
        model = model_digest(self._task_config, self._parameters)
        return round_config(self._context, broadcast, invited, model)

    def _update(self, broadcast: Broadcast) -> np.ndarray:
        """Train on the device's own text: float32[1, d], trained − received."""
        context, number = self._context, self._key.number
        task = context.task(broadcast, self._parameters)
        updates, _ = train(task, [text_of(context, number, broadcast.round)], [number])
        return updates
