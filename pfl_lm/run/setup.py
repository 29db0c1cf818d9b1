"""Opening a run: what its scenario names is read, and checked against each other."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from pfl_lm.devices.processor import CPU, Processor
from pfl_lm.dp.policy import Policy
from pfl_lm.dp.population_ledger import PopulationAccount
from pfl_lm.models.file import Model, load_model
from pfl_lm.models.models import initialise, roles
from pfl_lm.models.spec import differences
from pfl_lm.phones.fleet import Fleet
from pfl_lm.recipes import load
from pfl_lm.run.aggregation import ExternalAggregator
from pfl_lm.run.checks import (
    check_external,
    check_groups,
    check_payloads,
    check_processor,
    check_training,
)
from pfl_lm.run.context import PublicText, RunContext
from pfl_lm.run.deployment import Deployment
from pfl_lm.run.privacy import RunPrivacy
from pfl_lm.run.scenario import Scenario
from pfl_lm.run.simulated_rule import simulated_rule
from pfl_lm.text.overlap import refuse_users_text
from pfl_lm.text.population import Population, PopulationStore
from pfl_lm.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    from pfl_lm.text.synthetic.population import SyntheticPopulation

PUBLIC_USERS = 2000  # pseudo-users of the public text that comes with invented users


def open_run(
    scenario: Scenario,
    external: ExternalAggregator | None = None,
    processor: Processor = CPU,
    enrolled: int | None = None,
) -> RunContext:
    """Open what a scenario names and check that the parts fit together.

    Args:
        external: the runtime that ``aggregator`` names, where that is not ours.
        processor: where its simulated devices compute.
        enrolled: devices that a server may invite; None: the population's train users are invited.

    Raises:
        ValueError: a part is missing or damaged, or two do not fit; the message says which.
    """
    tokenizer, population, public = open_text(scenario)
    if scenario.model.vocabulary_size != tokenizer.vocabulary_size:
        raise ValueError(
            f"model.vocabulary_size = {scenario.model.vocabulary_size}, but the tokenizer has "
            f"{tokenizer.vocabulary_size} words; make them equal"
        )
    policy = None if scenario.policy is None else load(Policy, scenario.policy)
    if policy is not None and scenario.rounds > policy.rounds:
        raise ValueError(
            f"rounds = {scenario.rounds} exceeds the policy's {policy.rounds}; run fewer rounds, "
            "or have the policy reviewed for more"
        )
    if policy is not None and scenario.cohort > policy.report_goal:
        raise ValueError(
            f"cohort = {scenario.cohort} exceeds the policy's report_goal = {policy.report_goal}"
        )
    protects = policy is not None and policy.noise.at != "none"
    if protects and tokenizer.breaks_guarantee:
        raise ValueError(
            f"tokenizer: the words of {scenario.tokenizer} were learnt from private text, which "
            "tells without noise who typed them; the policy's ε does not cover that. Build a "
            "vocabulary from a public source, or run without a policy"
        )
    fleet = None if scenario.fleet is None else load(Fleet, scenario.fleet)
    asked = 1.0 if fleet is None or enrolled is not None else fleet.check_in
    invited = population.users("train") if enrolled is None else enrolled
    check_external(scenario, policy, external)
    privacy = RunPrivacy(
        Deployment(policy),
        scenario.cohort,
        scenario.clip_norm,
        simulated_rule(policy, invited, scenario.cohort, asked),
        scenario.seed,
        scenario.reproducible,
        draws_separately(scenario, policy),
        scenario.rotate,
        scenario.modulus_bits,
        scenario.aggregator,
    )
    context = RunContext(
        scenario,
        tokenizer,
        population,
        public,
        _start(scenario, tokenizer, protects),
        privacy,
        roles(scenario.model),
        fleet,
        external,
        processor,
    )
    check_processor(context)
    check_training(context)
    check_payloads(context)
    check_groups(context)
    return context


def account_of(context: RunContext, ledgers: Path | None = None) -> PopulationAccount | None:
    """Return whose budget a simulation spends; None where it stands alone.

    A run at less than the policy's scale, with noise or cohorts from a seed, or whose users come
    again sooner than the policy says, guarantees nothing of its own model; it may be repeated as
    often as its users' text may be read. At full scale the guarantee is real, and so is what it
    spends.

    Args:
        ledgers: folder; by default ``ledgers`` beside the store.
    """
    privacy, population = context.privacy, context.population
    if privacy.simulated or privacy.mechanism.place == "none":
        return None
    if not isinstance(population, PopulationStore):
        return None  # invented users are nobody
    return PopulationAccount.of_store(population.digest, population.folder, ledgers)


def draws_separately(scenario: Scenario, policy: Policy | None) -> bool:
    """Whether every simulated device draws its own noise.

    Removable components exist in the protocol alone; elsewhere what stays of them is drawn at once.
    """
    removed = policy is not None and policy.excess_removed
    return scenario.secure_aggregation == "protocol" or (scenario.separate_noise and not removed)


def open_text(scenario: Scenario) -> tuple[Tokenizer, Population, PublicText | None]:
    """Open tokenizer, population and public text.

    Raises:
        ValueError: one of them is missing or damaged, or was built with another tokenizer, or the
            public text is the users' own.
    """
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
        if store is not None:
            store.require_vocabulary(tokenizer.digest, f"{scenario.tokenizer}")
    if public is not None:
        public.require_public()
        public.check("train")
    population.check()  # before the first round is spent
    if public is not None:
        refuse_users_text(public, population)
    return tokenizer, population, None if public is None else PublicText(public, "train")


def invented(scenario: Scenario) -> tuple[Tokenizer, SyntheticPopulation]:
    """Open the invented users of a scenario, and the tokenizer of their language."""
    from pfl_lm.text.synthetic.population import PUBLIC, SyntheticPopulation, synthetic_tokenizer

    chosen, vocabulary_size = scenario.population, scenario.model.vocabulary_size
    held_out = min(2000, max(1, chosen.users // 10))
    users = {"train": chosen.users, "validation": held_out, "test": held_out}
    users[PUBLIC] = PUBLIC_USERS
    people = SyntheticPopulation(
        users,
        vocabulary_size,
        chosen.tokens_per_user,
        scenario.seed,
        language=chosen.language,
    )
    return synthetic_tokenizer(vocabulary_size, chosen.language), people


def _start(scenario: Scenario, tokenizer: Tokenizer, protects: bool) -> Model:
    """Return the model before the first round: from a file, or drawn at random."""
    drawn = initialise(scenario.model, scenario.seed, tokenizer.unigram)
    if scenario.start is None:
        return Model(scenario.model, drawn, {"kind": "random"})
    start = load_model(scenario.start)
    if protects and start.origin["kind"] != "public":
        raise ValueError(
            f"start: {scenario.start} was trained on {start.origin['kind']} text, which the "
            "policy's ε does not cover; start from a model of public text"
        )
    # Factors and the side branch start as nothing where a file lacks them.
    bare = [replace(spec, lora=None, side_branch=0) for spec in (start.spec, scenario.model)]
    if bare[0] != bare[1]:
        raise ValueError(
            f"start: {scenario.start} holds another model than [model] describes: "
            f"{differences(*bare)}"
        )
    if start.spec.lora not in (None, scenario.model.lora):
        raise ValueError(
            f"start: {scenario.start} holds other LoRA factors than model.lora describes; "
            "describe those, or start from a model without any"
        )
    if start.origin.get("tokenizer_digest") != tokenizer.digest:
        raise ValueError(f"start: {scenario.start} was trained with another tokenizer")
    if start.spec.side_branch not in (0, scenario.model.side_branch):
        raise ValueError(
            f"start: {scenario.start} holds another side branch than model.side_branch describes"
        )
    # Factors that the file does not have start as drawn: their product is zero.
    return Model(scenario.model, {**drawn, **start.parameters}, start.origin)
