"""One round's privacy path: what a device does to its update, and what the server does to a sum.

    protect_updates   device    (add the indicator) → rotate → clip → encode → add its noise share
    release           server    take off excess noise → add missing noise → decode → RECORD
    step              server    move the model, and an adaptive clip norm, by the recorded mean
    record_failure    server    record a round that released nothing, paid for if it was asked for

The simulation, the network's device and the network's server call these functions; no other code
touches an update between training and the sum, or a sum before it is recorded. (Where a graphics
card trains simulated devices, it clips and encodes their updates: ``simulate.protect_group``.)

Legend: K devices, d coordinates of the payload.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np

from pfl_lm.dp.clipping import Clip, with_indicators
from pfl_lm.dp.encoding import Clipped, protect
from pfl_lm.dp.grid import Grid
from pfl_lm.dp.ledger import Ledger
from pfl_lm.dp.mechanisms import Opened
from pfl_lm.dp.noise import NoiseShare, cohort_noise
from pfl_lm.dp.sampler.arrays import Int64s, Integers, Updates
from pfl_lm.dp.sampler.random_bits import RandomBits
from pfl_lm.dp.secret_state import SecretState
from pfl_lm.payload.layout import Payload
from pfl_lm.run.privacy import RunPrivacy
from pfl_lm.run.scenario import Scenario
from pfl_lm.run.sum_check import check_sum
from pfl_lm.secagg.config import RoundConfig
from pfl_lm.secagg.errors import SecaggError, SumLost
from pfl_lm.secagg.ideal import OpenedSum
from pfl_lm.secagg.opening import OpenedRound
from pfl_lm.secagg.rounds import NoisyMean
from pfl_lm.server.state import Broadcast, ServerState, abandon_round, close_round


def protect_updates(
    privacy: RunPrivacy,
    updates: Updates,
    broadcast: Broadcast,
    users: Sequence[int],
    cohort: int,
) -> tuple[Integers, Clipped]:
    """Rotate, clip, encode and noise the updates of K devices: float32[K, d] → integers[K, d].

    Args:
        privacy: the clip norm, the grid and the noise of the run.
        updates: (K, d), trained − received; rotated in place where there are no indicators.
        broadcast: what the devices received; names the round and its payload.
        users: K numbers; each names its device's own stream of randomness in a reproducible run.
        cohort: devices invited, dropouts included: the noise of a round is divided among them.

    Returns:
        What the devices send once it is masked, in the integers of the round's grid
        (:attr:`pfl_lm.dp.grid.Grid.integer`), and what clipping did.

    Guarantees:
        Those of :func:`pfl_lm.dp.encoding.protect`, whose table has the edge cases: no row of
        the result, less its noise, is longer than the grid's ``norm_bound``, whatever the update
        was, and every row carries its device's own share of noise, unless the simulation draws
        the shares of a cohort at once. A rotation keeps norms up to float32's rounding and comes
        before the clip, so that the clip norm is exact. Where the clip norm follows the updates,
        a row is the joint one of :mod:`pfl_lm.dp.clipping`, of d + 1 coordinates. On the grid
        neither the bound nor the noise depends on the clip norm: a server that states another one
        changes what a sum means, and never how well it protects.
    """
    privacy, told = privacy.at_clip(broadcast.clip_norm), None
    grid = privacy.grid(broadcast.payload.dim)
    if privacy.clipping is not None:
        updates, told = with_indicators(updates, privacy.clip_norm, privacy.indicator_weight)
    if (rotation := privacy.rotation(grid.dim, broadcast.round)) is not None:
        rotation.forward(updates)
    bits = [privacy.bits("device", broadcast.round, user) for user in users]
    vectors, clipped = protect(updates, grid, privacy.device_share(grid, cohort), bits)
    return vectors, told or clipped


@dataclass(frozen=True)
class Release:
    """What leaves a round.

    Attributes:
        mean: float32[d], the noisy mean update, by which the model moves; with indicators
            float32[d + 1], see ``RunPrivacy.decoded``.
        noise_state: what the mechanism needs in the next round; secret, and empty where the noise
            of every round is independent.
        noise_taken_up: the state that the round before left; secret.
    """

    mean: np.ndarray
    noise_state: bytes = field(default=b"", repr=False)
    noise_taken_up: bytes = field(default=b"", repr=False)


def release(
    privacy: RunPrivacy,
    opened: OpenedSum,
    config: RoundConfig,
    ledger: Ledger,
    broadcast: Broadcast,
    noise_state: bytes = b"",
    keep: Callable[[Release], None] = lambda released: None,
) -> Release:
    """Turn an opened sum into the noisy mean, and return it once it is recorded.

    Args:
        opened: the sum of the round's reports.
        config: what devices and server agreed on.
        noise_state: what the round before returned; empty in the first.
        keep: called before the ledger records the round; makes the state of the noise durable,
            and in a server that may be killed the mean too.

    Guarantees:
        The ledger holds what the round costs, on the disk, before anything is returned. Its entry
        names the state of the noise that ``keep`` made durable: after a crash at any point the
        newest entry says which state the next round takes up, and no state serves two recorded
        rounds. The mean divides by a public constant. Noise is taken off only down to what the
        policy plans, and only where the devices revealed its seeds after the sum was fixed.

    Raises:
        SumLost: the sum is longer than honest reports can make it (see :func:`check_sum`): the
            round is paid for, and the model must not move by it.
    """
    check_sum(privacy, opened, config, broadcast)
    released = noisy_mean(privacy, opened, config, broadcast, noise_state)
    keep(released)
    entry = ledger_entry(privacy, broadcast, config.cohort, opened.reports, released)
    ledger.record_round(broadcast.round, entry)
    return released


def noisy_mean(
    privacy: RunPrivacy,
    opened: OpenedSum,
    config: RoundConfig,
    broadcast: Broadcast,
    noise_state: bytes = b"",
    group: int = 0,
) -> Release:
    """Decode an opened sum: take off excess noise, add missing noise, divide, rotate back.

    Args:
        group: of a round's public groups, the one whose sum this is; it has noise of its own.
    """
    if isinstance(opened, NoisyMean):
        return Release(opened.mean)
    first, privacy = privacy.clip_norm, privacy.at_clip(broadcast.clip_norm)
    grid, total, round = privacy.grid(broadcast.payload.dim), opened.vector, broadcast.round
    removable = privacy.removable_noise(grid, config.cohort)
    if removable is not None and isinstance(opened, OpenedRound):
        total = removable.remove(config, total, opened.noise_secrets, opened.reports)
    bits = privacy.bits("noise", round, group)
    if privacy.drawn_at_once:
        total = total + _shares_at_once(privacy, grid, opened.reports, config.cohort, bits)
    mechanism, multiplier = privacy.mechanism, privacy.sum_multiplier
    summed = Opened(total, grid, privacy.cohort, multiplier, bits, round)
    if mechanism.stateful:
        summed = replace(summed, clip_ratio=privacy.clip_norm / first)
        summed = replace(summed, **_coordinates(privacy, broadcast.payload))
    mean, after = mechanism.mean(summed, noise_state or mechanism.initial_state)
    if (rotation := privacy.rotation(grid.dim, round)) is not None:
        rotation.inverse(mean[None])
    return Release(mean, SecretState(after), SecretState(noise_state))


def _coordinates(privacy: RunPrivacy, payload: Payload) -> dict[str, Any]:
    """Return where what was summed stands among all that ever is, and how few a round may sum.

    Indicators come last.
    """
    places = payload.places
    if places is not None and privacy.clipping is not None:
        places = np.append(places, payload.reach)
    fewest = max(1, privacy.summed_dim(payload.fewest))
    return {"places": places, "size": privacy.summed_dim(payload.reach), "fewest": fewest}


def _shares_at_once(
    privacy: RunPrivacy, grid: Grid, reports: int, cohort: int, bits: RandomBits
) -> Int64s:
    """Draw what the devices' shares add up to, once the excess is removed: int64[d]."""
    share, plan = privacy.planned_share(grid, cohort), privacy.noise_plan(grid, cohort)
    assert share is not None
    if plan is not None:
        share = NoiseShare(share.kind, plan.achieved(reports) / reports)
    return cohort_noise(share, reports, grid.dim, bits)


def step(
    privacy: RunPrivacy,
    scenario: Scenario,
    state: ServerState,
    broadcast: Broadcast,
    released: Release,
) -> ServerState:
    """Move the model, and a clip norm that follows the updates, by a recorded mean.

    The next round takes up the noise's state. A round whose clip norm was far too large moves the
    clip norm alone: that is decided from the released mean, so it tells nothing more.
    """
    update, share = privacy.at_clip(broadcast.clip_norm).decoded(released.mean)
    state = replace(state, noise_state=released.noise_state)
    rule = privacy.clipping
    if rule is not None and share is not None:
        state = replace(state, clip=_next_clip(privacy, broadcast, share))
        if rule.is_far_above(share):
            return abandon_round(state)
    return close_round(state, broadcast, update, scenario.server, scenario.rounds)


def _next_clip(privacy: RunPrivacy, broadcast: Broadcast, share: float) -> Clip:
    """Return the clip of the next round after a round that released this share of short updates."""
    assert privacy.clipping is not None
    return privacy.clipping.after(
        broadcast.clip or privacy.clipping.begin(privacy.clip_norm), share
    )


def record_failure(
    privacy: RunPrivacy, failure: SecaggError, broadcast: Broadcast, cohort: int, ledger: Ledger
) -> None:
    """Record a round that released nothing: abandoned, or paid for although its sum is lost.

    Args:
        failure: what ended the round.
        cohort: devices invited.

    ===========================================  =============================================
    failure                                      entry
    ===========================================  =============================================
    ``SumLost``: after devices were asked for    a round that costs what its reports cost, with
    what removes the masks                       nothing released
    any other: nobody revealed anything          abandoned, at no cost
    ===========================================  =============================================

    Guarantees:
        No sum that the server may have opened goes unpaid: a late answer, or a curious server,
        completes what the failed check refused.
    """
    if isinstance(failure, SumLost):
        entry = ledger_entry(privacy, broadcast, cohort, failure.reports, None)
        ledger.record_round(broadcast.round, {**entry, "failure": failure.reason})
        return
    abandon(broadcast.round, getattr(failure, "reports", 0), ledger)


def abandon(number: int, reports: int, ledger: Ledger) -> None:
    """Record that a round opened no sum, unless a reproducible run only repeats it."""
    abandoned = {"kind": "abandoned", "round": number, "reports": reports}
    if abandoned not in ledger.entries():
        ledger.record(abandoned)


def ledger_entry(
    privacy: RunPrivacy,
    broadcast: Broadcast,
    cohort: int,
    reports: int,
    released: Release | None,
) -> dict[str, Any]:
    """Return what the ledger records of an opened round: enough to recompute what it cost.

    Args:
        cohort: devices invited.
        reports: reports in the sum.
        released: None where the sum was lost after it was paid for.
    """
    at_clip = privacy.at_clip(broadcast.clip_norm)
    grid = at_clip.grid(broadcast.payload.dim)
    event = privacy.event(reports, broadcast.payload.dim, broadcast.round)
    entry = {
        "event": None if event is None else asdict(event),
        "simulated": privacy.simulated,
        "aggregator": privacy.aggregator,
        "reports": reports,
        "divisor": privacy.cohort,
        "sum_multiplier": privacy.sum_multiplier,
        "noise": privacy.noise_record(reports, privacy.noise_plan(grid, cohort)),
        "clip_norm": grid.clip_norm,
        "grid": {
            "scale": grid.scale,
            "norm_bound": grid.norm_bound,
            "bits": grid.modulus_bits,
            "rotated": privacy.rotate,
        },
        "payload": {"dim": broadcast.payload.dim, "digest": broadcast.payload.digest},
        "released": None if released is None else _digest(released.mean.tobytes()),
    }
    share = None if released is None else at_clip.decoded(released.mean)[1]
    if share is not None:
        following = asdict(_next_clip(privacy, broadcast, share))
        entry["clipping"] = {"share": share, "next": following}
    if released is not None and released.noise_state:
        entry["noise_state"] = _digest(released.noise_state)
        entry["noise_taken_up"] = _digest(released.noise_taken_up)
    return entry


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
