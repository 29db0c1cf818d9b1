"""The heart: one round as a straight line, and the run around it.

`simulate → run_round → train_cohort → train` is the whole distance from the verb to a local step.

Legend: K devices of a group, d coordinates of the payload, T predicted words of a window.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pfl_lm.devices.encoding_on_card import clip_and_round
from pfl_lm.devices.processor import CPU, Processor
from pfl_lm.devices.trace import Trace
from pfl_lm.devices.training import devices_at_once, groups, train_tensors
from pfl_lm.distributed import ALONE, Ranks
from pfl_lm.dp.encoding import Clipped
from pfl_lm.dp.sampler.arrays import Integers
from pfl_lm.interrupts import interruptible
from pfl_lm.run.aggregation import ExternalAggregator
from pfl_lm.run.availability import Cohort, invite
from pfl_lm.run.context import RunContext, choose_payload, text_of
from pfl_lm.run.control import heed
from pfl_lm.run.divergence import LossWatch, require_finite
from pfl_lm.run.evaluable import require_held_out
from pfl_lm.run.evaluation import final_evaluation, validate, write_results
from pfl_lm.run.figures import RoundFigures
from pfl_lm.run.folder import RunFolder
from pfl_lm.run.groups import GroupedRound
from pfl_lm.run.privacy import RunPrivacy
from pfl_lm.run.progress import ProgressListener
from pfl_lm.run.recorder import RoundRecorder, RunRecorder
from pfl_lm.run.round import Release, protect_updates, record_failure, release, step
from pfl_lm.run.same_people import say_charged_elsewhere
from pfl_lm.run.scenario import Scenario
from pfl_lm.run.setup import account_of, open_run
from pfl_lm.run.trimmed import noise_ratio
from pfl_lm.secagg.errors import SecaggError
from pfl_lm.secagg.rounds import Aggregator
from pfl_lm.server.state import Broadcast, ServerState, abandon_round, open_round


@dataclass(frozen=True)
class Ends:
    """The two ends of a round that a test or an audit replaces: who comes, and what they learn.

    Attributes:
        invite: (context, broadcast, clock) → the cohort.
        text_of: (context, user, round) → a device's own text, int64[n, T + 1].
        train: (task, texts, users) → updates float32[K, d], an array or a tensor, and traces.
    """

    invite: Callable[..., Cohort] = invite
    text_of: Callable[..., np.ndarray] = text_of
    train: Callable[..., tuple[np.ndarray | Tensor, list[Trace]]] = train_tensors


@dataclass(frozen=True)
class Group:
    """What K devices of a cohort learnt, and what only the simulation sees of them."""

    places: list[int]  # in the cohort
    users: list[int]
    updates: Tensor  # float32[K, d], trained − received, on the processor that trained them
    traces: list[Trace]


def run_round(
    context: RunContext,
    state: ServerState,
    recorder: RoundRecorder,
    ranks: Ranks = ALONE,
    ends: Ends = Ends(),
) -> tuple[ServerState, dict[str, Any]]:
    """Run one round: invite, train, protect, sum, record, step.

    Args:
        recorder: keeps the ledger of the run on the first rank.
        ranks: the processes that share the round's devices.
        ends: who is invited and what they learn; a run's own by default.

    Returns:
        The next state, and the round's line for the metrics (whole on the first rank).

    Guarantees:
        What the round costs is on the disk, in the ledger, before the model moves. A sum below
        the threshold is never opened, and one that devices were asked to open is paid for however
        the round ends. The mean divides by a public constant.
    """
    broadcast = open_round(state, choose_payload(context, state.round))
    cohort = ends.invite(context, broadcast, state.clock)
    state = replace(state, clock=cohort.closed)
    figures = RoundFigures(context.privacy, broadcast, cohort)
    try:
        total = _open_sum(context, broadcast, cohort)
        for group in train_cohort(context, state, broadcast, cohort, total.waiting, ranks, ends):
            vectors, clipped = protect_group(context.privacy, group, broadcast, len(cohort))
            figures.add(group.traces, clipped.clipped, total.submit(vectors, group.places))
        total.merge(ranks)
        figures.merge(ranks)
        recorder.hold()
        released = ranks.on_rank_zero(_release, context, state, broadcast, total, recorder)
    except SecaggError as failure:
        recorder.hold()
        figures.failed(failure)
        record = partial(record_failure, context.privacy, failure, broadcast, len(cohort))
        ranks.on_rank_zero(record, recorder.ledger)
        return abandon_round(state), figures.entry()
    ratio = noise_ratio(context.privacy.groups, context.trimmed_groups)
    figures.opened(released.mean, total.traffic(), ratio)
    state = step(context.privacy, context.scenario, state, broadcast, released)
    return state, figures.entry()


def _open_sum(
    context: RunContext, broadcast: Broadcast, cohort: Cohort
) -> Aggregator | GroupedRound:
    """Begin the round's sum, or that of each of its public groups."""
    if context.privacy.groups > 1:
        return GroupedRound(context.aggregation, broadcast, len(cohort), cohort.silent)
    return context.aggregation.open(broadcast, len(cohort), cohort.silent)


def _release(
    context: RunContext,
    state: ServerState,
    broadcast: Broadcast,
    total: Aggregator | GroupedRound,
    recorder: RoundRecorder,
) -> Release:
    """Open the sum and release its mean; only the first rank sees either."""
    ledger, privacy = recorder.ledger, context.privacy
    assert ledger is not None
    keep = partial(recorder.keep, broadcast.round)
    if isinstance(total, GroupedRound):
        return total.release(privacy, ledger, broadcast, context.trimmed_groups, keep)
    opened, before = total.close(), state.noise_state
    return release(privacy, opened, total.config, ledger, broadcast, before, keep)


def train_cohort(
    context: RunContext,
    state: ServerState,
    broadcast: Broadcast,
    cohort: Cohort,
    present: list[int],
    ranks: Ranks = ALONE,
    ends: Ends = Ends(),
) -> Iterator[Group]:
    """Let the devices that will report train on their own text, K at a time.

    Devices are grouped by their number of windows, and each rank trains whole groups. Both depend
    on the cohort alone, so no result depends on the number of ranks.

    Args:
        present: places in the cohort; the other devices vanish before they report.
    """
    places, number = np.array(present, dtype=np.int64), broadcast.round
    users = cohort.invited[places]
    own = {user: ends.text_of(context, user, number) for user in ranks.shard(users).tolist()}
    training = context.scenario.training
    at_once = devices_at_once(context.spec, broadcast.payload, training, context.processor)
    task = context.task(broadcast, state.parameters)
    sizes = np.empty(len(users), dtype=np.int64)
    parts = ranks.all_gather((at_once, [len(text) for text in own.values()]))
    for rank, (_, counts) in enumerate(parts):
        sizes[rank :: ranks.count] = counts
    planned = groups(sizes.tolist(), parts[0][0])
    for turn in ranks.work_queue(len(planned)):
        group = users[planned[turn]].tolist()
        texts = [
            own[user] if user in own else ends.text_of(context, user, number) for user in group
        ]
        updates, traces = ends.train(task, texts, group)
        yield Group(places[planned[turn]].tolist(), group, torch.as_tensor(updates), traces)


def protect_group(
    privacy: RunPrivacy, group: Group, broadcast: Broadcast, cohort: int
) -> tuple[Integers | Tensor, Clipped]:
    """Do to K updates what their devices do before they are masked: float32[K, d] → integers.

    Updates on a graphics card are clipped and rounded there, and stay there, where the devices of
    the run do no more; all others go through :func:`pfl_lm.run.round.protect_updates`.

    Args:
        cohort: devices invited.
    """
    updates, users, grid = group.updates, group.users, privacy.grid(broadcast.payload.dim)
    more = privacy.rotate or privacy.clipping or privacy.device_share(grid, cohort)
    if updates.device.type == "cpu" or more:
        return protect_updates(privacy, updates.cpu().numpy(), broadcast, users, cohort)
    bits = [privacy.bits("device", broadcast.round, user) for user in users]
    return clip_and_round(updates, grid, bits)


def simulate(
    scenario: Scenario,
    path: Path,
    listener: ProgressListener,
    resume: bool = False,
    overwrite: bool = False,
    ranks: Ranks = ALONE,
    external: ExternalAggregator | None = None,
    ledgers: Path | None = None,
    before: Callable[[RunContext], None] = lambda context: None,
    processor: Processor = CPU,
) -> RunFolder:
    """Run a scenario to its end and evaluate the model on held-out users.

    Args:
        scenario: what to run.
        path: the run's folder; new, or with ``resume`` that of an interrupted run.
        listener: told of every round and evaluation, on the first rank.
        overwrite: delete an earlier run in that folder, once this one is known to be sound.
        ranks: the processes that share the work. Whatever their number, model and ledger are the
            same bytes; only the first one touches the folder.
        external: the runtime that the scenario's ``aggregator`` names, where that is not ours.
        ledgers: folder of the population's ledger, beside the store by default; needed only where
            a run on people's text is at the policy's own scale.
        before: looks at a new run on the first rank before anything is written, and may refuse it.
        processor: where this process trains its devices.

    Raises:
        ValueError: the scenario cannot be run, the folder exists (or, to resume, belongs to
            another scenario), or a round would exceed the policy's budget.
        Diverged: training diverged; what was spent is recorded.
        RunStopped: somebody asked the run to stop (``run/control``).
    """
    context = open_run(scenario, external, processor)
    _check_ranks(scenario, ranks)
    require_held_out(scenario, context.population)
    if not (resume or ranks.begun):
        ranks.on_rank_zero(before, context)
    account = account_of(context, ledgers)
    ranks.on_rank_zero(say_charged_elsewhere, context.population, "train", account, listener)
    recorder = RunRecorder(context, RunFolder(Path(path)), listener, account)
    if ranks.begun:  # a process was killed; what an earlier launch left is never resumed unasked
        resume, overwrite = True, False
    state = ranks.on_rank_zero(recorder.open, resume, overwrite)
    ranks.mark_begun()
    losses = LossWatch(context, listener.say)
    try:
        require_finite(state)
        ranks.on_rank_zero(lambda: losses.take_up(recorder.folder.all_metrics()))
        _evaluate_where_due(context, state, recorder, ranks)
        while state.round < scenario.rounds:
            ranks.on_rank_zero(heed, recorder.folder.path, state.round)
            ranks.on_rank_zero(recorder.check_budget, state.round)
            with interruptible() as recorder.hold:
                state, entry = run_round(context, state, recorder, ranks)
                ranks.on_rank_zero(recorder.round_done, entry)
            ranks.on_rank_zero(losses.check, entry)
            require_finite(state)
            _evaluate_where_due(context, state, recorder, ranks)
            ranks.on_rank_zero(recorder.save_where_due, state)
        ranks.on_rank_zero(recorder.finish, state)
        _finish(context, recorder, state, ranks)
    except BaseException:
        # The budget's end, a full disk, Ctrl-C: what has been paid for is kept.
        with interruptible() as hold:
            hold()
            recorder.save_after_failure(state)
            recorder.close_after_failure()
        raise
    recorder.close()
    return recorder.folder


def _check_ranks(scenario: Scenario, ranks: Ranks) -> None:
    if ranks.count > 1 and scenario.secure_aggregation == "protocol":
        raise ValueError(
            'secure_aggregation = "protocol" exchanges its messages within one process; use '
            '--workers 1, or "ideal", which opens the same sums'
        )
    if ranks.count > 1 and scenario.aggregator != "exact":
        raise ValueError(
            f'aggregator = "{scenario.aggregator}" sums beside one process; use --workers 1'
        )


def _evaluate_where_due(
    context: RunContext, state: ServerState, recorder: RunRecorder, ranks: Ranks
) -> None:
    """Measure the model on validation users, where the scenario asks for it."""
    if ranks.on_rank_zero(recorder.evaluation_is_due, state.round):
        ranks.on_rank_zero(recorder.evaluated, validate(context, state, ranks))


def _finish(context: RunContext, recorder: RunRecorder, state: ServerState, ranks: Ranks) -> None:
    """Evaluate on test users, write the model, close the ledger; all can be repeated."""
    parameters = state.averaged()
    evaluation = final_evaluation(context, parameters, ranks)
    ranks.on_rank_zero(write_results, context, recorder.folder, parameters, evaluation)
    ranks.on_rank_zero(recorder.record_end, state.round)
