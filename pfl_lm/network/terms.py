"""What server and devices agree on before the first round, and the world that a device makes of it.

The server states its scenario as JSON. The device holds it against what it has of its own: its
vocabulary, its privacy policy (it ships with the app), its text. What the noise must be follows
from the device's own copy of the policy, never from the server's word.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from pydantic import TypeAdapter, ValidationError

from pfl_lm.dp.policy import Policy
from pfl_lm.language.models import roles
from pfl_lm.language.tokenizer import Tokenizer
from pfl_lm.model_file import Model
from pfl_lm.participation import simulated_rule
from pfl_lm.protection import Protection
from pfl_lm.runs import digest_of
from pfl_lm.scenario import PopulationChoice, Scenario
from pfl_lm.secagg.config import RoundConfig
from pfl_lm.secagg.parameters import Adversary
from pfl_lm.server.state import Broadcast
from pfl_lm.world import World

_TOLD = (  # of a scenario; the rest is the server's alone
    *("model", "payload", "training", "clip_norm", "cohort", "rounds", "seed", "reproducible"),
    *("secure_aggregation", "adversary", "corrupt", "dropout", "rotate", "modulus_bits"),
)


def served(world: World, enrolled: int) -> World:
    """Let a scenario's policy hold for the devices that are enrolled.

    Raises:
        ValueError: fewer devices than a cohort, or training that needs the server's simulation.
    """
    if world.scenario.payload.directions is not None:
        raise ValueError(
            "payload.directions: devices are not told of directions yet; train by gradients"
        )
    rule = simulated_rule(world.protection.policy, enrolled, world.protection.cohort)
    return replace(world, protection=replace(world.protection, rule=rule))


@dataclass(frozen=True)
class Terms:
    """What devices are told of a run.

    Attributes:
        scenario: what concerns the devices: model, payloads, training, clip norm, cohort, seed,
            and how reports are summed.
        enrolled: devices that may be invited: numbers 0 … enrolled − 1.
        tokenizer, policy: digests of the vocabulary and of the privacy policy.
    """

    scenario: dict[str, Any]
    enrolled: int
    tokenizer: str
    policy: str

    @classmethod
    def of(cls, world: World) -> Terms:
        """State the terms of a served world."""
        scenario = asdict(world.scenario)
        return cls(
            json.loads(json.dumps({name: scenario[name] for name in _TOLD})),
            world.protection.rule.population,
            world.tokenizer.digest,
            policy_digest(world.protection.policy),
        )

    @classmethod
    def read(cls, text: str) -> Terms:
        """Read what a server states.

        Raises:
            ValueError: no terms of this version.
        """
        try:
            return TypeAdapter(cls).validate_json(text)
        except ValidationError as error:
            raise ValueError(f"the server's terms cannot be read: {error}") from error

    def text(self) -> str:
        return json.dumps(asdict(self), sort_keys=True, separators=(",", ":"))

    @property
    def digest(self) -> bytes:
        """SHA-256 of the text: a part of every round's context, through the model's digest."""
        return hashlib.sha256(self.text().encode()).digest()

    def world(self, own: Own) -> World:
        """Return the world in which a device trains.

        Raises:
            ValueError: the terms are not those that the device was made for.
        """
        self._check(own)
        told = {**self.scenario, "population": asdict(PopulationChoice("synthetic"))}
        try:
            scenario = TypeAdapter(Scenario).validate_python(told)
        except ValidationError as error:
            raise ValueError(f"the server's scenario cannot be read: {error}") from error
        policy = own.policy
        protection = Protection(
            policy,
            scenario.cohort,
            scenario.clip_norm,
            simulated_rule(policy, self.enrolled, scenario.cohort),
            scenario.seed,
            scenario.reproducible,
            separate_noise=True,
            rotate=scenario.rotate,
            modulus_bits=scenario.modulus_bits,
        )
        start = Model(scenario.model, {}, {"kind": "received"})
        return World(
            scenario,
            own.tokenizer,
            OwnText(own.tokens, own.tokenizer),
            None,
            start,
            protection,
            roles(scenario.model),
        )

    def _check(self, own: Own) -> None:
        if self.tokenizer != own.tokenizer.digest:
            raise ValueError("the server's vocabulary is not this device's; update the app")
        if self.policy != policy_digest(own.policy):
            raise ValueError("the server's privacy policy is not this device's; update the app")
        if own.trial:
            return
        if own.policy is None or own.policy.noise.at == "none":
            raise ValueError("there is no privacy policy: only a trial runs without one")
        if self.scenario.get("reproducible"):
            raise ValueError("noise that can be repeated protects nobody: only a trial runs so")
        if self.scenario.get("cohort") != own.policy.report_goal:
            raise ValueError(
                f"cohort = {self.scenario.get('cohort')} is not the policy's report_goal = "
                f"{own.policy.report_goal}: the noise would fall short; only a trial runs so"
            )


@dataclass(frozen=True)
class Own:
    """What a device brings: its vocabulary, its policy, its text.

    Attributes:
        tokens: int32[n], ``<s> w w </s> <s> …`` as in a population.
        trial: take part where nobody is protected: noise scaled down to a small cohort, from a
            seeded stream, or none.
    """

    tokenizer: Tokenizer
    policy: Policy | None
    tokens: np.ndarray
    trial: bool = False


class OwnText:
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


def policy_digest(policy: Policy | None) -> str:
    """Digest of every number of a policy; what was reviewed is not one of them."""
    if policy is None:
        return digest_of(None)
    return digest_of({name: v for name, v in asdict(policy).items() if name != "reviewed"})


def round_config(world: World, broadcast: Broadcast, invited: int, model: bytes) -> RoundConfig:
    """Return what one round's devices and server agree on; both sides compute it.

    Args:
        invited: devices in the cohort.
        model: digest of the whole model and of the terms (``broadcast.model_digest``).

    Raises:
        TooFewReports: a cohort too small to be opened.
    """
    grid = world.protection.grid(broadcast.payload.dim)
    return replace(world.aggregation.config(broadcast, grid, invited), model=model)


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
