"""Who is invited to a round: the users that the rule chooses, as far as their phones are able."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from pfl_lm.dp import cohort as rules
from pfl_lm.dp.grid import Grid
from pfl_lm.payload.layout import Payload
from pfl_lm.phones.fleet import Fleet, Phones, phones
from pfl_lm.phones.flops import training_flops
from pfl_lm.phones.memory import predict_memory
from pfl_lm.phones.round_timing import Demand, RoundTiming, Selection, able
from pfl_lm.run.context import RunContext
from pfl_lm.secagg.config import MessageKind
from pfl_lm.server.state import Broadcast


@dataclass(frozen=True)
class Cohort:
    """The devices that are invited to a round.

    Attributes:
        invited: int64[n], users; a device's place in the cohort is its index here.
        silent: place → the first message that a device does not send; None where the scenario's
            ``dropout`` decides.
        closed: simulated seconds from the run's start to the end of the round.
        figures: what a fleet's round was like, for the metrics; empty without a fleet.
    """

    invited: np.ndarray
    silent: dict[int, MessageKind] | None = None
    closed: float = 0.0
    figures: dict[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.invited)


def invite(context: RunContext, broadcast: Broadcast, clock: float) -> Cohort:
    """Invite a round's users, as far as their phones can take part.

    Args:
        broadcast: names the round and what it asks of a phone.
        clock: simulated seconds since the run began.

    Raises:
        ValueError: the fleet can never fill a round.
    """
    scenario, fleet, payload = context.scenario, context.fleet, broadcast.payload
    users = rules.cohort(context.privacy.rule, scenario.seed, broadcast.round)
    if fleet is None:
        return Cohort(users, closed=clock)
    own = phones_of(context, fleet, "train", users)
    needed = demand(context, payload, context.privacy.grid(payload.dim))
    selection = Selection(
        fleet, users, own, needed, scenario.cohort, scenario.seed, broadcast.round
    )
    return select(selection, clock)


def select(selection: Selection, clock: float) -> Cohort:
    """Let a fleet's phones take part in a round, as far as they are able.

    Args:
        selection: whom the server asks, and what the round asks of a phone.
        clock: simulated seconds since the run began.

    Raises:
        ValueError: the fleet can never fill a round.
    """
    fleet, users = selection.fleet, selection.users
    own, needed, timing = selection.own, selection.demand, selection.simulate_round(clock)
    figures = _figures(fleet, own, timing, needed)
    closed = timing.closed + 60 * fleet.pause_minutes
    return Cohort(users[timing.invited], timing.silent, closed, {"fleet": figures})


def phones_of(context: RunContext, fleet: Fleet, split: str, users: np.ndarray) -> Phones:
    """Say which phones some users of a split have."""
    groups = None
    if fleet.text_relation > 0:
        of_text = getattr(context.population, "groups", None)
        groups = None if of_text is None else of_text(split, users)
    return phones(fleet, context.scenario.seed, split, users, groups)


def demand(context: RunContext, payload: Payload, grid: Grid) -> Demand:
    """Say what a round asks of every phone: as much of each, since tokens are capped."""
    training = context.scenario.training
    tokens = training.max_tokens or 20 * training.batch_size * training.window
    return Demand(
        predict_memory(context.spec, payload, training).peak_bytes,
        training_flops(context.spec, payload, training, tokens),
        4 * payload.dim,
        (grid.modulus_bits * grid.dim + 7) // 8,
    )


def fits(context: RunContext, payload: Payload, grid: Grid) -> dict[str, bool]:
    """Say which profiles of the fleet have the memory; empty without a fleet."""
    return {} if context.fleet is None else able(context.fleet, demand(context, payload, grid))


def _figures(fleet: Fleet, own: Phones, timing: RoundTiming, needed: Demand) -> dict[str, Any]:
    """Return what a person wants to know of the round."""
    reporting = own.profile[timing.invited[timing.reporting]].tolist()
    counted = Counter(reporting)
    return {
        "opened_hours": timing.opened / 3600,
        "waited_minutes": timing.waited / 60,
        "minutes": timing.seconds / 60,
        "checked_in": len(own.profile),
        "rejected": timing.rejected,
        "lost": timing.lost,
        "reports_by_profile": {name: counted[n] for n, name in enumerate(fleet.names)},
        "joules_per_report": timing.joules / max(1, len(reporting)),
        "bytes_per_report": timing.transferred_bytes / max(1, len(reporting)),
        "peak_memory_bytes": needed.memory_bytes,
        "training_flops": needed.flops,
    }
