"""The server's side of a round: what it broadcasts, and how the model moves.

State in, state out: a step returns a new state and leaves the old one as it was, so a round that
is abandoned has changed nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch

from pfl_lm.payload import Payload, expand, gather, scatter_add
from pfl_lm.server.optimizers import Floats, ServerOptimizer, step

Tables = Mapping[str, torch.Tensor]


@dataclass(frozen=True)
class Broadcast:
    """What every device of a cohort receives.

    Attributes:
        round: number of the round, from 0.
        payload: the coordinates that travel.
        values: float32[d], the model on those coordinates.
    """

    round: int
    payload: Payload
    values: Floats


@dataclass(frozen=True)
class ServerState:
    """The model and what the server optimizer remembers.

    Attributes:
        round: rounds that are over, recorded or abandoned; the number of the next round.
        parameters: the model, by name.
        moments: for each running moment of the optimizer, one tensor per parameter that has ever
            travelled, shaped like the parameter.
        clock: simulated seconds since the run began, where a fleet gives rounds a duration.
    """

    round: int
    parameters: Tables
    moments: Mapping[str, Tables] = field(default_factory=dict)
    clock: float = 0.0


def open_round(state: ServerState, payload: Payload) -> Broadcast:
    """Read the payload's coordinates out of the model."""
    return Broadcast(state.round, payload, gather(state.parameters, payload))


def close_round(
    state: ServerState, broadcast: Broadcast, mean: Floats, optimizer: ServerOptimizer
) -> ServerState:
    """Move the model by the mean update of a round.

    Args:
        state: the state in which the round was opened.
        broadcast: what the devices received.
        mean: float32[d], the decoded noisy sum ÷ report goal.
        optimizer: how to step.

    Returns:
        The next state; coordinates outside the payload are untouched, moments included.

    Raises:
        ValueError: ``mean`` is not of the payload's dimension.
    """
    payload = broadcast.payload
    if mean.shape != (payload.dim,):
        raise ValueError(f"mean has shape {mean.shape}; the payload's is ({payload.dim},)")
    # The optimizer works on coordinates of the model, whatever it was that travelled.
    mean, payload = expand(payload, mean), payload.whole
    tables = {name: _table(state, payload, optimizer, name) for name in optimizer.moments}
    before = {name: gather(table, payload) for name, table in tables.items()}
    change, after = step(optimizer, mean, before)
    return replace(
        state,
        round=state.round + 1,
        parameters=_moved(state.parameters, payload, change),
        moments={
            name: _moved(table, payload, after[name] - before[name])
            for name, table in tables.items()
        },
    )


def abandon_round(state: ServerState) -> ServerState:
    """Close a round that opened no sum: time passes, the model stays."""
    return replace(state, round=state.round + 1)


def _moved(tables: Tables, payload: Payload, change: Floats) -> Tables:
    """Return the tables with ``change`` added on the payload; only those that travel are copied."""
    travelling = {segment.name for segment in payload.segments}
    copied = {n: value.clone() if n in travelling else value for n, value in tables.items()}
    scatter_add(copied, payload, change)
    return copied


def _table(state: ServerState, payload: Payload, optimizer: ServerOptimizer, moment: str) -> Tables:
    """Return the table of one moment, with entries for what travels for the first time."""
    table = dict(state.moments.get(moment, {}))
    for segment in payload.segments:
        if segment.name not in table:
            like = state.parameters[segment.name]
            table[segment.name] = torch.full_like(like, optimizer.initial(moment))
    return table
