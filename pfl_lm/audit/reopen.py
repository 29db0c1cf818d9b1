"""Open a run's world again from what it wrote down, to put its own code to the test."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

from pfl_lm.audit.evidence import Evidence
from pfl_lm.dp.policy import Policy
from pfl_lm.manifest import manifest
from pfl_lm.participation import simulated_rule
from pfl_lm.protection import Protection
from pfl_lm.recipes import load
from pfl_lm.scenario import Scenario
from pfl_lm.world import World, open_world


def reopen(evidence: Evidence, recipe: Path | None = None, start: Path | None = None) -> World:
    """Open the world in which a run took place.

    Args:
        recipe: the scenario's file; without it only runs on invented users can be opened, since a
            manifest does not say where on a disk a population lies.
        start: the model that the run started from, where there is no recipe; without it the
            audit starts from random weights, which only the phrases could tell apart.

    Raises:
        ValueError: the recipe is missing, or is not the one that was run.
    """
    written = evidence.manifest["scenario"]
    if recipe is not None:
        world = open_world(load(Scenario, recipe))
        now = manifest(world, evidence.manifest["run"])["scenario"]
        if where := _difference(now, written):
            raise ValueError(f"{recipe} is not the scenario of this run: {where} differs")
        return world
    if written["population"]["kind"] != "synthetic":
        raise ValueError(
            "this run used a population that its manifest only names; state the scenario with "
            "--scenario FILE, or audit --part accounting and --part ledger alone"
        )
    scenario = _built(Scenario, written)
    world = open_world(replace(scenario, policy=None, start=start))
    if evidence.policy is None:
        return world
    stated = dict(evidence.policy)
    stated["epsilon"] = math.inf if stated["epsilon"] is None else stated["epsilon"]
    policy = _built(Policy, stated)
    rule = simulated_rule(
        policy,
        world.population.users("train"),
        scenario.cohort,
        1.0 if world.fleet is None else world.fleet.check_in,
    )
    protection: Protection = replace(world.protection, policy=policy, rule=rule)
    return replace(world, scenario=scenario, protection=protection)


def _difference(now: dict[str, Any], written: dict[str, Any], within: str = "") -> str:
    """Return the dotted key of the first value that was written otherwise, or "".

    Keys that did not exist when the run was written are passed over.
    """
    for name, value in written.items():
        found = now.get(name)
        if isinstance(value, dict) and isinstance(found, dict):
            if where := _difference(found, value, f"{within}{name}."):
                return where
        elif found != value:
            return f"{within}{name}"
    return ""


def _built(kind: type[Any], content: dict[str, Any]) -> Any:
    from pydantic import TypeAdapter, ValidationError

    try:
        return TypeAdapter(kind).validate_python(content)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ValueError(f"manifest.json is damaged: {where}: {first['msg']}") from error
