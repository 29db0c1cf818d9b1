"""A scenario: everything the engineer chooses about a run (``simulations/*.toml``)."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from pfl_lm.devices.local_training import LocalTraining
from pfl_lm.models.spec import ModelSpec
from pfl_lm.payload.plan import PayloadPlan
from pfl_lm.secagg.config import LEAST_COHORT
from pfl_lm.server.optimizers import ServerOptimizer
from pfl_lm.validate import at_least, below_one, positive, refuse, typed


@dataclass(frozen=True)
class PopulationConfig:
    """Whose text: a store built by ``pfl-lm population build``, or invented users.

    Attributes:
        kind: ``store`` (a folder that `pfl-lm population build` wrote) or ``synthetic`` (invented
            users, at no storage).
        path: folder of the store.
        public_text: folder of a store of public text, for the bigram baseline.
        users: invented users in the training split (held-out splits have 10% of it, at most
            2,000 users each).
        tokens_per_user: mean length of an invented user's text, in tokens.
        language: of invented users: ``invented``, a grammar whose rules reach beyond neighbouring
            words, or ``english``, words that follow one another as often as in English.
        drift: how far what invented users talk about moves from the first round to the last, in
            topics; see ``SyntheticPopulation.era``. Evaluation follows.
    """

    kind: Literal["store", "synthetic"]
    path: Path | None = None
    public_text: Path | None = None
    users: int = 10_000
    tokens_per_user: int = 300
    language: Literal["invented", "english"] = "invented"
    drift: float = 0.0

    def __post_init__(self) -> None:
        typed(self)
        if self.kind == "store" and self.path is None:
            refuse("path is missing: a store is a folder that `population build` wrote")
        if self.kind == "synthetic" and self.path is not None:
            refuse("path makes no sense for invented users; remove it")
        at_least(1, users=self.users, tokens_per_user=self.tokens_per_user)
        at_least(0, drift=self.drift)
        if self.drift and self.kind == "store":
            refuse(f"drift = {self.drift}: only invented users drift")
        if self.language != "invented" and self.kind == "store":
            refuse("language is that of invented users; a store has its own; remove it")


@dataclass(frozen=True)
class EvaluationConfig:
    """How often and on how many held-out users the model is measured.

    Attributes:
        every: rounds between evaluations on validation users; 0 evaluates at the end only.
        users: validation users at each of them.
        final_users: test users at the end; their text is not looked at before.
        tokens_per_user: the most tokens that a user has.
    """

    every: int = 25
    users: int = 200
    final_users: int = 1000
    tokens_per_user: int = 400

    def __post_init__(self) -> None:
        typed(self)
        at_least(0, every=self.every)  # 0: only at the end
        at_least(1, users=self.users, final_users=self.final_users)
        at_least(2, tokens_per_user=self.tokens_per_user)  # the first is there to be gone on from


@dataclass(frozen=True)
class Scenario:
    """Everything that an engineer chooses about a run.

    Attributes:
        population: whose text.
        model: the next-word model.
        training: how a device trains in a round.
        payload: what travels between server and devices.
        server: what the server makes of the mean of a round.
        evaluation: how often, and on how many held-out users, the model is measured.
        description: one line for people.
        policy: the privacy policy, a file or the name of a shipped one; absent means no privacy,
            ε = ∞.
        tokenizer: folder of a built tokenizer; absent only with invented users.
        start: a model file of ``pfl-lm pretrain`` to start from; absent means random weights.
        seed: of all that is reproducible.
        rounds: rounds to run, at most the policy's.
        cohort: simulated reports per round (the mean of them under Poisson sampling). Noise on
            the mean is scaled to the policy's report goal.
        clip_norm: ℓ2 bound on an update.
        reproducible: take rounding and noise from seeded streams, so that a run can be repeated
            bit for bit; such a run protects no one, and the manifest says so.
        checkpoint_every: rounds between checkpoints.
        secure_aggregation: ``ideal`` computes what the protocol computes; ``protocol`` runs it,
            message by message.
        dropout: share of the invited devices that fall silent, each before one of its messages.
        fleet: recipe of the phones, a file or the name of a shipped one; they then decide who
            takes part, who is lost and how long a round takes. Absent means that all devices
            take part at once.
        adversary: the server that rounds withstand: ``semi-honest`` or ``active``; absent means
            semi-honest in a simulation and active over the network.
        corrupt: share of a cohort that may collude with the server; at least what the policy's
            ``honest_fraction`` leaves.
        separate_noise: let every device draw its own share of Skellam noise also where one draw
            has the distribution of their sum; the protocol always does, and alone where a policy
            removes excess noise.
        rotate: rotate updates at random before they are rounded, which makes the ring narrower
            and costs a transform per update; changes no ε, so it is no policy's business.
        modulus_bits: width of the ring; absent means the narrowest that is safe, and what is too
            narrow is refused.
        trimmed_groups: of a policy's public groups, those that are left out at either end in every
            coordinate before the mean of the others is taken; absent means 1 where there are three
            or more, else 0. It costs no privacy.
        aggregator: ``exact`` sums integers here; ``tff`` lets tensorflow-federated sum, add the
            noise and divide (``interop/tff_sum``), which makes of every run a simulation.
    """

    population: PopulationConfig
    model: ModelSpec
    training: LocalTraining
    rounds: int
    cohort: int
    clip_norm: float
    description: str = ""
    policy: Path | None = field(default=None, metadata={"recipe": True})
    tokenizer: Path | None = None
    start: Path | None = None
    seed: int = 0
    reproducible: bool = False
    checkpoint_every: int = 10
    secure_aggregation: Literal["ideal", "protocol"] = "ideal"
    dropout: float = 0.0
    fleet: Path | None = field(default=None, metadata={"recipe": True})
    adversary: Literal["semi-honest", "active"] | None = None
    corrupt: float = 0.05
    separate_noise: bool = False
    rotate: bool = False
    modulus_bits: int | None = None
    trimmed_groups: int | None = None
    aggregator: Literal["exact", "tff"] = "exact"
    payload: PayloadPlan = field(default_factory=PayloadPlan)

    server: ServerOptimizer = field(default_factory=ServerOptimizer)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)

    def __post_init__(self) -> None:
        typed(self)
        at_least(1, rounds=self.rounds, checkpoint_every=self.checkpoint_every)
        if self.cohort < LEAST_COHORT:
            refuse(
                f"cohort = {self.cohort} must be at least {LEAST_COHORT}: a device reports only "
                "where two others hide it"
            )
        positive(clip_norm=self.clip_norm)
        at_least(0, trimmed_groups=self.trimmed_groups)
        below_one(dropout=self.dropout, corrupt=self.corrupt)
        if self.fleet is not None and self.dropout:
            refuse("fleet and dropout: a fleet brings its own losses; state one of them")
        ours = self.separate_noise or self.rotate or self.modulus_bits is not None
        if self.aggregator == "tff" and (ours or self.secure_aggregation != "ideal"):
            refuse(
                'aggregator = "tff" brings its own noise, rotation and ring; leave out '
                "secure_aggregation, separate_noise, rotate and modulus_bits"
            )
        if self.population.kind == "store" and self.tokenizer is None:
            refuse("tokenizer is missing: name the folder that `tokenizer build` wrote")
        if self.training.along_directions != (self.payload.directions is not None):
            refuse(
                'training.method = "zeroth_order" and payload.directions go together: state both '
                "or neither"
            )
