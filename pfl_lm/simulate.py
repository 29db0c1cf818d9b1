"""The heart: one round as a straight line, and the run around it.

`simulate → run_round → participate → train` is the whole distance from the verb to a local step.

Legend: K devices of a group, d coordinates of the payload, T predicted words of a window.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from pfl_lm.checkpoints import save_checkpoint
from pfl_lm.devices.report import Trace
from pfl_lm.devices.training import devices_at_once, groups, train
from pfl_lm.dp.grid import Grid
from pfl_lm.dp.ledger import Ledger
from pfl_lm.dp.mechanisms import protect
from pfl_lm.dp.sampling import cohort
from pfl_lm.language.population import windows
from pfl_lm.model_file import Model, save_model
from pfl_lm.protection import Budget
from pfl_lm.resume import begin_run, resume_run
from pfl_lm.runs import RunFolder, RunLog, write_json
from pfl_lm.scenario import Scenario
from pfl_lm.secagg.errors import Refused, TooFewAnswers, TooFewReports
from pfl_lm.secagg.traffic import Traffic
from pfl_lm.server.state import Broadcast, ServerState, abandon_round, close_round, open_round
from pfl_lm.world import World, choose_payload, final_evaluation, open_world, validate


class Watch(Protocol):
    """Whoever wants to follow a run."""

    def say(self, line: str) -> None: ...

    def round_done(self, entry: dict[str, Any], rounds: int) -> None: ...

    def evaluated(self, entry: dict[str, Any]) -> None: ...


@dataclass(frozen=True)
class Group:
    """What K devices of a cohort send, and what only the simulation sees of them."""

    places: np.ndarray  # int64[K]: which of the users that were asked
    vectors: np.ndarray  # int64[K, d]: clipped, encoded, noised
    clipped: np.ndarray  # bool[K]
    traces: list[Trace]


def run_round(
    world: World, state: ServerState, ledger: Ledger
) -> tuple[ServerState, dict[str, Any]]:
    """Run one round: invite, train, protect, sum, record, step.

    Returns:
        The next state, and the round's line for the metrics.

    Guarantees:
        What the round costs is on the disk, in the ledger, before the model moves. A sum below
        the threshold is never opened. The mean divides by a public constant.
    """
    started, number = time.monotonic(), state.round
    payload = choose_payload(world, number)
    broadcast = open_round(state, payload)
    protection, grid = world.protection, world.protection.grid(payload.dim)
    invited = cohort(protection.rule, world.scenario.seed, number)
    log = _RoundLog(number, len(invited), grid.modulus_bits)
    try:
        config = world.aggregation.config(broadcast, grid, len(invited))
        aggregator = world.aggregation.open(config)
        present = np.array(aggregator.waiting, dtype=np.int64)  # others vanish before they report
        for group in participate(world, state, broadcast, grid, invited[present]):
            log.reports += aggregator.submit(group.vectors, present[group.places].tolist())
            log.add(group)
        opened = aggregator.close()
    except (TooFewReports, TooFewAnswers, Refused) as failure:
        log.reports = getattr(failure, "reports", log.reports)
        abandoned = {"kind": "abandoned", "round": number, "reports": log.reports}
        if abandoned not in ledger.entries():  # a reproducible run repeats a lost round
            ledger.record(abandoned)
        return abandon_round(state), log.entry(time.monotonic() - started, payload.dim)
    mean = protection.mean(opened.vector, grid, opened.reports, number)
    ledger.record_round(number, debit(world, broadcast, grid, opened.reports, mean))
    log.traffic = aggregator.traffic()
    log.norms(mean, protection.sum_multiplier * grid.clip_norm / protection.cohort)
    state = close_round(state, broadcast, mean, world.scenario.server)
    return state, log.entry(time.monotonic() - started, payload.dim)


def participate(
    world: World, state: ServerState, broadcast: Broadcast, grid: Grid, invited: np.ndarray
) -> Iterator[Group]:
    """Let the invited devices train on their own text and protect what they send, K at a time."""
    scenario, protection = world.scenario, world.protection
    share = None if protection.kind == "skellam" else protection.share(grid)
    own = [_windows(world, user) for user in invited.tolist()]
    at_once = devices_at_once(world.spec, broadcast.payload, scenario.training)
    for group in groups([len(text) for text in own], at_once):
        users = invited[group].tolist()
        updates, traces = train(
            world.spec,
            dict(state.parameters),
            broadcast.payload,
            broadcast.values,
            [own[place] for place in group],
            scenario.training,
            world.tokenizer.unigram,
            scenario.seed,
            broadcast.round,
            users,
        )  # float32[K, d]
        bits = [protection.bits("device", broadcast.round, user) for user in users]
        vectors, clipped = protect(updates, grid, share, bits)
        yield Group(group, vectors, clipped.clipped, traces)


def debit(
    world: World, broadcast: Broadcast, grid: Grid, reports: int, mean: np.ndarray
) -> dict[str, Any]:
    """Return what the ledger records of an opened round: enough to recompute what it cost."""
    event = world.protection.event(reports, broadcast.payload.dim, broadcast.round)
    return {
        "event": None if event is None else asdict(event),
        "simulated": world.protection.simulated,
        "reports": reports,
        "divisor": world.protection.cohort,
        "sum_multiplier": world.protection.sum_multiplier,
        "clip_norm": grid.clip_norm,
        "grid": {"scale": grid.scale, "norm_bound": grid.norm_bound, "bits": grid.modulus_bits},
        "payload": {"dim": broadcast.payload.dim, "digest": broadcast.payload.digest},
        "released": hashlib.sha256(mean.tobytes()).hexdigest(),
    }


def simulate(
    scenario: Scenario, path: Path, watch: Watch, resume: bool = False, overwrite: bool = False
) -> RunFolder:
    """Run a scenario to its end and evaluate the model on held-out users.

    Args:
        scenario: what to run.
        path: the run's folder; new, or with ``resume`` that of an interrupted run.
        watch: told of every round and evaluation.
        overwrite: delete an earlier run in that folder, once this one is known to be sound.

    Raises:
        ValueError: the scenario cannot be run, the folder exists (or, to resume, belongs to
            another scenario), or a round would exceed the policy's budget.
    """
    world = open_world(scenario)
    folder = RunFolder(Path(path))
    if resume:
        state, ledger = resume_run(world, folder, watch)
    else:
        state, ledger = begin_run(world, folder, overwrite)
    with ledger:
        budget = Budget(world.protection, ledger, choose_payload(world, 0).dim)
        log = RunLog(folder, state.round)
        try:
            if state.round == 0:
                _evaluate(world, state, log, watch)
            while state.round < scenario.rounds:
                budget.check(state.round)
                state, entry = run_round(world, state, ledger)
                entry |= budget.spent()
                log.write(entry)
                watch.round_done(entry, scenario.rounds)
                _look_in(world, folder, state, ledger, log, watch)
        except BaseException:
            # The budget's end, a full disk, Ctrl-C: what has been paid for is kept.
            save_checkpoint(folder, state, ledger.head)
            raise
        finally:
            log.close()
    return _finish(world, folder, state)


def _look_in(
    world: World,
    folder: RunFolder,
    state: ServerState,
    ledger: Ledger,
    log: RunLog,
    watch: Watch,
) -> None:
    """Evaluate and save where the scenario asks for it."""
    scenario, done = world.scenario, state.round == world.scenario.rounds
    every = scenario.evaluation.every
    if every and state.round % every == 0:
        _evaluate(world, state, log, watch)
    if done or state.round % scenario.checkpoint_every == 0:
        save_checkpoint(folder, state, ledger.head)


def _evaluate(world: World, state: ServerState, log: RunLog, watch: Watch) -> None:
    """Measure the model on validation users."""
    if not world.scenario.evaluation.every:
        return
    found = validate(world, dict(state.parameters)).as_dict()
    entry = {"kind": "evaluation", "round": state.round, "split": "validation", **found}
    log.write(entry)
    watch.evaluated(entry)


def _finish(world: World, folder: RunFolder, state: ServerState) -> RunFolder:
    """Evaluate on test users and write the model; both can be repeated after a crash."""
    parameters = dict(state.parameters)
    origin = {
        "kind": "federated",
        "text": world.population.name,
        "tokenizer_digest": world.tokenizer.digest,
        "statements": folder.manifest()["statements"],
    }
    write_json(folder.evaluation_path, final_evaluation(world, parameters))
    save_model(folder.model_path, Model(world.spec, parameters, origin))
    return folder


def _windows(world: World, user: int) -> np.ndarray:
    """Return a device's own text as int64[n, T + 1], as much of it as one round may use."""
    training = world.scenario.training
    limit = None if training.max_tokens is None else training.max_tokens + 1
    return windows(world.population.tokens("train", user), training.window, limit)


class _RoundLog:
    """Collects a round's figures for people; nothing here goes back into training."""

    def __init__(self, number: int, invited: int, bits: int) -> None:
        self.number, self.invited, self.bits, self.reports = number, invited, bits, 0
        self.traffic: Traffic | None = None  # of a round that was opened
        self._traces: list[Trace] = []
        self._clipped = 0
        self._mean_norm: float | None = None
        self._noise_norm: float | None = None

    def add(self, group: Group) -> None:
        self._traces += group.traces
        self._clipped += int(group.clipped.sum())

    def norms(self, mean: np.ndarray, noise_deviation: float) -> None:
        """Note the norm of the noisy mean and the expected norm of the noise in it."""
        self._mean_norm = float(np.linalg.norm(mean))
        self._noise_norm = float(noise_deviation * np.sqrt(len(mean)))

    def entry(self, seconds: float, dim: int) -> dict[str, Any]:
        vector = (self.bits * dim + 7) // 8
        traffic = self.traffic or Traffic(vector, 0, vector)
        tokens, devices = sum(trace.tokens for trace in self._traces), len(self._traces)
        loss = sum(trace.loss * trace.tokens for trace in self._traces)
        norms = sum(trace.update_norm for trace in self._traces)
        return {
            "kind": "round",
            "round": self.number,
            "loss": loss / tokens if tokens else None,
            "seconds": seconds,
            "invited": self.invited,
            "reports": self.reports,
            "tokens": tokens,
            "update_norm": norms / devices if devices else None,
            "clipped_share": self._clipped / devices if devices else None,
            "mean_norm": self._mean_norm,
            "noise_norm": self._noise_norm,
            "payload_dim": dim,
            "download_bytes": 4 * dim + traffic.download_bytes,
            "upload_bytes": traffic.upload_bytes,
        }
