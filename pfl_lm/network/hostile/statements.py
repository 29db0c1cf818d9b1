"""What a hostile server states in its task configuration, its invitation and its model."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from typing import Any

from pfl_lm.dp.policy import Policy
from pfl_lm.network.model_delta import ModelCache
from pfl_lm.network.task_config import TaskConfig, served
from pfl_lm.network.transport import CHUNK_BYTES
from pfl_lm.payload.plan import PayloadPlan
from pfl_lm.run.context import RunContext, choose_payload
from pfl_lm.run.scenario import Scenario
from pfl_lm.run.setup import open_run

_EXCESS_BYTES = 64 << 20  # more than the buffers between a server and a device that stops reading


class NotPossible(Exception):
    """Rounds of this kind have no such lie; the text says why."""


def task_changes(
    name: str, task: TaskConfig, policy: Policy | None
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return what a case changes in the task configuration and in the scenario inside it."""
    told = task.scenario
    dropout = policy.noise.tolerated_dropout if policy else 0.0
    population = policy.population if policy else told["cohort"]
    rounds = policy.rounds if policy else told["rounds"]
    size = told["model"]["vocabulary_size"] + 1
    outside: dict[str, dict[str, Any]] = {
        "enrolled": {"enrolled": told["cohort"]},
        "enrolled_less": {"enrolled": population - 1},
        "trial": {"trial": True},
        "policy": {"policy": "0" * 64},
        "vocabulary": {"tokenizer": "0" * 64},
        "run": {"run": ""},
    }
    inside: dict[str, dict[str, Any]] = {
        "rounds": {"rounds": rounds + 1},
        "semi_honest": {"adversary": "semi-honest"},
        "no_adversary": {"adversary": None},
        "corrupt": {"corrupt": 0.0},
        "smaller_cohort": {"cohort": told["cohort"] - 1},
        "larger_cohort": {"cohort": told["cohort"] + 1},
        "seeded_noise": {"reproducible": True},
        "no_aggregation": {"secure_aggregation": "ideal"},
        "dropout": {"dropout": min(0.99, dropout + 0.1)},
        "small_payload": {"payload": asdict(PayloadPlan(rows="none", dense="biases"))},
        "vocabulary_size": {"model": {**told["model"], "vocabulary_size": size}},
        "clip_nan": {"clip_norm": math.nan},
        "clip_negative": {"clip_norm": -1.0},
        "rounds_zero": {"rounds": 0},
        "unknown_field": {"fleet": "fleet.toml"},
    }
    return outside.get(name, {}), inside.get(name, {})


def lying_task(
    name: str, scenario: Scenario, honest: RunContext, task: TaskConfig
) -> tuple[RunContext, TaskConfig]:
    """Return what the server states, and the run that it then plays.

    The rest of the round fits the lie wherever such a round can be: a device that believes the
    lie must not stumble over something else.

    Raises:
        NotPossible: the lie is none in this run.
    """
    policy = honest.privacy.policy
    outside, inside = task_changes(name, task, policy)
    told = replace(task, scenario={**task.scenario, **inside}, **outside)
    if told == task:
        raise NotPossible("the run states this already")
    context = honest
    try:
        if name == "small_payload":
            plan = PayloadPlan(rows="none", dense="biases")
            context = open_run(replace(scenario, payload=plan), enrolled=told.enrolled)
            dim = choose_payload(context, 0).dim
            if policy is not None and dim >= policy.noise.min_dim:
                raise NotPossible(f"{dim} biases are as many as the policy covers")
        elif inside and name != "vocabulary_size":
            context = open_run(replace(scenario, **inside), enrolled=told.enrolled)
        context = served(context, told.enrolled, trial=True)
    except (ValueError, TypeError):  # no round can be like that: the statement stands alone
        context = honest
    return context, told


Change = Callable[[dict[str, Any]], dict[str, Any]]


def invitation_changes(name: str) -> Change:
    """Return the function that changes the fields of an invitation; an empty result: no lie."""

    def digest(field: str) -> Change:
        return lambda told: {field: bytes(32)}

    def less(field: str, least: int) -> Change:
        return lambda told: {field: told[field] - 1} if told[field] > least else {}

    changes: dict[str, Change] = {
        "place": lambda told: {"place": (told["place"] + 1) % told["cohort"]},
        "model": digest("model"),
        "payload": digest("payload"),
        "cohort": lambda told: {"cohort": told["cohort"] + 1},
        "min_reports": less("min_reports", 1),
        "neighbours": less("neighbours", 1),
        "threshold": less("threshold", 1),
        "corrupt": lambda told: {"corrupt": told["corrupt"] + 1},
        "window_survivors": less("window_survivors", 0),
        "noise_levels": lambda told: {"noise_levels": told["noise_levels"] ^ 1},
        "noise_step": lambda told: {"noise_step": told["noise_step"] + 1},
        "dim": lambda told: {"dim": told["dim"] + 1},
        "bits": less("bits", 8),
        "adversary": lambda told: {"adversary": 1 - told["adversary"]},
        "clip_norm": lambda told: {"clip_norm": 1000.0 * (told["clip_norm"] or 1.0)},
    }
    return changes[name]


class LyingModels(ModelCache):
    """The model of the round, or what a case sends in its place.

    Args:
        name: of the case; "" for the model as it is.
        begins: called when a download begins.
        swallowed: called when a device has read far more than a model.
    """

    def __init__(
        self,
        context: RunContext,
        name: str,
        begins: Callable[[], None],
        swallowed: Callable[[], None],
    ) -> None:
        super().__init__(context)
        self._name, self._begins, self._swallowed = name, begins, swallowed

    def open(self, have: int) -> Iterator[bytes]:
        """Return the pieces of the model, or of the lie."""
        pieces = super().open(have)
        if self._name == "other_values":
            return self._other_values(pieces)
        if self._name == "too_short":
            return self._too_short(pieces)
        if self._name == "endless":
            return self._endless(pieces)
        return pieces

    def _other_values(self, pieces: Iterator[bytes]) -> Iterator[bytes]:
        self._begins()
        for number, piece in enumerate(pieces):
            yield piece if number else piece[:2] + bytes([piece[2] ^ 1]) + piece[3:]

    def _too_short(self, pieces: Iterator[bytes]) -> Iterator[bytes]:
        self._begins()
        whole = list(pieces)
        yield from (*whole[:-1], whole[-1][:-4])

    def _endless(self, pieces: Iterator[bytes]) -> Iterator[bytes]:
        self._begins()
        yield from pieces
        for _ in range(_EXCESS_BYTES // CHUNK_BYTES):
            yield bytes(CHUNK_BYTES)
        self._swallowed()
