"""One round over the network, as a straight line: invite, collect phase by phase, record, step.

The line of ``simulate.run_round``, with devices elsewhere, and with every durable write at its
place (``store`` has the order and what a crash between any two of them leaves).
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from pfl_lm.dp.ledger import Ledger
from pfl_lm.dp.sampling import cohort
from pfl_lm.network.broadcast import model_digest
from pfl_lm.network.desk import Desk
from pfl_lm.network.store import RoundRow, Store
from pfl_lm.network.terms import Terms, round_config
from pfl_lm.network.transport import Limits
from pfl_lm.secagg.config import RoundConfig
from pfl_lm.secagg.errors import SecaggError, TooFewReports
from pfl_lm.secagg.opening import OpenedRound
from pfl_lm.secagg.server import CollectingKeys
from pfl_lm.secagg.traffic import device_traffic
from pfl_lm.server.state import Broadcast, ServerState, abandon_round, close_round, open_round
from pfl_lm.simulate import abandon, debit
from pfl_lm.world import World, choose_payload

log = logging.getLogger("pfl_lm.network")


@dataclass(frozen=True)
class Office:
    """What a server works with, round after round.

    Attributes:
        authority: public key that certifies identities, for signed rounds.
        reached: called with (point, round) after every durable write; tests kill the server there.
    """

    world: World
    terms: Terms
    ledger: Ledger
    store: Store
    desk: Desk
    limits: Limits
    authority: bytes
    reached: Callable[[str, int], None] = field(default=lambda point, round: None)


async def run_round(office: Office, state: ServerState) -> tuple[ServerState, dict[str, Any]]:
    """Run one round with whoever comes; return the next state and the round's line of figures.

    Guarantees:
        The store knows of the round before any device does. What it costs is charged from the
        moment in which a device may have answered, and is in the ledger before the model moves.
        A sum below the threshold is never opened. Nothing of a device but its place in the sum
        is kept or logged.
    """
    world, store, desk, number = office.world, office.store, office.desk, state.round
    started = time.monotonic()
    broadcast = open_round(state, choose_payload(world, number))
    invited = cohort(world.protection.rule, world.scenario.seed, number)
    entry = _Entry(number, len(invited), broadcast.payload.dim)
    try:
        model = model_digest(office.terms, state.parameters)
        config = round_config(world, broadcast, len(invited), model)
        store.invited(number, config.context)
        office.reached("invited", number)
        desk.invite(config, invited.tolist())
        opened = await _sum(office, config)
    except SecaggError as failure:
        _abandon(office, number, failure)
        return abandon_round(state), entry.finish(time.monotonic() - started)
    mean = release(office, broadcast, config, opened)
    state = close_round(state, broadcast, mean, world.scenario.server)
    store.closed(number)
    office.reached("closed", number)
    desk.end(f"{opened.reports} reports were summed")
    entry.opened(world, config, opened.reports, mean)
    return state, entry.finish(time.monotonic() - started)


async def _sum(office: Office, config: RoundConfig) -> OpenedRound:
    """Run the protocol's phases; ask for what removes the masks only once that is on the disk."""
    desk, limits = office.desk, office.limits
    keys = CollectingKeys(config, office.world.protection.most_reports, office.authority)
    shares, outgoing = await desk.collect(keys, {}, limits.training_seconds)
    inputs, outgoing = await desk.collect(shares, outgoing, limits.phase_seconds)
    phase, outgoing = await desk.collect(inputs, outgoing, limits.phase_seconds)
    reports = len(outgoing)
    if config.signed:
        phase, outgoing = await desk.collect(phase, outgoing, limits.phase_seconds)
    office.store.asking(config.round, reports)
    office.reached("asking", config.round)
    opened: OpenedRound = await desk.collect(phase, outgoing, limits.phase_seconds)
    return opened


def release(
    office: Office, broadcast: Broadcast, config: RoundConfig, opened: OpenedRound
) -> np.ndarray:
    """Take the excess noise off, decode, keep the noisy mean, and debit the round: float32[d]."""
    world, number, total = office.world, broadcast.round, opened.vector
    protection, grid = world.protection, world.protection.grid(broadcast.payload.dim)
    if (noise := protection.removable_noise(grid, config.cohort)) is not None:
        total = noise.remove(config, total, opened.noise_secrets, opened.reports)
    plan = protection.noise_plan(grid, config.cohort)
    mean = protection.mean(total, grid, opened.reports, number, plan)
    office.store.opened(number, mean)
    office.reached("opened", number)
    charge(world, office.ledger, broadcast, config.cohort, opened.reports, mean)
    office.reached("debited", number)
    return mean


def charge(
    world: World,
    ledger: Ledger,
    broadcast: Broadcast,
    invited: int,
    reports: int,
    mean: np.ndarray | None,
) -> None:
    """Debit a round, once; without a mean it is paid for and its sum was lost."""
    grid = world.protection.grid(broadcast.payload.dim)
    released = np.empty(0, np.float32) if mean is None else mean
    plan = world.protection.noise_plan(grid, invited)
    entry = debit(world, broadcast, grid, reports, released, plan)
    ledger.record_round(broadcast.round, entry if mean is not None else {**entry, "released": None})


def _abandon(office: Office, number: int, failure: SecaggError) -> None:
    log.warning("round %d is abandoned: %s", number, failure)
    reports = failure.reports if isinstance(failure, TooFewReports) else 0
    abandon(number, reports, office.ledger)
    office.reached("abandoned", number)
    if office.desk.under_way == number:  # else it was too small to be opened
        office.store.abandoned(number)
        office.desk.end(f"the round was abandoned: {failure}")


def remembered(world: World, row: RoundRow) -> dict[str, Any]:
    """Return the figures of a round that ended with the server's life, of what the store holds."""
    payload = choose_payload(world, row.round)
    invited = len(cohort(world.protection.rule, world.scenario.seed, row.round))
    entry = _Entry(row.round, invited, payload.dim)
    if row.state == "closed" and row.mean is not None and row.reports is not None:
        broadcast = Broadcast(row.round, payload, np.empty(0, np.float32))  # sizes are all it gives
        config = world.aggregation.config(broadcast, world.protection.grid(payload.dim), invited)
        entry.opened(world, config, row.reports, row.mean)
    return entry.finish(None)


class _Entry:
    """A round's figures: nothing that devices did not mean to tell."""

    def __init__(self, number: int, invited: int, dim: int) -> None:
        self._figures: dict[str, Any] = {
            "kind": "round",
            "round": number,
            "invited": invited,
            "reports": 0,
            "loss": None,  # the devices keep it to themselves
            "mean_norm": None,
            "noise_norm": None,
            "payload_dim": dim,
            "download_bytes": 4 * dim,
            "upload_bytes": 0,
        }

    def opened(self, world: World, config: RoundConfig, reports: int, mean: np.ndarray) -> None:
        protection, dim = world.protection, config.dim
        deviation = protection.sum_multiplier * protection.clip_norm / protection.cohort
        traffic = device_traffic(config, reports=reports)
        self._figures |= {
            "reports": reports,
            "mean_norm": float(np.linalg.norm(mean)),
            "noise_norm": float(deviation * np.sqrt(dim)),
            "download_bytes": 4 * dim + traffic.download_bytes,
            "upload_bytes": traffic.upload_bytes,
        }

    def finish(self, seconds: float | None) -> dict[str, Any]:
        """Return the line; seconds are None where nobody lived to count them."""
        return {**self._figures, "seconds": seconds}
