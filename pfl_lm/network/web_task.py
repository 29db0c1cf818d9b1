"""What a browser's device holds of a run: all that follows from its own vocabulary and policy.

The app is built for one run. It holds the task configuration that it expects, word for word, and
the numbers that a device computes from it: the round, the grid, its share of the noise, what ε its
participations cost. So a page needs no accountant, and leaves a server that states anything else.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import numpy as np

from pfl_lm.dp.cohort import cohort
from pfl_lm.dp.policy import Policy
from pfl_lm.network import requirements
from pfl_lm.network.participation_rules import cost
from pfl_lm.network.task_config import TaskConfig, policy_digest, round_config, stated
from pfl_lm.run.context import RunContext, choose_payload
from pfl_lm.secagg.config import RoundConfig
from pfl_lm.server.state import Broadcast

VERSION = 1
_MOST_COSTS = 1000  # participations whose ε a page carries


def web_task(context: RunContext, trial: bool) -> dict[str, Any]:
    """Describe a served run for ``web_device/participant.mjs``, as JSON.

    Args:
        context: the run as ``served`` returns it.

    Raises:
        ValueError: the run asks of devices what the one in JavaScript does not know, by name.
    """
    if reasons := [*unsupported(context)]:
        raise ValueError(
            f"a browser cannot take part in this run: {'; '.join(reasons)}; serve it without --web"
        )
    scenario, privacy = context.scenario, context.privacy
    payload = choose_payload(context, 0)
    if not trial:
        assert privacy.policy is not None
        requirements.check_rule(privacy.policy, privacy.rule)
        requirements.check_payload(privacy.policy, payload)
    invited = len(cohort(privacy.rule, scenario.seed, 0))
    first = Broadcast(0, payload, np.empty(0, np.float32))
    config = round_config(context, first, invited, bytes(32))
    grid = privacy.grid(payload.dim)
    share, plan = privacy.device_share(grid, invited), privacy.noise_plan(grid, invited)
    return {
        "version": VERSION,
        "task_config": TaskConfig.of(context, "", trial).text(),
        "trial": trial,
        "rounds": scenario.rounds,
        "seed": str(scenario.seed),
        "parameters": [{"name": n, "shape": [*role.shape]} for n, role in context.roles.items()],
        "travels": [{"name": s.name, "rows": s.rows is not None} for s in payload.segments],
        "rows": _rows(context),
        "outside": payload.outside,
        "round": _round(config),
        "grid": {"clip_norm": grid.clip_norm, "grid_steps": grid.grid_steps},
        "noise": {
            "share": None if share is None else share.variance,
            "removable": None if plan is None else plan.variance,
        },
        "rotate": privacy.rotate,
        "reproducible": privacy.reproducible,
        "cohort": _cohort_rule(context),
        "device": _device_rules(context, config, trial),
        "policy": None if privacy.policy is None else _policy(privacy.policy),
        "training": asdict(scenario.training),
        "upload_bytes": -(-config.dim * config.bits // 8),
        "noise_multiplier": _noise_multiplier(context, trial),
        "statement": "" if privacy.guarantee is None else privacy.guarantee.statement,
    }


def unsupported(context: RunContext) -> Iterator[str]:
    """Yield each thing that a run asks of devices and the one in JavaScript does not know."""
    scenario, privacy = context.scenario, context.privacy
    payload, training = scenario.payload, scenario.training
    if payload.layers is not None:
        yield f"payload.layers = {payload.layers} take turns in an order that numpy draws"
    if training.method != "backpropagation":
        yield f'training.method = "{training.method}" has no train_step'
    if training.loss != "softmax":
        yield f'training.loss = "{training.loss}" draws candidates by numpy; state "softmax"'
    if training.weight_bits is not None or training.precision != "float32":
        yield "training.weight_bits and training.precision: a page trains in float32"
    if training.activations == "truncated":
        yield 'training.activations = "truncated": the graph follows the whole gradient'
    if privacy.clipping is not None:
        yield "the policy's clipping: a page does not follow a clip norm that moves"
    if privacy.mechanism.place == "device" and privacy.mechanism.name != "skellam":
        yield f'noise.kind = "{privacy.mechanism.name}": a page draws Skellam noise alone'
    rule = privacy.rule
    if rule.kind != "rotation" and rule.size_or_rate not in (1.0, rule.population):
        yield f'cohorts of kind "{rule.kind}": a page knows rotation, or that everybody is invited'


def _round(config: RoundConfig) -> dict[str, Any]:
    """Return the RoundConfig in the names of ``web_device/config.mjs``, less round and model."""
    fields = {**stated(config), "adversary": config.adversary.value}
    del fields["model"]
    return {**fields, "payload": config.payload.hex()}


def _rows(context: RunContext) -> dict[str, Any] | None:
    """Return how the words whose rows travel are drawn; None where all rows travel, or none."""
    plan, words = context.scenario.payload, context.tokenizer
    if isinstance(plan.rows, str):
        return None
    weights = (words.unigram**plan.temper).astype("<f8") if plan.draw == "unigram" else None
    return {
        "count": plan.rows,
        "always": sorted({*words.specials}),
        "words": len(words.unigram),
        "weights": None if weights is None else base64.b64encode(weights.tobytes()).decode(),
    }


def _noise_multiplier(context: RunContext, trial: bool) -> float:
    """Return what a page shows: the noise that is accounted for; in a trial that of the sum."""
    guarantee = context.privacy.guarantee
    return context.privacy.sum_multiplier if trial or not guarantee else guarantee.noise_multiplier


def _cohort_rule(context: RunContext) -> dict[str, Any]:
    rule = context.privacy.rule
    everybody = rule.kind != "rotation"
    return {
        "population": rule.population,
        "size": rule.population if everybody else int(rule.size_or_rate),
        "min_separation": rule.min_separation,
    }


def _device_rules(context: RunContext, config: RoundConfig, trial: bool) -> dict[str, Any]:
    """Return what the device insists on: its policy's numbers; in a trial what it computed."""
    if trial or context.privacy.policy is None:
        least, neighbours = config.min_reports, config.graph.neighbours
        rules = (least, max(3, least), neighbours, config.adversary)
    else:
        own = requirements.device_policy(context.privacy.policy, bytes(32))
        rules = (own.least_reports, own.least_cohort, own.least_neighbours, own.adversary)
    names = ("least_reports", "least_cohort", "least_neighbours", "adversary")
    return {**dict(zip(names, rules, strict=True)), "adversary": rules[3].value}


def _policy(policy: Policy) -> dict[str, Any]:
    """Return what the participation record is held against."""
    most = min(policy.participations, _MOST_COSTS) + 1  # the last is beyond the policy's
    private = policy.noise.at == "device"
    return {
        "digest": policy_digest(policy),
        "unit": policy.unit,
        "epsilon": policy.epsilon,
        "delta": policy.delta,
        "rounds": policy.rounds,
        "min_separation": policy.participation.min_separation or 1,
        "participations": policy.participations,
        "trust_days": policy.devices.trust_days,
        "costs": [cost(policy, count + 1) for count in range(most)] if private else [],
    }
