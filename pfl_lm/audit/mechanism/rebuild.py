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
from pfl_lm.run.privacy import RunPrivacy
from pfl_lm.run.scenario import Scenario
from pfl_lm.run.setup import open_run
from pfl_lm.run.simulated_rule import simulated_rule

_REGISTERED = "a name that a program registered is known in that program alone: audit from there"
_CHOSEN = ("scenario", "policy", "tokenizer", "population", "model")  # of a manifest


def rebuild_context(
    artifacts: RunArtifacts,
    recipe: Path | None = None,
    start: Path | None = None,
    external: ExternalAggregator | None = None,
    settings: Mapping[str, Any] | None = None,
) -> RunContext:
    """Open the run context in which a run took place, under the policy that its manifest holds.

    Args:
        recipe: the scenario's file; without it only runs on invented users can be opened, since a
            manifest does not say where on a disk a population lies.
        start: the model that the run started from, where there is no recipe; without it the
            audit starts from random weights, which only the phrases could tell apart.
        external: the runtime that the run's ``aggregator`` names, where that is not ours.
        settings: keys that were set on the command line when the recipe was run.

    Raises:
        ValueError: the recipe is missing, or is not the one that was run; or it names a policy,
            vocabulary, population or start that is not the run's.
    """
    if recipe is None:
        context = _from_manifest(artifacts, start, external)
    else:
        context = open_run(load(Scenario, recipe, settings), external)
    policy, fleet = _policy(artifacts), context.fleet
    asked = 1.0 if fleet is None else fleet.check_in
    rule = simulated_rule(policy, _users(context, artifacts), context.scenario.cohort, asked)
    context = replace(context, privacy=replace(context.privacy, rule=rule))
    privacy = replace(context.privacy, deployment=Deployment(policy))
    if recipe is not None:
        _check_same(recipe, context, privacy, artifacts)
    return replace(context, privacy=privacy)


def _from_manifest(
    artifacts: RunArtifacts, start: Path | None, external: ExternalAggregator | None
) -> RunContext:
    """Open a run on invented users, without its policy."""
    written = artifacts.manifest["scenario"]
    if written["population"]["kind"] != "synthetic":
        raise ValueError(
            "this run used a population that its manifest only names; state the scenario with "
            "--scenario FILE, or audit --part accounting and --part ledger alone"
        )
    scenario = from_plain(Scenario, written, artifacts.where, _REGISTERED)
    plain = replace(scenario, policy=None, start=start, fleet=None, trimmed_groups=None)
    return replace(open_run(plain, external), scenario=scenario, fleet=_fleet(artifacts))


def _policy(artifacts: RunArtifacts) -> Policy | None:
    """Read the policy that the run was made under; its file may have been changed since."""
    if artifacts.policy is None:
        return None
    stated = dict(artifacts.policy)
    stated["epsilon"] = math.inf if stated["epsilon"] is None else stated["epsilon"]
    if stated.get("accepted_server_epsilon") is None and stated["noise"]["at"] == "server":
        stated["accepted_server_epsilon"] = (
            math.inf
        )  # JSON has no ∞; nothing else is accepted there
    return from_plain(Policy, stated, artifacts.where)


def _users(context: RunContext, artifacts: RunArtifacts) -> int:
    """Return how many may be invited: users, or the enrolled devices of a served run."""
    if artifacts.folder.served_rounds_path.is_file():
        return int(artifacts.manifest["population"]["cohort_rule"]["population"])
    return context.population.users("train")


def _check_same(
    recipe: Path, context: RunContext, privacy: RunPrivacy, artifacts: RunArtifacts
) -> None:
    """Refuse a recipe of another run; what a person approved of a policy changes no run.

    Args:
        context: as the recipe and the files that it names give it.
        privacy: of the run's own policy.

    Raises:
        ValueError: naming the first key that differs.
    """
    name = artifacts.manifest["run"]
    now, ran = manifest(context, name), manifest(replace(context, privacy=privacy), name)
    written = {**artifacts.manifest, "policy": ran["policy"]}
    for policy in (now["policy"], written["policy"]):
        (policy or {}).pop("reviewed", None)
    for key in _CHOSEN:
        if where := _difference(now[key], written[key], key):
            where = where.removeprefix("scenario.")
            raise ValueError(
                f"{recipe} is not the scenario of this run: {where} differs; state the scenario "
                "as it was, with the files that it named then"
            )


def _fleet(artifacts: RunArtifacts) -> Fleet | None:
    """Read a run's phones from its manifest, which holds them whole."""
    written = artifacts.manifest.get("fleet")
    if written is None:
        return None
    return from_plain(Fleet, written, artifacts.where, known_keys_only=False)


def _difference(now: Any, written: Any, name: str) -> str:
    """Return the dotted key of the first value that was written otherwise, or "".

    Keys that did not exist when the run was written are passed over.
    """
    if not (isinstance(now, dict) and isinstance(written, dict)):
        return "" if now == written else name
    found = (_difference(now.get(key), value, f"{name}.{key}") for key, value in written.items())
    return next(filter(None, found), "")
