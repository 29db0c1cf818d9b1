"""What server and devices agree on before a question's first round.

The counterpart of ``task_config`` for a question: JSON too, with a field ``question`` by which a
device tells the two apart. Who secure aggregation withstands, the noise and the fewest reports are
not stated: each device takes them from its own copy of the policy.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import asdict, dataclass, replace
from typing import Any

from pydantic import TypeAdapter, ValidationError

from pfl_lm.dp.policy import Policy
from pfl_lm.network import requirements
from pfl_lm.network.task_config import DeviceSetup, policy_digest
from pfl_lm.queries.ask import QuerySession, broadcast_of
from pfl_lm.queries.query import Query
from pfl_lm.queries.stated import check_groups, check_plan
from pfl_lm.secagg.config import DIGEST_BYTES, RoundConfig
from pfl_lm.server.state import Broadcast


@dataclass(frozen=True)
class Terms:
    """What a question keeps of the policy, in the names of ``requirements.RunTerms``."""

    cohort: int
    rounds: int
    reproducible: bool
    adversary: str
    corrupt: float
    clip_norm: float = 1.0
    secure_aggregation: str = "protocol"
    dropout: float = 0.0


@dataclass(frozen=True)
class QuestionTask:
    """The question that a server states to devices.

    Attributes:
        run: the question's id, 32 hexadecimal digits drawn at random when it began.
        trial: the question protects nobody; devices of full strength refuse it.
        question: what is asked in all rounds (``queries.stated``).
        cohort: devices asked in a round.
        rounds: that the question may take.
        seed: of the public cohorts.
        reproducible: noise follows from the seed, which protects nobody.
        enrolled: devices that may be asked: numbers 0 … enrolled − 1.
        tokenizer, policy: digests of the vocabulary and of the privacy policy.
    """

    run: str
    trial: bool
    question: dict[str, Any]
    cohort: int
    rounds: int
    seed: int
    reproducible: bool
    enrolled: int
    tokenizer: str
    policy: str

    @classmethod
    def read(cls, text: str) -> QuestionTask:
        """Read what a server states.

        Raises:
            ValueError: the text is no question of this version.
        """
        try:
            return TypeAdapter(cls).validate_json(text, strict=True)
        except ValidationError as error:
            raise ValueError(f"the server's question cannot be read: {error}") from error

    def text(self) -> str:
        return json.dumps(asdict(self), sort_keys=True, separators=(",", ":"))

    def digest(self, content: bytes) -> bytes:
        """Return what stands in a round's ``RoundConfig.model``: a digest of task and content.

        A device that was asked something else derives other keys and masks.
        """
        task = hashlib.sha256(self.text().encode()).digest()
        return hashlib.sha256(b"pfl_lm network 2 question" + task + content).digest()

    def session(self, policy: Policy) -> QuerySession:
        """Return what the rounds share, under the reader's own copy of the policy.

        Raises:
            ValueError: the policy fits no question, or so few devices.
        """
        session = session_for(policy, self.enrolled, self.cohort, self.trial)
        return replace(session, seed=self.seed, reproducible=self.reproducible)

    def check(self, setup: DeviceSetup) -> QuerySession:
        """Return the session in which a device answers.

        Raises:
            ValueError: vocabulary or policy are not the device's, the question is none that it
                answers, or promises less than its own policy.
        """
        if not re.fullmatch("[0-9a-f]{32}", self.run):
            raise ValueError("run: the server states no id of 32 hexadecimal digits")
        if self.tokenizer != setup.tokenizer.digest:
            raise ValueError("the server's vocabulary is not this device's; update the app")
        if setup.policy is None:
            raise ValueError("policy: a question is answered under a policy; state one")
        if self.policy != policy_digest(setup.policy):
            raise ValueError("the server's privacy policy is not this device's; update the app")
        check_plan(self.question, setup.tokenizer.vocabulary_size)
        check_groups(self.question, setup.policy, setup.group)
        if not setup.trial:
            self._check_strength(setup, setup.policy)
        return self.session(setup.policy)

    def _check_strength(self, setup: DeviceSetup, policy: Policy) -> None:
        """Refuse what protects nobody, or less than the policy says."""
        if self.trial:
            raise ValueError("the server runs a trial, which protects nobody")
        if setup.record is None:
            raise ValueError("record: outside a trial a device keeps a participation record")
        self.check_run(policy)
        requirements.check_rule(policy, self.session(policy).rule)

    def check_run(self, policy: Policy) -> None:
        """Refuse a question that promises less than a policy; server and devices do."""
        stated = replace(
            terms(policy),
            cohort=self.cohort,
            rounds=self.rounds,
            reproducible=self.reproducible,
        )
        requirements.check_run(policy, stated, self.enrolled)


def terms(policy: Policy) -> Terms:
    """Return what a policy says of a question; whom a round withstands is stated nowhere else."""
    corrupt, adversary = requirements.least_corrupt(policy), policy.devices.adversary
    return Terms(policy.report_goal, policy.rounds, False, adversary, corrupt)


def session_for(policy: Policy, enrolled: int, cohort: int | None, trial: bool) -> QuerySession:
    """Return a session for the devices that are enrolled.

    Args:
        cohort: devices asked in a round; None: as many as the policy says, or in a trial allows.
        trial: restate the policy for few devices, each of which adds more noise.

    Raises:
        ValueError: the policy fits no question, or not these devices or this cohort.
    """
    if trial:
        return replace(QuerySession.of(policy, enrolled, cohort, "protocol"), trial=True)
    requirements.check_run(policy, terms(policy), enrolled)
    if cohort not in (None, policy.report_goal):
        raise ValueError(
            f"cohort = {cohort} is not the policy's report_goal = {policy.report_goal}; only a "
            "trial asks another number of devices"
        )
    return QuerySession(policy, enrolled, policy.report_goal, 0, "protocol")


def round_config(
    session: QuerySession, query: Query, broadcast: Broadcast, invited: int, model: bytes
) -> RoundConfig:
    """Return what a round's devices and server agree on; both sides compute it.

    Args:
        invited: devices in the cohort.
        model: digest of the task and of the round's content (``QuestionTask.digest``).

    Raises:
        TooFewReports: a cohort too small to be opened.
    """
    return replace(session.summed_by(query).config(broadcast, invited), model=model)


def first_round(session: QuerySession, query: Query) -> RoundConfig:
    """Return what a question's first round would be, but for its content."""
    return round_config(session, query, broadcast_of(query, 0), session.cohort, bytes(DIGEST_BYTES))


def states_question(text: str) -> bool:
    """Tell whether a server's task configuration states a question, and no training."""
    try:
        content = json.loads(text)
    except (ValueError, RecursionError):  # no JSON, or nested too deep: no question
        return False
    return isinstance(content, dict) and "question" in content
