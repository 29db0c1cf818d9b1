"""The server's side of a round: what it broadcasts, and how the model moves.

State in, state out: a step returns a new state and leaves the old one as it was, so a round that
is abandoned has changed nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch

from pfl_lm.payload import Parameters, Payload, gather, scatter
from pfl_lm.server.optimizers import ServerOptimizer, step


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
    values: torch.Tensor


@dataclass(frozen=True)
class ServerState:
    """The model and what the server optimizer remembers.

    Attributes:
        round: rounds that are over, recorded or abandoned; the number of the next round.
        parameters: the model, by name.
        moments: for each running moment of the optimizer, one tensor per parameter that has ever
            travelled, shaped like the parameter.
    """

    round: int
    parameters: Parameters
    moments: dict[str, Parameters] = field(default_factory=dict)


def open_round(state: ServerState, payload: Payload) -> Broadcast:
    """Read the payload's coordinates out of the model."""
    return Broadcast(state.round, payload, gather(state.parameters, payload))


def close_round(
    state: ServerState, broadcast: Broadcast, mean: torch.Tensor, optimizer: ServerOptimizer
) -> ServerState:
    """Move the model by the mean update of a round.

    Args:
        state: the state in which the round was opened.
        broadcast: what the devices received.
        mean: float32[d], the decoded noisy sum ÷ report goal.
        optimizer: how to step.

    Returns:
        The next state; coordinates outside the payload are untouched, moments included.
    """
    payload = broadcast.payload
    if mean.shape != (payload.dim,):
        raise ValueError(f"mean has shape {tuple(mean.shape)}, the payload is ({payload.dim},)")
    tables = {name: _moments_for(state, payload, optimizer, name) for name in optimizer.moments}
    moments = {name: gather(table, payload) for name, table in tables.items()}
    change, moments = step(optimizer, mean, moments)
    return replace(
        state,
        round=state.round + 1,
        parameters=scatter(state.parameters, payload, broadcast.values + change),
        moments={name: scatter(tables[name], payload, moments[name]) for name in tables},
    )


def abandon_round(state: ServerState) -> ServerState:
    """Close a round that opened no sum: time passes, the model stays."""
    return replace(state, round=state.round + 1)


def _moments_for(
    state: ServerState, payload: Payload, optimizer: ServerOptimizer, moment: str
) -> Parameters:
    """Return the table of one moment, with entries for what travels for the first time."""
    table = dict(state.moments.get(moment, {}))
    for segment in payload.segments:
        if segment.name not in table:
            like = state.parameters[segment.name]
            table[segment.name] = torch.full_like(like, optimizer.initial(moment))
    return table
