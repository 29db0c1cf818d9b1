"""Who takes part in a round: all that were asked, or those whom a fleet lets take part."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np

from pfl_lm.devices.costs import training_flops
from pfl_lm.devices.fleet import Fleet, Phones, phones
from pfl_lm.devices.memory import predict
from pfl_lm.devices.turnout import CheckIn, Demand, Turnout, able
from pfl_lm.dp.grid import Grid
from pfl_lm.evaluation.evaluate import ModelScorer, evaluate
from pfl_lm.language.models import Parameters
from pfl_lm.language.population import Population
from pfl_lm.payload import Payload
from pfl_lm.ranks import ALONE, Ranks
from pfl_lm.secagg.local import Step
from pfl_lm.world import World, choose_payload


@dataclass(frozen=True)
class Attendance:
    """A round's devices.

    Attributes:
        invited: int64[n], users.
        silent: place among them → the step from which on a device is silent; None where the
            scenario's ``dropout`` says it.
        figures: what a fleet's round was like, for the metrics; empty without a fleet.
        closed: simulated seconds from the run's start to the end of the round.
    """

    invited: np.ndarray
    silent: dict[int, Step] | None
    figures: dict[str, Any]
    closed: float


def attend(
    world: World, users: np.ndarray, payload: Payload, grid: Grid, clock: float
) -> Attendance:
    """Let a round's users take part as far as their phones do.

    Args:
        users: int64[n], whom the cohort's rule chose; with a fleet, those that check in.
        clock: simulated seconds since the run began.

    Raises:
        ValueError: the fleet can never fill a round.
    """
    fleet = world.fleet
    if fleet is None:
        return Attendance(users, None, {}, clock)
    scenario = world.scenario
    own = phones_of(world, fleet, "train", users)
    asked = demand(world, payload, grid)
    found = CheckIn(
        fleet, users, own, asked, scenario.cohort, scenario.seed, payload.round
    ).turnout(clock)
    figures = _figures(fleet, own, found, asked)
    closed = found.closed + 60 * fleet.pause_minutes
    return Attendance(users[found.invited], found.silent, {"fleet": figures}, closed)


def phones_of(world: World, fleet: Fleet, split: str, users: np.ndarray) -> Phones:
    """Say which phones some users of a split have."""
    groups = None
    if fleet.text_relation > 0:
        of_text = getattr(world.population, "groups", None)
        groups = None if of_text is None else of_text(split, users)
    return phones(fleet, world.scenario.seed, split, users, groups)


def demand(world: World, payload: Payload, grid: Grid) -> Demand:
    """Say what a round asks of every phone: the same of all, as the cap on tokens has it."""
    training = world.scenario.training
    tokens = training.max_tokens or 20 * training.batch_size * training.window
    return Demand(
        predict(world.spec, payload, training).peak_bytes,
        training_flops(world.spec, payload, training, tokens),
        4 * payload.dim,
        (grid.modulus_bits * grid.dim + 7) // 8,
    )


def fits(world: World, payload: Payload, grid: Grid) -> dict[str, bool]:
    """Say which profiles of the fleet have the memory; empty without a fleet."""
    return {} if world.fleet is None else able(world.fleet, demand(world, payload, grid))


@dataclass(frozen=True)
class _Some:
    """Some users of a population's split."""

    population: Population
    chosen: np.ndarray

    def users(self, split: str) -> int:
        return len(self.chosen)

    def tokens(self, split: str, user: int) -> np.ndarray:
        return self.population.tokens(split, int(self.chosen[user]))


def by_profile(world: World, parameters: Parameters, ranks: Ranks = ALONE) -> list[dict[str, Any]]:
    """Measure the model on test users of each class of phone; empty without a fleet.

    How much worse it is for those who never take part is part of what a scenario costs.
    """
    if world.fleet is None:
        return []
    people = world.people(world.scenario.rounds)
    own = phones_of(world, world.fleet, "test", np.arange(people.users("test")))
    payload = choose_payload(world, 0)
    fitting = fits(world, payload, world.protection.grid(payload.dim))
    choice, rows = world.scenario.evaluation, []
    for place, (name, profile) in enumerate(world.fleet.profiles.items()):
        users = np.flatnonzero(own.profile == place)[: choice.final_users]
        row = {"name": name, "share": profile.share, "able": fitting[name], "users": len(users)}
        if len(users):
            found = evaluate(
                ModelScorer(world.spec, parameters),
                _Some(people, users),
                "test",
                world.tokenizer,
                world.scenario.training.window,
                max_tokens_per_user=choice.tokens_per_user,
                ranks=ranks,
            )
            row |= {"perplexity": found.perplexity, "top3": found.top3}
        rows.append(row)
    return rows


def _figures(fleet: Fleet, own: Phones, found: Turnout, asked: Demand) -> dict[str, Any]:
    """Return what a person wants to know of the round."""
    reporting = own.profile[found.invited[found.reporting]].tolist()
    counted = Counter(reporting)
    return {
        "opened_hours": found.opened / 3600,
        "waited_minutes": found.waited / 60,
        "minutes": found.seconds / 60,
        "checked_in": len(own.profile),
        "turned_away": found.turned_away,
        "lost": found.lost,
        "reports_by_profile": {name: counted[n] for n, name in enumerate(fleet.names)},
        "joules_per_report": found.joules / max(1, len(reporting)),
        "bytes_per_report": found.transferred_bytes / max(1, len(reporting)),
        "peak_memory_bytes": asked.memory_bytes,
        "training_flops": asked.flops,
    }
