"""What a run says of itself: what was asked, what follows, what is guaranteed and what is not."""

from __future__ import annotations

import math
import platform
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

from pfl_lm import __version__, native
from pfl_lm.attendance import demand, fits
from pfl_lm.language.models import size
from pfl_lm.payload import Payload, describe
from pfl_lm.world import World, choose_payload


def manifest(world: World, name: str) -> dict[str, Any]:
    """Describe a run: what was asked, what follows, what is simulated and what is guaranteed."""
    scenario, protection = world.scenario, world.protection
    total = size(world.spec)
    payload = choose_payload(world, 0)
    return {
        "format": 1,
        "run": name,
        "scenario": _plain(asdict(scenario)),
        "policy": None if protection.policy is None else _plain(asdict(protection.policy)),
        "guarantee": None if protection.guarantee is None else _plain(asdict(protection.guarantee)),
        "statements": statements(world),
        "noise": {
            "drawn": protection.drawn,
            "source": _source(world),
            "simulated_sum_multiplier": protection.sum_multiplier,
        },
        "secure_aggregation": world.aggregation.describe(protection.grid(payload.dim)),
        "fleet": None if world.fleet is None else _fleet(world, payload),
        "tokenizer": {
            "digest": world.tokenizer.digest,
            "vocabulary_size": world.tokenizer.vocabulary_size,
        },
        "vocabulary": {
            "kind": world.tokenizer.manifest.get("source", {}).get("kind", "unknown"),
            "provenance": world.tokenizer.manifest.get("provenance", "not stated"),
        },
        "population": {
            "name": world.population.name,
            "users": {s: world.population.users(s) for s in ("train", "validation", "test")},
            "cohort_rule": _plain(asdict(protection.rule)),
        },
        "model": {"parameters": total, "start": world.start.origin},
        "payload": {"total": total, **_plain(asdict(describe(payload, total)))},
        "versions": {
            "pfl_lm": __version__,
            "python": platform.python_version(),
            **{name: version(name) for name in ("torch", "numpy", "opacus", "sentencepiece")},
            "loops": native.loops(),
        },
    }


def _fleet(world: World, payload: Payload) -> dict[str, Any]:
    """Describe the phones, what a round asks of them, and which of them it leaves out."""
    grid = world.protection.grid(payload.dim)
    return {
        **_plain(asdict(world.fleet)),  # type: ignore[arg-type]
        "demand": _plain(asdict(demand(world, payload, grid))),
        "left_out": [name for name, able in fits(world, payload, grid).items() if not able],
    }


def statements(world: World) -> dict[str, str]:
    """Say what this very model guarantees, and what its training only simulates."""
    protection = world.protection
    if protection.policy is None:
        return {
            "guaranteed": "Nothing: this run has no privacy policy (ε = ∞).",
            "simulated": "Federated training without differential privacy.",
        }
    found = protection.guarantee
    assert found is not None
    if not protection.simulated:
        return {"guaranteed": found.statement, "simulated": "Only the transport of reports."}
    policy = protection.policy
    reasons = [
        f"{protection.cohort:,} reports a round stand for {policy.report_goal:,}"
        * (protection.cohort < policy.report_goal),
        f"{protection.rule.population:,} users stand for {policy.population:,}"
        * (protection.rule.population < policy.population),
        "noise comes from a seeded stream" * protection.reproducible,
        "cohorts follow from the scenario's seed, which is no secret" * protection.coins_are_known,
        "tensorflow-federated draws the noise, in floating point" * protection.foreign_noise,
    ]
    return {
        "guaranteed": "Nothing for this very model: " + "; ".join(filter(None, reasons)) + ".",
        "simulated": "A deployment under the policy, of which this holds: " + found.statement,
    }


def _source(world: World) -> str:
    """Say where rounding and noise come from."""
    if world.scenario.reproducible:
        return "reproducible stream"
    return "tensorflow" if world.protection.foreign_noise else "csprng"


def _plain(value: Any) -> Any:
    """Turn what dataclasses hold into what JSON holds; infinity becomes None."""
    if isinstance(value, dict):
        return {name: _plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, Path):
        return value.name
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
