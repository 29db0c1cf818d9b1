"""What stays the same from round to round: a scenario with everything it names, opened."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from pfl_lm.devices.processor import CPU, Processor
from pfl_lm.devices.task import Task
from pfl_lm.models.file import Model
from pfl_lm.models.models import ModelSpec, Role
from pfl_lm.payload.choice import choose, travelling_layers
from pfl_lm.payload.layout import Payload
from pfl_lm.phones.fleet import Fleet
from pfl_lm.run.aggregation import Aggregation, ExternalAggregator
from pfl_lm.run.privacy import RunPrivacy
from pfl_lm.run.scenario import Scenario
from pfl_lm.server.state import Broadcast, Tables
from pfl_lm.text.population import Population, windows
from pfl_lm.text.tokenizer import Tokenizer


@dataclass(frozen=True)
class PublicText:
    """Public text for the baselines: one split of a population that has no private users."""

    population: Population
    split: str

    def streams(self) -> Iterator[np.ndarray]:
        """Yield int32[n], piece by piece."""
        users = self.population.users(self.split)
        return (self.population.tokens(self.split, user) for user in range(users))


@dataclass(frozen=True)
class RunContext:
    """A scenario with everything it names, opened.

    Attributes:
        scenario: what the engineer chose.
        tokenizer: the public vocabulary.
        population: the users.
        public: text for the baselines, or None.
        start: the model before the first round.
        privacy: the policy at the scale of this simulation.
        roles: the model's parameters by name.
        fleet: the phones, or None.
        external: another library's runtime that sums the reports, or None.
        processor: where simulated devices compute.
        served: devices elsewhere take part over the network; nothing is simulated.
    """

    scenario: Scenario
    tokenizer: Tokenizer
    population: Population
    public: PublicText | None
    start: Model
    privacy: RunPrivacy
    roles: dict[str, Role]
    fleet: Fleet | None = None
    external: ExternalAggregator | None = None
    processor: Processor = CPU
    served: bool = False

    @property
    def spec(self) -> ModelSpec:
        return self.scenario.model

    @cached_property
    def aggregation(self) -> Aggregation:
        """How reports are summed: what scenario, privacy and fleet make of it."""
        return Aggregation.of(self.scenario, self.privacy, self.fleet, self.external)

    @property
    def trimmed_groups(self) -> int:
        """Public groups that are left out at either end of every coordinate's mean."""
        stated = self.scenario.trimmed_groups
        return int(self.privacy.groups >= 3) if stated is None else stated

    def task(self, broadcast: Broadcast, parameters: Tables) -> Task:
        """Return what a round asks of its devices, which hold ``parameters``."""
        scenario, place = self.scenario, self.processor.device
        return Task(
            self.spec,
            {name: table.to(place) for name, table in parameters.items()},
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


def text_of(context: RunContext, user: int, round: int) -> np.ndarray:
    """Return a device's own text as int64[n, T + 1], as much of it as one round may use."""
    training = context.scenario.training
    limit = None if training.max_tokens is None else training.max_tokens + 1
    return windows(context.people(round).tokens("train", user), training.window, limit)


def choose_payload(context: RunContext, round: int) -> Payload:
    """Choose what travels in a round, from public information alone."""
    return choose(
        context.scenario.payload,
        context.roles,
        context.tokenizer.unigram,
        context.tokenizer.specials,
        context.scenario.seed,
        round,
    )


def payload_dims(context: RunContext, rounds: Sequence[int]) -> list[int]:
    """Return how many coordinates travel in each of some rounds.

    They follow from the layers that travel: rows are as many in every round, and are drawn once
    for each set of layers.
    """
    scenario, found = context.scenario, []
    sizes: dict[frozenset[str], int] = {}
    for round in rounds:
        layers = travelling_layers(scenario.payload, context.roles, scenario.seed, round)
        if (turn := frozenset(layers)) not in sizes:
            sizes[turn] = choose_payload(context, round).dim
        found.append(sizes[turn])
    return found


def smallest_and_largest_payload(context: RunContext) -> tuple[Payload, Payload]:
    """Return payloads of fewest and of most coordinates among those of all rounds."""
    dims = payload_dims(context, range(context.scenario.rounds))
    smallest, largest = dims.index(min(dims)), dims.index(max(dims))
    return choose_payload(context, smallest), choose_payload(context, largest)
