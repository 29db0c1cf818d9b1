"""The server's side of a round: what it broadcasts, and how the model moves.

State in, state out: a step returns a new state and leaves the old one as it was, so a round that
is abandoned has changed nothing.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch

from pfl_lm.dp.clipping import Clip
from pfl_lm.payload.layout import Payload, expand, gather, scatter_add
from pfl_lm.server.optimizers import Floats, ServerOptimizer, step

Tables = Mapping[str, torch.Tensor]
AVERAGE, TRAVELS = "average", "travels"  # of each coordinate, see ``averages``


@dataclass(frozen=True)
class Broadcast:
    """What every device of a cohort receives.

    Attributes:
        round: number of the round, from 0.
        payload: the coordinates that travel.
        values: float32[d], the model on those coordinates.
        clip: of this round, where the clip norm follows the updates; None: it is the scenario's.
    """

    round: int
    payload: Payload
    values: Floats
    clip: Clip | None = None

    @property
    def clip_norm(self) -> float | None:
        """Of this round; None: it is the scenario's."""
        return None if self.clip is None else self.clip.norm

    @property
    def digest(self) -> bytes:
        """Digest of the payload, and of the round's clip norm where it follows the updates."""
        payload = bytes.fromhex(self.payload.digest)
        if self.clip_norm is None:
            return payload
        clip = struct.pack("<d", self.clip_norm)
        return hashlib.sha256(b"pfl_lm payload at a clip norm" + payload + clip).digest()


@dataclass(frozen=True)
class ServerState:
    """The model and what the server optimizer remembers.

    Attributes:
        round: rounds that are over, recorded or abandoned; the number of the next round.
        parameters: the model, by name.
        moments: for each running moment of the optimizer, one tensor per parameter that has ever
            travelled, shaped like the parameter; ``average`` and ``travels`` likewise, where an
            average is kept.
        clock: simulated seconds since the run began, where a fleet gives rounds a duration.
        noise_state: what correlated noise keeps between rounds; secret, never in a checkpoint
            (``run.noise_state``), and empty before the first round and with independent noise.
        clip: of the next round, where the clip norm follows the updates; the ledger tells it, so
            no checkpoint holds it. None: it is the scenario's.
    """

    round: int
    parameters: Tables
    moments: Mapping[str, Tables] = field(default_factory=dict)
    clock: float = 0.0
    noise_state: bytes = field(default=b"", repr=False)
    clip: Clip | None = None

    def averaged(self) -> dict[str, torch.Tensor]:
        """Return what the run evaluates and writes: averages where there are, else the model."""
        average, travels = self.moments.get(AVERAGE, {}), self.moments.get(TRAVELS, {})
        return {
            name: torch.where(travels[name] > 0, average[name], value) if name in average else value
            for name, value in self.parameters.items()
        }


def open_round(state: ServerState, payload: Payload) -> Broadcast:
    """Read the payload's coordinates out of the model."""
    return Broadcast(state.round, payload, gather(state.parameters, payload), state.clip)


def close_round(
    state: ServerState,
    broadcast: Broadcast,
    mean: Floats,
    optimizer: ServerOptimizer,
    rounds: int | None = None,
) -> ServerState:
    """Move the model by the mean update of a round.

    Args:
        state: the state in which the round was opened.
        broadcast: what the devices received.
        mean: float32[d], the decoded noisy sum ÷ report goal.
        optimizer: how to step.
        rounds: of the whole run, which a schedule of the rate and an average over the last rounds
            are shares of; None: there is neither.

    Returns:
        The next state; coordinates outside the payload are untouched, moments included.

    Raises:
        ValueError: ``mean`` is not of the payload's dimension, or ``rounds`` is missing.
    """
    if rounds is None and (
        optimizer.warmup or optimizer.cooldown or optimizer.average.kind == "tail"
    ):
        raise ValueError("rounds is missing: warmup, cooldown and average.share are shares of it")
    rounds = state.round + 1 if rounds is None else rounds
    payload = broadcast.payload
    if mean.shape != (payload.dim,):
        raise ValueError(f"mean has shape {mean.shape}; the payload's is ({payload.dim},)")
    # The optimizer works on coordinates of the model, whatever it was that travelled.
    mean, payload = expand(payload, mean), payload.whole
    tables = {name: _table(state, payload, optimizer, name) for name in optimizer.moments}
    before = {name: gather(table, payload) for name, table in tables.items()}
    change, after = step(optimizer, mean, before, optimizer.rate(state.round, rounds))
    parameters = _moved(state.parameters, payload, change)
    moments = {
        name: _moved(table, payload, after[name] - before[name]) for name, table in tables.items()
    }
    if optimizer.average.counts(state.round, rounds):
        moments |= _averaged(state, payload, gather(parameters, payload), optimizer)
    else:
        moments |= {n: state.moments[n] for n in (AVERAGE, TRAVELS) if n in state.moments}
    return replace(state, round=state.round + 1, parameters=parameters, moments=moments)


def abandon_round(state: ServerState) -> ServerState:
    """Close a round that opened no sum: time passes, the model stays."""
    return replace(state, round=state.round + 1)


def _moved(tables: Tables, payload: Payload, change: Floats) -> Tables:
    """Return the tables with ``change`` added on the payload; only those that travel are copied."""
    travelling = {segment.name for segment in payload.segments}
    copied = {n: value.clone() if n in travelling else value for n, value in tables.items()}
    scatter_add(copied, payload, change)
    return copied


def _averaged(
    state: ServerState, payload: Payload, values: Floats, optimizer: ServerOptimizer
) -> dict[str, Tables]:
    """Return the tables of averages and of their counts after a round that left ``values``."""
    tables = {name: _table(state, payload, optimizer, name) for name in (AVERAGE, TRAVELS)}
    before = {name: gather(table, payload) for name, table in tables.items()}
    after = optimizer.average.step(before[AVERAGE], before[TRAVELS], values)
    return {
        name: _moved(tables[name], payload, now - before[name])
        for name, now in zip(tables, after, strict=True)
    }


def _table(state: ServerState, payload: Payload, optimizer: ServerOptimizer, moment: str) -> Tables:
    """Return the table of one moment, with entries for what travels for the first time."""
    table = dict(state.moments.get(moment, {}))
    for segment in payload.segments:
        if segment.name not in table:
            like = state.parameters[segment.name]
            table[segment.name] = torch.full_like(like, optimizer.initial(moment))
    return table
