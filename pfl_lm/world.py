"""All that stays the same from round to round: opened, and checked against each other."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from pfl_lm.aggregation import Aggregation
from pfl_lm.devices.fleet import Fleet
from pfl_lm.devices.task import Task
from pfl_lm.dp.policy import Policy
from pfl_lm.evaluation.baselines import KneserNeyBigram, UnigramScorer
from pfl_lm.evaluation.evaluate import ModelScorer, Scorer, evaluate
from pfl_lm.evaluation.measures import Evaluation
from pfl_lm.interop.tff import find_python
from pfl_lm.language.models import ModelSpec, Parameters, Role, initialise, roles
from pfl_lm.language.population import Population, PopulationStore, windows
from pfl_lm.language.tokenizer import Tokenizer
from pfl_lm.model_file import Model, load_model
from pfl_lm.participation import simulated_rule
from pfl_lm.payload import choose
from pfl_lm.protection import Protection
from pfl_lm.ranks import ALONE, Ranks
from pfl_lm.recipes import load, load_policy
from pfl_lm.scenario import Scenario
from pfl_lm.server.state import Broadcast, Tables

if TYPE_CHECKING:
    from pfl_lm.language.synthetic import SyntheticPopulation

PUBLIC_USERS = 2000  # pseudo-users of the public text that comes with invented users


@dataclass(frozen=True)
class PublicText:
    """Public text for the baselines: one split of a population, whose users are nobody."""

    population: Population
    split: str

    def streams(self) -> Iterator[np.ndarray]:
        """Yield int32[n], piece by piece."""
        users = self.population.users(self.split)
        return (self.population.tokens(self.split, user) for user in range(users))


@dataclass(frozen=True)
class World:
    """A scenario with everything it names, opened.

    Attributes:
        scenario: what the engineer chose.
        tokenizer: the public vocabulary.
        population: the users.
        public: text for the baselines, or None.
        start: the model before the first round.
        protection: the policy at the scale of this simulation.
        roles: the model's parameters by name.
        fleet: the phones, or None.
    """

    scenario: Scenario
    tokenizer: Tokenizer
    population: Population
    public: PublicText | None
    start: Model
    protection: Protection
    roles: dict[str, Role]
    fleet: Fleet | None = None

    @property
    def spec(self) -> ModelSpec:
        return self.scenario.model

    @cached_property
    def aggregation(self) -> Aggregation:
        """How reports are summed: what scenario, protection and fleet make of it."""
        return Aggregation.of(self.scenario, self.protection, self.fleet)

    def task(self, broadcast: Broadcast, parameters: Tables) -> Task:
        """Return what a round asks of its devices, which hold ``parameters``."""
        scenario = self.scenario
        return Task(
            self.spec,
            dict(parameters),
            broadcast.payload,
            broadcast.values,
            scenario.training,
            self.tokenizer.unigram,
            scenario.seed,
            broadcast.round,
        )

    def people(self, round: int) -> Population:
        """Return the users as they write in a round: invented ones may drift."""
        drift = self.scenario.population.drift
        if not drift:
            return self.population
        era = drift * round / self.scenario.rounds
        return replace(self.population, era=era)  # type: ignore[type-var]


def text_of(world: World, user: int, round: int) -> np.ndarray:
    """Return a device's own text as int64[n, T + 1], as much of it as one round may use."""
    training = world.scenario.training
    limit = None if training.max_tokens is None else training.max_tokens + 1
    return windows(world.people(round).tokens("train", user), training.window, limit)


def open_world(scenario: Scenario) -> World:
    """Open what a scenario names and check that the parts fit together.

    Raises:
        ValueError: a part is missing or damaged, or two do not fit; the message says which.
    """
    tokenizer, population, public = _text(scenario)
    if scenario.model.vocabulary_size != tokenizer.vocabulary_size:
        raise ValueError(
            f"model.vocabulary_size = {scenario.model.vocabulary_size}, but the tokenizer has "
            f"{tokenizer.vocabulary_size} words; make them equal"
        )
    policy = None if scenario.policy is None else load_policy(scenario.policy)
    if policy is not None and scenario.rounds > policy.rounds:
        raise ValueError(
            f"rounds = {scenario.rounds} exceeds the policy's {policy.rounds}; run fewer rounds, "
            "or have the policy reviewed for more"
        )
    if policy is not None and scenario.cohort > policy.report_goal:
        raise ValueError(
            f"cohort = {scenario.cohort} exceeds the policy's report_goal = {policy.report_goal}"
        )
    fleet = None if scenario.fleet is None else load(Fleet, scenario.fleet)
    asked = 1.0 if fleet is None else fleet.check_in
    protection = Protection(
        policy,
        scenario.cohort,
        scenario.clip_norm,
        simulated_rule(policy, population.users("train"), scenario.cohort, asked),
        scenario.seed,
        scenario.reproducible,
        _draws_separately(scenario, policy),
        scenario.rotate,
        scenario.modulus_bits,
        scenario.aggregator == "tff",
    )
    world = World(
        scenario,
        tokenizer,
        population,
        public,
        _start(scenario, tokenizer, protects=policy is not None and policy.noise.at != "none"),
        protection,
        roles(scenario.model),
        fleet,
    )
    _check_payload(world)
    return world


def _draws_separately(scenario: Scenario, policy: Policy | None) -> bool:
    """Whether every simulated device draws its own noise.

    Removable components exist in the protocol alone; elsewhere what stays of them is drawn at once.
    """
    removed = policy is not None and policy.excess_removed
    return scenario.secure_aggregation == "protocol" or (scenario.separate_noise and not removed)


def _text(scenario: Scenario) -> tuple[Tokenizer, Population, PublicText | None]:
    """Open tokenizer, population and public text."""
    chosen = scenario.population
    if chosen.kind == "synthetic":
        tokenizer, people = invented(scenario)
        return tokenizer, people, PublicText(people, "public")
    assert scenario.tokenizer is not None
    assert chosen.path is not None
    tokenizer = Tokenizer.open(scenario.tokenizer)
    population = PopulationStore.open(chosen.path)
    public = None if chosen.public_text is None else PopulationStore.open(chosen.public_text)
    for store in (population, public):
        if store is not None and store.tokenizer_digest != tokenizer.digest:
            raise ValueError(
                f"{store.folder} was built with another tokenizer than {scenario.tokenizer}; "
                "build it again with that one"
            )
    return tokenizer, population, None if public is None else PublicText(public, "train")


def invented(scenario: Scenario) -> tuple[Tokenizer, SyntheticPopulation]:
    """Open the invented users of a scenario, and the tokenizer of their language."""
    from pfl_lm.language.synthetic import PUBLIC, SyntheticPopulation, synthetic_tokenizer

    chosen, vocabulary_size = scenario.population, scenario.model.vocabulary_size
    held_out = min(2000, max(1, chosen.users // 10))
    users = {"train": chosen.users, "validation": held_out, "test": held_out}
    users[PUBLIC] = PUBLIC_USERS
    people = SyntheticPopulation(users, vocabulary_size, chosen.tokens_per_user, scenario.seed)
    return synthetic_tokenizer(vocabulary_size), people


def _start(scenario: Scenario, tokenizer: Tokenizer, protects: bool) -> Model:
    """Return the model before the first round: from a file, or drawn at random."""
    drawn = initialise(scenario.model, scenario.seed, tokenizer.unigram)
    if scenario.start is None:
        return Model(scenario.model, drawn, {"kind": "random"})
    found = load_model(scenario.start)
    if protects and found.origin["kind"] != "public":
        raise ValueError(
            f"start: {scenario.start} was trained on {found.origin['kind']} text, which the "
            "policy's ε does not cover; start from a model of public text"
        )
    # Factors and the light path start as nothing where a file lacks them.
    bare = [replace(spec, lora=None, residual=0) for spec in (found.spec, scenario.model)]
    if bare[0] != bare[1]:
        raise ValueError(f"start: {scenario.start} holds another model than [model] describes")
    if found.spec.lora not in (None, scenario.model.lora):
        raise ValueError(
            f"start: {scenario.start} holds other LoRA factors than model.lora describes; "
            "describe those, or start from a model without any"
        )
    if found.origin.get("tokenizer_digest") != tokenizer.digest:
        raise ValueError(f"start: {scenario.start} was trained with another tokenizer")
    if found.spec.residual not in (0, scenario.model.residual):
        raise ValueError(
            f"start: {scenario.start} holds another light path than model.residual describes"
        )
    # Factors that the file does not have start as drawn: their product is zero.
    return Model(scenario.model, {**drawn, **found.parameters}, found.origin)


def _check_payload(world: World) -> None:
    """Refuse a payload that the policy does not cover, and what could not be summed."""
    policy = world.protection.policy
    payload = choose_payload(world, 0)
    if policy is not None and policy.noise.at == "device" and payload.dim < policy.noise.min_dim:
        raise ValueError(
            f"the payload has {payload.dim} coordinates, the policy covers {policy.noise.min_dim} "
            "or more; lower the policy's noise.min_dim or send more"
        )
    grid = world.protection.grid(payload.dim)
    world.aggregation.describe(grid)
    if world.protection.foreign_noise:
        find_python()


def choose_payload(world: World, round: int) -> Any:
    """Choose what travels in a round, from public information alone."""
    return choose(
        world.scenario.payload,
        world.roles,
        world.tokenizer.unigram,
        world.tokenizer.specials,
        world.scenario.seed,
        round,
    )


def validate(
    world: World, parameters: Parameters, ranks: Ranks = ALONE, round: int = 0
) -> Evaluation:
    """Measure a model on some validation users, as they write after so many rounds."""
    people = world.people(round)
    return _measure(world, ModelScorer(world.spec, parameters), people, "validation", ranks)


def final_evaluation(world: World, parameters: Parameters, ranks: Ranks = ALONE) -> dict[str, Any]:
    """Measure the trained model, what it started from, and public baselines, on test users."""
    people = world.people(world.scenario.rounds)
    scorers: dict[str, Scorer] = {"federated model": ModelScorer(world.spec, parameters)}
    if world.start.origin["kind"] != "random":
        label = f"{world.start.origin['kind']} pretraining"
        scorers[label] = ModelScorer(world.spec, world.start.parameters)
    scorers |= baselines(world)
    rows = [
        {"name": name, **_measure(world, scorer, people, "test", ranks).as_dict()}
        for name, scorer in scorers.items()
    ]
    floor = getattr(people, "entropy_floor", None)  # of invented users it is known
    return {
        "split": "test",
        "rows": rows,
        "entropy_floor": None if floor is None else floor("test"),
    }


def baselines(world: World) -> dict[str, Scorer]:
    """Fit what a keyboard predicts that learnt nothing from its users."""
    unigram = world.tokenizer.unigram
    if world.public is None:
        return {"public unigram": UnigramScorer(unigram)}
    silent = (world.tokenizer.pad_id, world.tokenizer.bos_id)
    bigram = KneserNeyBigram.fit(world.public.streams(), unigram, silent)
    return {"public unigram": UnigramScorer(unigram), "public bigram": bigram}


def _measure(
    world: World, scorer: Scorer, people: Population, split: str, ranks: Ranks
) -> Evaluation:
    choice = world.scenario.evaluation
    return evaluate(
        scorer,
        people,
        split,
        world.tokenizer,
        world.scenario.training.window,
        max_users=choice.users if split == "validation" else choice.final_users,
        max_tokens_per_user=choice.tokens_per_user,
        seed=world.scenario.seed,
        ranks=ranks,
    )
