"""What server and devices agree on before the first round, and the run context of a device.

The server states its scenario as JSON. The device compares it with what the device itself holds:
its vocabulary, its privacy policy (it ships with the app), its text. What the noise must be follows
from the device's own copy of the policy, never from the server's word.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from pydantic import TypeAdapter, ValidationError

from pfl_lm.dp.policy import Policy
from pfl_lm.models.file import Model
from pfl_lm.models.models import roles
from pfl_lm.network import requirements
from pfl_lm.network.participation_record import ParticipationRecord
from pfl_lm.queries.discover import most_used_first
from pfl_lm.recipes import from_plain
from pfl_lm.run.context import RunContext, choose_payload
from pfl_lm.run.deployment import Deployment
from pfl_lm.run.folder import digest_of
from pfl_lm.run.privacy import RunPrivacy
from pfl_lm.run.scenario import PopulationConfig, Scenario
from pfl_lm.run.simulated_rule import simulated_rule
from pfl_lm.secagg.config import DIGEST_BYTES, RoundConfig
from pfl_lm.secagg.parameters import Adversary
from pfl_lm.server.state import Broadcast
from pfl_lm.text.tokenizer import Tokenizer

_MOST_LAYERS = 1000  # a device does not count the parameters of an absurd model
_TOLD = (  # of a scenario; the rest is the server's alone
    *("model", "payload", "training", "clip_norm", "cohort", "rounds", "seed", "reproducible"),
    *("secure_aggregation", "adversary", "corrupt", "dropout", "rotate", "modulus_bits"),
)


def served(context: RunContext, enrolled: int, trial: bool = False) -> RunContext:
    """Let a scenario's policy hold for the devices that are enrolled.

    Args:
        trial: scale the policy down to few devices, which protects nobody.

    Raises:
        ValueError: fewer devices than a cohort, training that needs the server's simulation, or
            a run that devices of full strength would refuse.
    """
    if not trial:
        requirements.check_run(context.privacy.policy, context.scenario, enrolled)
    elif context.privacy.groups > 1:
        raise ValueError(f"groups = {context.privacy.groups}: {requirements.ONE_SUM}")
    if context.scenario.payload.directions is not None:
        raise ValueError(
            "payload.directions: devices are not told of directions yet; train by gradients"
        )
    rule = simulated_rule(context.privacy.policy, enrolled, context.privacy.cohort)
    context = replace(
        context, privacy=replace(context.privacy, rule=rule, trial=trial), served=True
    )
    if not trial:
        assert context.privacy.policy is not None
        first = Broadcast(0, choose_payload(context, 0), np.empty(0, np.float32))
        config = round_config(context, first, context.privacy.cohort, bytes(DIGEST_BYTES))
        requirements.check_round(context.privacy.policy, config)
    return context


@dataclass(frozen=True)
class TaskConfig:
    """The part of a run that the server states to devices.

    Attributes:
        run: the run's id, 32 hexadecimal digits drawn at random when it began.
        trial: the run protects nobody; devices of full strength refuse it.
        scenario: what concerns the devices: model, payloads, training, clip norm, cohort, seed,
            and how reports are summed.
        enrolled: devices that may be invited: numbers 0 … enrolled − 1.
        tokenizer, policy: digests of the vocabulary and of the privacy policy.
    """

    run: str
    trial: bool
    scenario: dict[str, Any]
    enrolled: int
    tokenizer: str
    policy: str

    @classmethod
    def of(cls, context: RunContext, run: str, trial: bool = False) -> TaskConfig:
        """Return the task configuration of a served run."""
        scenario = asdict(context.scenario)
        return cls(
            run,
            trial,
            json.loads(json.dumps({name: scenario[name] for name in _TOLD})),
            context.privacy.rule.population,
            context.tokenizer.digest,
            policy_digest(context.privacy.policy),
        )

    @classmethod
    def read(cls, text: str) -> TaskConfig:
        """Read what a server states.

        Raises:
            ValueError: the text is no task configuration of this version.
        """
        try:
            return TypeAdapter(cls).validate_json(text, strict=True)
        except ValidationError as error:
            raise ValueError(f"the server's task configuration cannot be read: {error}") from error

    def text(self) -> str:
        return json.dumps(asdict(self), sort_keys=True, separators=(",", ":"))

    @property
    def digest(self) -> bytes:
        """SHA-256 of the text: a part of every round's context, through the model's digest."""
        return hashlib.sha256(self.text().encode()).digest()

    def context(self, setup: DeviceSetup) -> RunContext:
        """Return the run context in which a device trains.

        Raises:
            ValueError: the run is not the one that the device's own setup states, or it promises
                less than the device's own policy.
        """
        scenario = self._read_scenario()
        self._check(setup, scenario)
        policy = setup.policy
        rule = simulated_rule(policy, self.enrolled, scenario.cohort)
        if not setup.trial:
            assert policy is not None
            requirements.check_rule(policy, rule)
        privacy = RunPrivacy(
            Deployment(policy),
            cohort=scenario.cohort,
            clip_norm=scenario.clip_norm,
            rule=rule,
            seed=scenario.seed,
            reproducible=scenario.reproducible,
            separate_noise=True,
            rotate=scenario.rotate,
            modulus_bits=scenario.modulus_bits,
        )
        return RunContext(
            scenario,
            setup.tokenizer,
            DeviceText(setup.tokens, setup.tokenizer),
            None,
            Model(scenario.model, {}, {"kind": "received"}),
            privacy,
            roles(scenario.model),
        )

    def _read_scenario(self) -> Scenario:
        """Build the scenario that the server states.

        Raises:
            ValueError: other fields than those that devices are told, or impossible values.
        """
        if self.scenario.keys() != set(_TOLD):
            odd = sorted(self.scenario.keys() ^ set(_TOLD))
            raise ValueError(f"the server's scenario cannot be read: {', '.join(odd)}")
        fields = {**self.scenario, "population": asdict(PopulationConfig("synthetic"))}
        scenario = from_plain(Scenario, fields, "the server's scenario")
        if scenario.model.layers > _MOST_LAYERS:
            raise ValueError(f"model.layers = {scenario.model.layers} exceeds {_MOST_LAYERS}")
        if scenario.payload.directions is not None:
            raise ValueError("payload.directions: a device over the network trains by gradients")
        return scenario

    def _check(self, setup: DeviceSetup, scenario: Scenario) -> None:
        if not re.fullmatch("[0-9a-f]{32}", self.run):
            raise ValueError("run: the server states no id of 32 hexadecimal digits")
        if self.tokenizer != setup.tokenizer.digest:
            raise ValueError("the server's vocabulary is not this device's; update the app")
        if scenario.model.vocabulary_size != setup.tokenizer.vocabulary_size:
            raise ValueError(
                f"model.vocabulary_size = {scenario.model.vocabulary_size}, this device's "
                f"vocabulary has {setup.tokenizer.vocabulary_size} words"
            )
        if self.policy != policy_digest(setup.policy):
            raise ValueError("the server's privacy policy is not this device's; update the app")
        if setup.trial:
            return
        if self.trial:
            raise ValueError("the server runs a trial, which protects nobody")
        if setup.record is None:
            raise ValueError("record: outside a trial a device keeps a participation record")
        requirements.check_run(setup.policy, scenario, self.enrolled)


@dataclass(frozen=True)
class DeviceSetup:
    """What a device itself holds: its vocabulary, its policy, its text.

    Attributes:
        tokens: int32[n], ``<s> w w </s> <s> …`` as in a population.
        unknown_words: the words of the text that the vocabulary lacks, most used first; questions
            ask for them.
        record: which rounds this phone took part in; only a trial goes without.
        trial: take part where nobody is protected: noise scaled down to a small cohort, from a
            seeded stream, or none.
        group: this device's own of the policy's public labels; a comparison of models may ask by
            them.
    """

    tokenizer: Tokenizer
    policy: Policy | None
    tokens: np.ndarray
    record: ParticipationRecord | None = None
    trial: bool = False
    unknown_words: Sequence[str] = ()
    group: str | None = None


class DeviceText:
    """A population of one: this device's user, whatever the number."""

    name = "this device's own text"

    def __init__(self, tokens: np.ndarray, tokenizer: Tokenizer) -> None:
        self._tokens = tokens
        self.vocabulary_size, self.tokenizer_digest = tokenizer.vocabulary_size, tokenizer.digest

    def users(self, split: str) -> int:
        return int(split == "train")

    def tokens(self, split: str, user: int) -> np.ndarray:
        return self._tokens


def own_tokens(text: str, tokenizer: Tokenizer) -> np.ndarray:
    """Encode a user's text, a message a line: int32[n]."""
    stream: list[int] = []
    for line in text.splitlines():
        if ids := tokenizer.encode(line):
            stream += [tokenizer.bos_id, *ids, tokenizer.eos_id]
    return np.array(stream, dtype=np.int32)


def own_unknown_words(text: str, tokenizer: Tokenizer) -> list[str]:
    """Return the words of a user's text that the vocabulary lacks, most used first."""
    lines = text.splitlines()
    return most_used_first(Counter(w for line in lines for w in tokenizer.unknown_words(line)))


def policy_digest(policy: Policy | None) -> str:
    """Digest of every number of a policy; what was reviewed is not one of them.

    A policy that does not use what later versions added has the digest that it had before.
    """
    if policy is None:
        return digest_of(None)
    left_out = {"clipping": None, "groups": 1, "public_labels": ()}
    numbers = {name: v for name, v in asdict(policy).items() if name != "reviewed"}
    return digest_of({n: v for n, v in numbers.items() if n not in left_out or v != left_out[n]})


def round_config(
    context: RunContext, broadcast: Broadcast, invited: int, model: bytes
) -> RoundConfig:
    """Return what one round's devices and server agree on; both sides compute it.

    Args:
        invited: devices in the cohort.
        model: digest of the whole model and of the task configuration (``model_digest``).

    Raises:
        TooFewReports: a cohort too small to be opened.
    """
    return replace(context.aggregation.config(broadcast, invited), model=model)


def stated(config: RoundConfig) -> dict[str, int | bytes]:
    """What an invitation states of a round, in the names of the invitation."""
    graph = config.graph
    return {
        "model": config.model,
        "payload": config.payload,
        "cohort": config.cohort,
        "min_reports": config.min_reports,
        "neighbours": graph.neighbours,
        "threshold": graph.threshold,
        "corrupt": graph.corrupt,
        "window_survivors": graph.window_survivors,
        "noise_levels": config.noise_levels,
        "noise_step": config.noise_step,
        "dim": config.dim,
        "bits": config.bits,
        "adversary": list(Adversary).index(config.adversary),
    }
