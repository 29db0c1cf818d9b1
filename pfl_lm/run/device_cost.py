"""What a scenario's training asks of a phone, and of which phones it asks too much."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import numpy as np

from pfl_lm.devices.trainable import require_trainable
from pfl_lm.dp.grid import Grid
from pfl_lm.dp.policy import Policy
from pfl_lm.models.models import roles
from pfl_lm.payload.choice import choose
from pfl_lm.phones.fleet import Fleet
from pfl_lm.phones.flops import training_flops
from pfl_lm.phones.memory import SPECIALS, measure_memory, predict_memory, unigram_of
from pfl_lm.recipes import load
from pfl_lm.run.scenario import Scenario

_TOKENS = 400  # of a device where the scenario has no cap


def device_cost(scenario: Scenario, fleet: Fleet, measured: bool = False) -> dict[str, Any]:
    """Return memory, operations, bytes and seconds of one device in one round.

    Needs the scenario's recipes only: no tokenizer, no text.

    Args:
        measured: train one device in a process of its own, instead of predicting its memory.

    Raises:
        ValueError: the payload or the training does not fit the model, or its memory cannot be
            said.
    """
    spec, training = scenario.model, scenario.training
    require_trainable(spec, training)
    payload = choose(scenario.payload, roles(spec), unigram_of(spec), SPECIALS, scenario.seed, 0)
    tokens = training.max_tokens or _TOKENS
    if measured:
        memory = measure_memory(spec, scenario.payload, training, tokens)
    else:
        memory = predict_memory(spec, payload, training)
    flops = training_flops(spec, payload, training, tokens)
    grid = _grid(scenario, payload.dim)
    down, up = 4 * payload.dim, (grid.modulus_bits * grid.dim + 7) // 8
    return {
        **asdict(memory),
        "peak_bytes": memory.peak_bytes,
        "flops": flops,
        "coordinates": payload.dim,
        "download_bytes": down,
        "upload_bytes": up,
        "fits": {
            name: bool(memory.peak_bytes <= phone.training_memory_mb * 1e6)
            for name, phone in fleet.profiles.items()
        },
        "seconds": {
            name: float(
                np.sum([
                    down * 8 / (phone.download_mbps * 1e6),
                    flops / (phone.gflops * 1e9),
                    up * 8 / (phone.upload_mbps * 1e6),
                ])
            )
            for name, phone in fleet.profiles.items()
        },
    }  # fmt: skip


def _grid(scenario: Scenario, dim: int) -> Grid:
    """Return the grid, with its ring, that the deployment's reports travel in."""
    if scenario.policy is None:
        return Grid.choose(
            dim, scenario.clip_norm, reports_max=scenario.cohort, rotated=scenario.rotate
        )
    policy = load(Policy, scenario.policy)
    from pfl_lm.run.deployment import Deployment
    from pfl_lm.run.privacy import RunPrivacy
    from pfl_lm.run.simulated_rule import simulated_rule

    goal = policy.report_goal
    rule = simulated_rule(policy, policy.population, goal)
    deployment, clip_norm = Deployment(policy), scenario.clip_norm
    full = RunPrivacy(deployment, goal, clip_norm, rule, 0, False, rotate=scenario.rotate)
    return full.grid(dim)
