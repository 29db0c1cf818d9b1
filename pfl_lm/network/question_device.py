"""A device that answers a question from its own text, round by round."""

from __future__ import annotations

import numpy as np

from pfl_lm.network.identity import DeviceKey
from pfl_lm.network.participant import Participant, Sending
from pfl_lm.network.participation_rules import Task
from pfl_lm.network.question_task import QuestionTask, round_config
from pfl_lm.network.rpc_client import DroppedFromRound, RpcClient
from pfl_lm.network.task_config import DeviceSetup, DeviceText, policy_digest
from pfl_lm.network.transport import Message
from pfl_lm.queries.ask import broadcast_of
from pfl_lm.queries.query import Answer, Query
from pfl_lm.queries.stated import Asked, asked_of, most_bytes, purpose_of
from pfl_lm.queries.two_models import TwoModels
from pfl_lm.run.privacy import RunPrivacy
from pfl_lm.secagg.config import RoundConfig
from pfl_lm.secagg.errors import Refused
from pfl_lm.server.state import Broadcast


class QuestionDevice(Participant):
    """A device that answers the rounds of a question until it is over.

    Guarantees:
        Cells and bounds of a round follow from what the device received, whose digest stands in
        the context of its keys: devices that were asked different things sum nothing together.
        Its answer is within the bounds of the query, and the clip holds whatever it is.

    Raises:
        ValueError: the question is not one that the device's setup allows.
    """

    _content: bytes  # of the round under way
    _asked: Asked
    _passed_over: frozenset[str]
    _query: Query

    def __init__(
        self,
        client: RpcClient,
        key: DeviceKey,
        setup: DeviceSetup,
        sending: Sending = lambda round, kind: None,
    ) -> None:
        super().__init__(client, key, setup, sending)
        self._question = QuestionTask.read(client.task_config())
        self._session = self._question.check(setup)
        self._rounds = self._question.rounds
        seed, policy = self._question.seed, policy_digest(setup.policy)
        purpose = purpose_of(self._question.question)
        self._task = Task(self._question.run, policy, seed, purpose)
        if self._insists:
            self._record.check_task(self._task)

    @property
    def _privacy(self) -> RunPrivacy:
        return self._session.privacy(self._query)

    def _receive(self, round: int, invitation: Message) -> Broadcast:
        """Download what the round asks for; it must be what the invitation is about."""
        if invitation.clip_norm:
            raise Refused(f"the server states clip_norm = {invitation.clip_norm:g}; it is 1")
        size = self._setup.tokenizer.vocabulary_size
        content = self._client.model(-1, round, most_bytes(self._question.question, size))
        if self._question.digest(content) != invitation.model:
            raise DroppedFromRound("the question that came is not the one that the round is about")
        try:
            asked, passed_over = asked_of(self._question.question, content, size)
            query = asked.query(self._session.policy.noise.min_dim)
        except ValueError as error:
            raise Refused(str(error)) from None
        self._content, self._query = content, query
        self._asked, self._passed_over = asked, passed_over
        return broadcast_of(query, round)

    def _agree(self, broadcast: Broadcast, invited: int) -> RoundConfig:
        model = self._question.digest(self._content)
        return round_config(self._session, self._query, broadcast, invited, model)

    def _update(self, broadcast: Broadcast) -> np.ndarray:
        """Answer from the device's own text: float32[1, d]."""
        return self._query.vectors([self._answer()])

    def _answer(self) -> Answer:
        setup = self._setup
        if isinstance(self._asked, TwoModels):
            text = DeviceText(setup.tokens, setup.tokenizer)
            return self._asked.answer(text, setup.tokenizer, setup.group)
        cell_of = {label: cell for cell, label in enumerate(self._query.labels)}
        return self._asked.answer(setup.unknown_words, cell_of, self._passed_over)
