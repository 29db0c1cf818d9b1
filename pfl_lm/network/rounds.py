"""One round over the network, as a straight line: invite, collect phase by phase, record, step.

The line of ``simulate.run_round``, with devices elsewhere, and with every durable write at its
place (``store`` has the order and what a crash between any two of them leaves).
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

import numpy as np

from pfl_lm.dp.clipping import Clip
from pfl_lm.dp.cohort import cohort
from pfl_lm.dp.ledger import Ledger
from pfl_lm.network import requirements
from pfl_lm.network.mailbox import Mailbox
from pfl_lm.network.model_delta import model_digest
from pfl_lm.network.store import RoundRow, Store
from pfl_lm.network.task_config import TaskConfig, round_config
from pfl_lm.network.transport import Limits
from pfl_lm.run.context import RunContext, choose_payload
from pfl_lm.run.figures import clip_figures
from pfl_lm.run.privacy import RunPrivacy
from pfl_lm.run.recorder import RunRecorder
from pfl_lm.run.round import Release, record_failure, release, step
from pfl_lm.secagg.config import RoundConfig
from pfl_lm.secagg.errors import SecaggError, SumLost
from pfl_lm.secagg.opening import OpenedRound
from pfl_lm.secagg.server import CollectingKeys
from pfl_lm.secagg.traffic import device_traffic
from pfl_lm.server.state import Broadcast, ServerState, abandon_round, open_round

log = logging.getLogger("pfl_lm.network")


@dataclass(frozen=True)
class ServerContext:
    """What a server works with, round after round.

    Attributes:
        authority: public key that certifies identities, for signed rounds.
        reached: called with (point, round) after every durable write; tests kill the server there.
    """

    context: RunContext
    task_config: TaskConfig
    recorder: RunRecorder
    store: Store
    mailbox: Mailbox
    limits: Limits
    authority: bytes
    reached: Callable[[str, int], None] = field(default=lambda point, round: None)

    @property
    def ledger(self) -> Ledger:
        assert self.recorder.ledger is not None
        return self.recorder.ledger


class SumServer(Protocol):
    """What the sum of a round needs of a server, whether it trains or asks."""

    @property
    def store(self) -> Store: ...

    @property
    def mailbox(self) -> Mailbox: ...

    @property
    def limits(self) -> Limits: ...

    @property
    def authority(self) -> bytes: ...

    @property
    def ledger(self) -> Ledger: ...

    @property
    def reached(self) -> Callable[[str, int], None]: ...


async def run_round(
    server: ServerContext, state: ServerState
) -> tuple[ServerState, dict[str, Any]]:
    """Run one round with the devices that come; return the next state and the figures' line.

    Guarantees:
        The store knows of the round before any device does. What it costs is charged from the
        moment in which a device may have answered, and is in the ledger before the model moves.
        A sum below the threshold is never opened. Nothing of a device but its place in the sum
        is kept or logged.

    Raises:
        Refused: the round's payload is smaller than the policy covers; no device was invited.
    """
    context, store, mailbox, number = server.context, server.store, server.mailbox, state.round
    started = time.monotonic()
    broadcast = open_round(state, choose_payload(context, number))
    if not server.task_config.trial:
        assert context.privacy.policy is not None
        requirements.check_payload(context.privacy.policy, broadcast.payload)
    invited = cohort(context.privacy.rule, context.scenario.seed, number)
    entry = _Entry(number, len(invited), broadcast.payload.dim)
    try:
        model = model_digest(server.task_config, state.parameters)
        config = round_config(context, broadcast, len(invited), model)
        store.invited(number, config.context)
        server.reached("invited", number)
        mailbox.invite(config, invited.tolist(), broadcast.clip_norm)
        opened = await open_sum(server, context.privacy, config)
        keep, ledger = partial(_keep, server, number), server.ledger
        released = release(
            context.privacy, opened, config, ledger, broadcast, state.noise_state, keep
        )
    except SecaggError as failure:
        end_unopened(server, context.privacy, broadcast, len(invited), failure)
        return abandon_round(state), entry.finish(time.monotonic() - started)
    server.reached("debited", number)
    state = step(context.privacy, context.scenario, state, broadcast, released)
    store.closed(number)
    server.reached("closed", number)
    log.info("round %d: %d reports were summed", number, opened.reports)
    mailbox.end(f"{opened.reports} reports were summed")
    entry.opened(context, broadcast, config, opened.reports, released.mean)
    return state, entry.finish(time.monotonic() - started)


async def open_sum(server: SumServer, privacy: RunPrivacy, config: RoundConfig) -> OpenedRound:
    """Run the protocol's phases; ask for what removes the masks only once that is on the disk."""
    mailbox, limits = server.mailbox, server.limits
    keys = CollectingKeys(config, privacy.most_reports, server.authority)
    shares, outgoing = await mailbox.collect(keys, {}, limits.training_seconds)
    inputs, outgoing = await mailbox.collect(shares, outgoing, limits.phase_seconds)
    phase, outgoing = await mailbox.collect(inputs, outgoing, limits.phase_seconds)
    reports = len(outgoing)
    if config.signed:
        phase, outgoing = await mailbox.collect(phase, outgoing, limits.phase_seconds)
    server.store.asking(config.round, reports)
    server.reached("asking", config.round)
    try:
        opened: OpenedRound = await mailbox.collect(phase, outgoing, limits.phase_seconds)
    except SumLost:
        raise
    except SecaggError as failure:  # whatever it is, devices may have answered
        raise SumLost(reports, str(failure)) from failure
    return opened


def _keep(server: ServerContext, number: int, released: Release) -> None:
    """Make durable, before the ledger records the round, what a killed server needs to end it."""
    server.recorder.keep(number, released)
    server.reached("kept", number)
    server.store.opened(number, released.mean)
    server.reached("opened", number)


def end_unopened(
    server: SumServer,
    privacy: RunPrivacy,
    broadcast: Broadcast,
    invited: int,
    failure: SecaggError,
) -> None:
    """End a round without a release: paid for if devices were asked, else abandoned."""
    number, lost = broadcast.round, isinstance(failure, SumLost)
    log.warning("round %d %s: %s", number, "is lost" if lost else "is abandoned", failure)
    if isinstance(failure, SumLost) and failure.spoiler is not None:
        server.mailbox.spoiled(failure.spoiler, failure.reason)
    record_failure(privacy, failure, broadcast, invited, server.ledger)
    server.reached("lost" if lost else "abandoned", number)
    if server.mailbox.under_way != number:  # too few were invited for a round to begin
        return
    if lost:
        server.store.lost(number)
    else:
        server.store.abandoned(number)
    server.mailbox.end(f"the round opened no sum: {failure}")


def remembered(context: RunContext, row: RoundRow, clip: Clip | None) -> dict[str, Any]:
    """Return the figures of a round that ended with the server's life, of what the store holds.

    Args:
        clip: of the round, where the clip norm follows the updates.
    """
    payload = choose_payload(context, row.round)
    invited = len(cohort(context.privacy.rule, context.scenario.seed, row.round))
    entry = _Entry(row.round, invited, payload.dim)
    if row.state == "closed" and row.mean is not None and row.reports is not None:
        # Sizes are all that it gives.
        broadcast = Broadcast(row.round, payload, np.empty(0, np.float32), clip)
        config = context.aggregation.config(broadcast, invited)
        entry.opened(context, broadcast, config, row.reports, row.mean)
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

    def opened(
        self,
        context: RunContext,
        broadcast: Broadcast,
        config: RoundConfig,
        reports: int,
        mean: np.ndarray,
    ) -> None:
        privacy, dim = context.privacy.at_clip(broadcast.clip_norm), broadcast.payload.dim
        update, share = privacy.decoded(mean)
        deviation = privacy.mean_deviation(config.round)
        traffic = device_traffic(config, reports=reports)
        self._figures |= {
            "reports": reports,
            "mean_norm": float(np.linalg.norm(update)),
            "noise_norm": float(deviation * np.sqrt(dim)),
            "download_bytes": 4 * dim + traffic.download_bytes,
            "upload_bytes": traffic.upload_bytes,
            **clip_figures(privacy, share),
        }

    def finish(self, seconds: float | None) -> dict[str, Any]:
        """Return the line; seconds are None where the server was killed during the round."""
        return {**self._figures, "seconds": seconds}
