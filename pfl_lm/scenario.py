"""A scenario: everything the engineer chooses about a run (``simulations/*.toml``)."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from pfl_lm.devices.training import LocalTraining
from pfl_lm.language.models import ModelSpec
from pfl_lm.payload import PayloadPlan
from pfl_lm.server.optimizers import ServerOptimizer


@dataclass(frozen=True)
class PopulationChoice:
    """Whose text: a store built by ``pfl-lm population build``, or invented users.

    Attributes:
        kind: ``store`` | ``synthetic``.
        path: folder of the store.
        public_text: folder of a store of public text, for the bigram baseline.
        users: invented users in the training split (held-out splits have 10% of it, at most
            2,000 users each).
        tokens_per_user: mean length of an invented user's text.
        drift: how far what invented users talk about moves from the first round to the last, in
            topics; see ``SyntheticPopulation.era``. Evaluation follows.
    """

    kind: Literal["store", "synthetic"]
    path: Path | None = None
    public_text: Path | None = None
    users: int = 10_000
    tokens_per_user: int = 300
    drift: float = 0.0

    def __post_init__(self) -> None:
        if self.kind == "store" and self.path is None:
            raise ValueError("path is missing: a store is a folder that `population build` wrote")
        if self.kind == "synthetic" and self.path is not None:
            raise ValueError("path makes no sense for invented users; remove it")
        for name in ("users", "tokens_per_user"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} = {getattr(self, name)} must be at least 1")
        if self.drift < 0 or (self.drift and self.kind == "store"):
            raise ValueError(f"drift = {self.drift}: only invented users drift, and forwards")


@dataclass(frozen=True)
class EvaluationChoice:
    """How often and on how many held-out users the model is measured.

    Attributes:
        every: rounds between evaluations on validation users; 0 evaluates at the end only.
        users: validation users at each of them.
        final_users: test users at the end; their text is not looked at before.
        tokens_per_user: at most so many tokens of a user.
    """

    every: int = 25
    users: int = 200
    final_users: int = 1000
    tokens_per_user: int = 400

    def __post_init__(self) -> None:
        if self.every < 0:
            raise ValueError(f"every = {self.every} must be 0 (only at the end) or more rounds")
        for name in ("users", "final_users", "tokens_per_user"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} = {getattr(self, name)} must be at least 1")


@dataclass(frozen=True)
class Scenario:
    """One run.

    Attributes:
        description: one line for people.
        policy: the privacy policy; absent means no privacy, ε = ∞.
        tokenizer: folder of a built tokenizer; absent only with invented users.
        start: a model file of ``pfl-lm pretrain`` to start from; absent means random weights.
        seed: of all that is reproducible.
        rounds: rounds to run, at most the policy's.
        cohort: simulated reports per round (the mean of them under Poisson sampling). Noise on
            the mean is scaled to the policy's report goal.
        clip_norm: ℓ2 bound on an update.
        reproducible: take rounding and noise from seeded streams, so that a run can be repeated
            bit for bit; protects nobody, and the manifest says so.
        checkpoint_every: rounds between checkpoints.
        secure_aggregation: ``ideal`` computes what the protocol computes; ``protocol`` runs it,
            message by message.
        dropout: share of the invited devices that fall silent, each before one of its messages.
        fleet: recipe of the phones (``simulations/fleets``), which then decide who takes part,
            who is lost and how long a round takes; absent means that all do, at once.
        adversary: the server that rounds withstand: ``semi-honest`` or ``active``.
        corrupt: share of a cohort that may collude with the server; at least what the policy's
            ``honest_fraction`` leaves.
        separate_noise: let every device draw its own share of Skellam noise also where one draw
            has the distribution of their sum; the protocol always does, and alone where a policy
            removes excess noise.
        rotate: rotate updates at random before they are rounded, which makes the ring narrower
            and costs a transform per update; changes no ε, so it is no policy's business.
        modulus_bits: width of the ring; absent means the narrowest that is safe, and what is too
            narrow is refused.
        aggregator: ``exact`` sums integers here; ``tff`` lets tensorflow-federated sum, add the
            noise and divide (``interop/tff_sum``), which makes of every run a simulation.
    """

    population: PopulationChoice
    model: ModelSpec
    training: LocalTraining
    rounds: int
    cohort: int
    clip_norm: float
    description: str = ""
    policy: Path | None = None
    tokenizer: Path | None = None
    start: Path | None = None
    seed: int = 0
    reproducible: bool = False
    checkpoint_every: int = 10
    secure_aggregation: Literal["ideal", "protocol"] = "ideal"
    dropout: float = 0.0
    fleet: Path | None = None
    adversary: Literal["semi-honest", "active"] = "semi-honest"
    corrupt: float = 0.05
    separate_noise: bool = False
    rotate: bool = False
    modulus_bits: int | None = None
    aggregator: Literal["exact", "tff"] = "exact"
    payload: PayloadPlan = field(default_factory=PayloadPlan)

    server: ServerOptimizer = field(default_factory=ServerOptimizer)
    evaluation: EvaluationChoice = field(default_factory=EvaluationChoice)

    def __post_init__(self) -> None:
        for name in ("rounds", "checkpoint_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} = {getattr(self, name)} must be at least 1")
        if self.cohort < 2:
            raise ValueError(
                f"cohort = {self.cohort} must be at least 2: a sum of one report is that report"
            )
        if not 0 < self.clip_norm < float("inf"):
            raise ValueError(f"clip_norm = {self.clip_norm} must be positive and finite")
        for name in ("dropout", "corrupt"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} = {getattr(self, name)} must lie in [0, 1)")
        if self.fleet is not None and self.dropout:
            raise ValueError("fleet and dropout: a fleet brings its own losses; state one of them")
        ours = self.separate_noise or self.rotate or self.modulus_bits is not None
        if self.aggregator == "tff" and (ours or self.secure_aggregation != "ideal"):
            raise ValueError(
                'aggregator = "tff" brings its own noise, rotation and ring; leave out '
                "secure_aggregation, separate_noise, rotate and modulus_bits"
            )
        if self.population.kind == "store" and self.tokenizer is None:
            raise ValueError("tokenizer is missing: name the folder that `tokenizer build` wrote")
        if (self.training.method == "zeroth_order") != (self.payload.directions is not None):
            raise ValueError(
                'training.method = "zeroth_order" and payload.directions go together: state both '
                "or neither"
            )
