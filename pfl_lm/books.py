"""The books of a run: ledger, budget, metrics, checkpoints. Only the first rank keeps them."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np

from pfl_lm.budget import Budget
from pfl_lm.checkpoints import save_checkpoint
from pfl_lm.devices.report import Trace
from pfl_lm.dp.ledger import Ledger
from pfl_lm.language.models import Parameters
from pfl_lm.model_file import Model, save_model
from pfl_lm.ranks import ALONE, Ranks
from pfl_lm.resume import begin_run, resume_run
from pfl_lm.runs import RunFolder, RunLog, write_json
from pfl_lm.secagg.traffic import Traffic
from pfl_lm.server.state import ServerState
from pfl_lm.world import World, choose_payload, validate


class Watch(Protocol):
    """Whoever wants to follow a run."""

    def say(self, line: str) -> None: ...

    def round_done(self, entry: dict[str, Any], rounds: int) -> None: ...

    def evaluated(self, entry: dict[str, Any]) -> None: ...


class Books:
    """What a run writes down as it goes; on ranks that never open it, nothing."""

    def __init__(self, world: World, folder: RunFolder, watch: Watch) -> None:
        self.folder = folder
        self.ledger: Ledger | None = None
        self._world, self._watch = world, watch
        self._budget: Budget | None = None
        self._log: RunLog | None = None

    def open(self, resume: bool, overwrite: bool) -> ServerState:
        """Begin the run's folder, or take up that of an interrupted run; return where it stands.

        Raises:
            ValueError: see :mod:`pfl_lm.resume`.
        """
        if resume:
            state, self.ledger = resume_run(self._world, self.folder, self._watch)
        else:
            state, self.ledger = begin_run(self._world, self.folder, overwrite)
        dim = choose_payload(self._world, 0).dim
        self._budget = Budget(self._world.protection, self.ledger, dim)
        self._log = RunLog(self.folder, state.round)
        return state

    def check(self, round: int) -> None:
        """Refuse a round that the policy's budget does not cover."""
        assert self._budget is not None
        self._budget.check(round)

    def round_done(self, entry: dict[str, Any]) -> None:
        """Note a round's figures, with what has been spent."""
        assert self._budget is not None
        assert self._log is not None
        entry = entry | self._budget.spent()
        self._log.write(entry)
        self._watch.round_done(entry, self._world.scenario.rounds)

    def evaluation_is_due(self, round: int) -> bool:
        """Whether the scenario asks for one after ``round`` rounds, and none was noted yet."""
        assert self._log is not None
        return self._log.owes_evaluation(self._world.scenario.evaluation.every, round)

    def evaluated(self, entry: dict[str, Any]) -> None:
        """Note an evaluation."""
        assert self._log is not None
        self._log.write(entry)
        self._watch.evaluated(entry)

    def save_where_due(self, state: ServerState) -> None:
        """Save a checkpoint where the scenario asks for one, and at the end."""
        scenario = self._world.scenario
        if state.round % scenario.checkpoint_every == 0 or state.round == scenario.rounds:
            self.save(state)

    def save(self, state: ServerState) -> None:
        """Save a checkpoint."""
        if self.ledger is not None:
            save_checkpoint(self.folder, state, self.ledger.head)

    def close(self) -> None:
        """Let go of ledger and log."""
        if self._log is not None:
            self._log.close()
        if self.ledger is not None:
            self.ledger.close()


class RoundFigures:
    """Collects a round's figures for people; nothing here goes back into training."""

    def __init__(
        self, number: int, invited: int, bits: int, more: dict[str, Any] | None = None
    ) -> None:
        self.number, self.invited, self.bits, self.reports = number, invited, bits, 0
        self.more = more or {}  # what else is known of the round
        self.traffic: Traffic | None = None  # of a round that was opened
        self._traces: list[Trace] = []
        self._clipped = 0
        self._mean_norm: float | None = None
        self._noise_norm: float | None = None

    def add(self, traces: list[Trace], clipped: np.ndarray) -> None:
        """Note what a simulation sees of K devices; ``clipped`` is bool[K]."""
        self._traces += traces
        self._clipped += int(clipped.sum())

    def merge(self, ranks: Ranks) -> None:
        """Bring the figures of all ranks together on the first one."""
        parts = ranks.hand_in((self.reports, self._clipped, self._traces))
        self.reports = sum(reports for reports, _, _ in parts)
        self._clipped = sum(clipped for _, clipped, _ in parts)
        # A sum of floats depends on its order; that of users depends on nothing.
        traces = (trace for _, _, part in parts for trace in part)
        self._traces = sorted(traces, key=lambda trace: trace.user)

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
            **self.more,
        }


def validation(world: World, state: ServerState, ranks: Ranks = ALONE) -> dict[str, Any]:
    """Measure the model on validation users: a line of the metrics."""
    found = validate(world, dict(state.parameters), ranks, state.round).as_dict()
    return {"kind": "evaluation", "round": state.round, "split": "validation", **found}


def write_results(
    world: World, folder: RunFolder, parameters: Parameters, found: dict[str, Any]
) -> None:
    """Write a run's final evaluation and its model; both can be repeated after a crash."""
    origin = {
        "kind": "federated",
        "text": world.population.name,
        "tokenizer_digest": world.tokenizer.digest,
        "statements": folder.manifest()["statements"],
    }
    write_json(folder.evaluation_path, found)
    save_model(folder.model_path, Model(world.spec, parameters, origin))
