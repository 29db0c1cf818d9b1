"""Open a run's run context again from what it wrote down, to put its own code to the test."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from pfl_lm.audit.artifacts import RunArtifacts
from pfl_lm.dp.policy import Policy
from pfl_lm.phones.fleet import Fleet
from pfl_lm.recipes import from_plain, load
from pfl_lm.run.aggregation import ExternalAggregator
from pfl_lm.run.context import RunContext
from pfl_lm.run.deployment import Deployment
from pfl_lm.run.manifest import manifest
from pfl_lm.run.scenario import Scenario
from pfl_lm.run.setup import open_run
from pfl_lm.run.simulated_rule import simulated_rule


def rebuild_context(
    artifacts: RunArtifacts,
    recipe: Path | None = None,
    start: Path | None = None,
    external: ExternalAggregator | None = None,
    settings: Mapping[str, Any] | None = None,
) -> RunContext:
    """Open the run context in which a run took place.

    Args:
        recipe: the scenario's file; without it only runs on invented users can be opened, since a
            manifest does not say where on a disk a population lies.
        start: the model that the run started from, where there is no recipe; without it the
            audit starts from random weights, which only the phrases could tell apart.
        external: the runtime that the run's ``aggregator`` names, where that is not ours.
        settings: keys that were set on the command line when the recipe was run.

    Raises:
        ValueError: the recipe is missing, or is not the one that was run.
    """
    written = artifacts.manifest["scenario"]
    if recipe is not None:
        context = open_run(load(Scenario, recipe, settings), external)
        now = manifest(context, artifacts.manifest["run"])["scenario"]
        if where := _difference(now, written):
            raise ValueError(f"{recipe} is not the scenario of this run: {where} differs")
        return context
    if written["population"]["kind"] != "synthetic":
        raise ValueError(
            "this run used a population that its manifest only names; state the scenario with "
            "--scenario FILE, or audit --part accounting and --part ledger alone"
        )
    scenario = from_plain(Scenario, written, artifacts.where)
    plain = replace(scenario, policy=None, start=start, fleet=None, trimmed_groups=None)
    context = open_run(plain, external)
    context = replace(context, fleet=_fleet(artifacts))
    asked = 1.0 if context.fleet is None else context.fleet.check_in
    users = context.population.users("train")
    if artifacts.policy is None:
        rule = simulated_rule(None, users, scenario.cohort, asked)
        return replace(context, privacy=replace(context.privacy, rule=rule))
    stated = dict(artifacts.policy)
    stated["epsilon"] = math.inf if stated["epsilon"] is None else stated["epsilon"]
    if stated.get("accepted_server_epsilon") is None and stated["noise"]["at"] == "server":
        stated["accepted_server_epsilon"] = (
            math.inf
        )  # JSON has no ∞; nothing else is accepted there
    policy = from_plain(Policy, stated, artifacts.where)
    rule = simulated_rule(policy, users, scenario.cohort, asked)
    privacy = replace(context.privacy, deployment=Deployment(policy), rule=rule)
    return replace(context, scenario=scenario, privacy=privacy)


def _fleet(artifacts: RunArtifacts) -> Fleet | None:
    """Read a run's phones from its manifest, which holds them whole."""
    written = artifacts.manifest.get("fleet")
    if written is None:
        return None
    return from_plain(Fleet, written, artifacts.where, known_keys_only=False)


def _difference(now: dict[str, Any], written: dict[str, Any], within: str = "") -> str:
    """Return the dotted key of the first value that was written otherwise, or "".

    Keys that did not exist when the run was written are passed over.
    """
    for name, value in written.items():
        current = now.get(name)
        if isinstance(value, dict) and isinstance(current, dict):
            if where := _difference(current, value, f"{within}{name}."):
                return where
        elif current != value:
            return f"{within}{name}"
    return ""
