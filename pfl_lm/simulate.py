"""The heart: one round as a straight line, and the run around it.

`simulate → run_round → participate → train` is the whole distance from the verb to a local step.

Legend: K devices of a group, d coordinates of the payload, T predicted words of a window.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from pfl_lm.attendance import attend, by_profile
from pfl_lm.books import Books, RoundFigures, Watch, validation, write_results
from pfl_lm.devices.report import Trace
from pfl_lm.devices.training import devices_at_once, groups, train
from pfl_lm.dp.grid import Grid
from pfl_lm.dp.ledger import Ledger
from pfl_lm.dp.mechanisms import protect
from pfl_lm.dp.sampling import cohort
from pfl_lm.interop.tff_sum import TffRound
from pfl_lm.interrupts import interruptible
from pfl_lm.ranks import ALONE, Ranks
from pfl_lm.runs import RunFolder
from pfl_lm.scenario import Scenario
from pfl_lm.secagg.errors import Refused, TooFewAnswers, TooFewReports
from pfl_lm.secagg.noise import NoisePlan
from pfl_lm.secagg.rounds import Aggregator
from pfl_lm.server.state import Broadcast, ServerState, abandon_round, close_round, open_round
from pfl_lm.world import World, choose_payload, final_evaluation, open_world, text_of


@dataclass(frozen=True)
class Group:
    """What K devices of a cohort send, and what only the simulation sees of them."""

    places: np.ndarray  # int64[K]: which of the users that were asked
    vectors: np.ndarray  # int64[K, d]: clipped, encoded, noised
    clipped: np.ndarray  # bool[K]
    traces: list[Trace]


def run_round(
    world: World,
    state: ServerState,
    ledger: Ledger | None,
    ranks: Ranks = ALONE,
    hold: Callable[[], None] = lambda: None,
) -> tuple[ServerState, dict[str, Any]]:
    """Run one round: invite, train, protect, sum, record, step.

    Args:
        ledger: of the run; None on every rank but the first.
        ranks: the processes that share the round's devices.
        hold: called when the round is about to be paid for, so that no interrupt loses it.

    Returns:
        The next state, and the round's line for the metrics (whole on the first rank).

    Guarantees:
        What the round costs is on the disk, in the ledger, before the model moves. A sum below
        the threshold is never opened. The mean divides by a public constant.
    """
    started, number = time.monotonic(), state.round
    payload = choose_payload(world, number)
    broadcast = open_round(state, payload)
    protection, grid = world.protection, world.protection.grid(payload.dim)
    asked = cohort(protection.rule, world.scenario.seed, number)
    attendance = attend(world, asked, payload, grid, state.clock)
    invited, state = attendance.invited, replace(state, clock=attendance.closed)
    log = RoundFigures(number, len(invited), grid.modulus_bits, attendance.figures)
    try:
        config = world.aggregation.config(broadcast, grid, len(invited))
        aggregator = world.aggregation.open(config, grid, attendance.silent)
        present = np.array(aggregator.waiting, dtype=np.int64)  # others vanish before they report
        asked = invited[present]
        for group in participate(world, state, broadcast, grid, asked, ranks, len(invited)):
            log.reports += aggregator.submit(group.vectors, present[group.places].tolist())
            log.add(group.traces, group.clipped)
        aggregator.merge(ranks)
        log.merge(ranks)
        hold()
        mean = ranks.first(release, world, broadcast, grid, aggregator, ledger)
    except (TooFewReports, TooFewAnswers, Refused) as failure:
        hold()
        log.reports = getattr(failure, "reports", log.reports)
        ranks.first(abandon, number, log.reports, ledger)
        return abandon_round(state), log.entry(time.monotonic() - started, payload.dim)
    log.traffic = aggregator.traffic()
    log.norms(mean, protection.sum_multiplier * grid.clip_norm / protection.cohort)
    state = close_round(state, broadcast, mean, world.scenario.server)
    return state, log.entry(time.monotonic() - started, payload.dim)


def participate(
    world: World,
    state: ServerState,
    broadcast: Broadcast,
    grid: Grid,
    invited: np.ndarray,
    ranks: Ranks = ALONE,
    cohort: int | None = None,
) -> Iterator[Group]:
    """Let the invited devices train on their own text and protect what they send, K at a time.

    ``cohort`` counts those who vanish, too: all divide the noise among themselves.

    Who is trained beside whom follows from the cohort alone and a rank takes whole groups, so no
    device's arithmetic depends on how many ranks there are.
    """
    scenario, protection = world.scenario, world.protection
    share = protection.own_share(grid, cohort or len(invited))
    rotation = protection.rotation(grid.dim, broadcast.round)
    number = broadcast.round
    own = {user: text_of(world, user, number) for user in ranks.share(invited).tolist()}
    at_once = devices_at_once(world.spec, broadcast.payload, scenario.training)
    task = world.task(broadcast, state.parameters)
    sizes = np.empty(len(invited), dtype=np.int64)
    parts = ranks.exchange((at_once, [len(text) for text in own.values()]))
    for rank, (_, counts) in enumerate(parts):
        sizes[rank :: ranks.count] = counts
    planned = groups(sizes.tolist(), parts[0][0])
    for turn in ranks.turns(len(planned)):
        group = planned[turn]
        users = invited[group].tolist()
        texts = [own[user] if user in own else text_of(world, user, number) for user in users]
        updates, traces = train(task, texts, users)  # float32[K, d]
        if rotation is not None:
            rotation.forward(updates)  # keeps norms, so it may come before the clip
        bits = [protection.bits("device", broadcast.round, user) for user in users]
        vectors, clipped = protect(updates, grid, share, bits)
        yield Group(group, vectors, clipped.clipped, traces)


def release(
    world: World, broadcast: Broadcast, grid: Grid, aggregator: Aggregator, ledger: Ledger | None
) -> np.ndarray:
    """Open the sum and return the noisy mean float32[d], once it is recorded.

    Only the first rank sees the sum and draws the noise that is missing in it.
    """
    assert ledger is not None
    opened = aggregator.close()
    protection, cohort = world.protection, aggregator.config.cohort
    plan = protection.noise_plan(grid, cohort)
    if isinstance(aggregator, TffRound):  # it has added the noise and divided
        mean = aggregator.mean
    else:
        mean = protection.mean(opened.vector, grid, opened.reports, broadcast.round, plan)
    ledger.record_round(broadcast.round, debit(world, broadcast, grid, opened.reports, mean, plan))
    return mean


def abandon(number: int, reports: int, ledger: Ledger | None) -> None:
    """Record that a round opened no sum, unless a reproducible run only repeats it."""
    assert ledger is not None
    abandoned = {"kind": "abandoned", "round": number, "reports": reports}
    if abandoned not in ledger.entries():
        ledger.record(abandoned)


def debit(
    world: World,
    broadcast: Broadcast,
    grid: Grid,
    reports: int,
    mean: np.ndarray,
    plan: NoisePlan | None = None,
) -> dict[str, Any]:
    """Return what the ledger records of an opened round: enough to recompute what it cost."""
    event = world.protection.event(reports, broadcast.payload.dim, broadcast.round)
    return {
        "event": None if event is None else asdict(event),
        "simulated": world.protection.simulated,
        "aggregator": world.scenario.aggregator,
        "reports": reports,
        "divisor": world.protection.cohort,
        "sum_multiplier": world.protection.sum_multiplier,
        "noise": world.protection.noise_record(reports, plan),
        "clip_norm": grid.clip_norm,
        "grid": {
            "scale": grid.scale,
            "norm_bound": grid.norm_bound,
            "bits": grid.modulus_bits,
            "rotated": world.protection.rotate,
        },
        "payload": {"dim": broadcast.payload.dim, "digest": broadcast.payload.digest},
        "released": hashlib.sha256(mean.tobytes()).hexdigest(),
    }


def simulate(
    scenario: Scenario,
    path: Path,
    watch: Watch,
    resume: bool = False,
    overwrite: bool = False,
    ranks: Ranks = ALONE,
) -> RunFolder:
    """Run a scenario to its end and evaluate the model on held-out users.

    Args:
        scenario: what to run.
        path: the run's folder; new, or with ``resume`` that of an interrupted run.
        watch: told of every round and evaluation, on the first rank.
        overwrite: delete an earlier run in that folder, once this one is known to be sound.
        ranks: the processes that share the work. Whatever their number, model and ledger are the
            same bytes; only the first one touches the folder.

    Raises:
        ValueError: the scenario cannot be run, the folder exists (or, to resume, belongs to
            another scenario), or a round would exceed the policy's budget.
    """
    world = open_world(scenario)
    _check_ranks(scenario, ranks)
    books = Books(world, RunFolder(Path(path)), watch)
    state = ranks.first(books.open, resume, overwrite)
    try:
        _evaluate_where_due(world, state, books, ranks)
        while state.round < scenario.rounds:
            ranks.first(books.check, state.round)
            with interruptible() as hold:
                state, entry = run_round(world, state, books.ledger, ranks, hold)
                ranks.first(books.round_done, entry)
            _evaluate_where_due(world, state, books, ranks)
            ranks.first(books.save_where_due, state)
    except BaseException:
        # The budget's end, a full disk, Ctrl-C: what has been paid for is kept.
        books.save(state)
        raise
    finally:
        books.close()
    return _finish(world, books.folder, state, ranks)


def _check_ranks(scenario: Scenario, ranks: Ranks) -> None:
    if ranks.count > 1 and scenario.secure_aggregation == "protocol":
        raise ValueError(
            'secure_aggregation = "protocol" exchanges its messages within one process; use '
            '--workers 1, or "ideal", which opens the same sums'
        )
    if ranks.count > 1 and scenario.aggregator == "tff":
        raise ValueError('aggregator = "tff" sums beside one process; use --workers 1')


def _evaluate_where_due(world: World, state: ServerState, books: Books, ranks: Ranks) -> None:
    """Measure the model on validation users, where the scenario asks for it."""
    if ranks.first(books.evaluation_is_due, state.round):
        ranks.first(books.evaluated, validation(world, state, ranks))


def _finish(world: World, folder: RunFolder, state: ServerState, ranks: Ranks) -> RunFolder:
    """Evaluate on test users and write the model; both can be repeated after a crash."""
    parameters = dict(state.parameters)
    found = final_evaluation(world, parameters, ranks)
    found["profiles"] = by_profile(world, parameters, ranks)
    ranks.first(write_results, world, folder, parameters, found)
    return folder
