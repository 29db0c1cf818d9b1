"""What a run recorded, held against what its public choices give and against its own files.

The payloads are drawn again from the scenario's seed; the model is held against the checkpoints,
and measured again.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import numpy as np
import torch

from pfl_lm.audit.artifacts import RunArtifacts
from pfl_lm.audit.chain import read_chain
from pfl_lm.audit.findings import Finding
from pfl_lm.audit.mechanism.cohorts import separation
from pfl_lm.audit.mechanism.measured_again import measured_again
from pfl_lm.audit.mechanism.seeded import seeded
from pfl_lm.audit.mechanism.stated_again import stated_again
from pfl_lm.models.file import load_model
from pfl_lm.payload.choice import choose
from pfl_lm.payload.layout import Payload
from pfl_lm.run.checkpoints import newest_checkpoint, read_checkpoint
from pfl_lm.run.context import RunContext
from pfl_lm.streams import stream


def record_findings(context: RunContext, artifacts: RunArtifacts) -> list[Finding]:
    """Hold the records of a run against its scenario, and its files against each other."""
    entries = read_chain(artifacts.folder.ledger_path).entries
    rounds = [entry for entry in entries if entry.get("kind") == "round"]
    return [
        payloads(context, rounds),
        *separation(context, [entry["round"] for entry in rounds], artifacts.claims_its_model),
        *seeded(context, artifacts),
        *_still_model(artifacts, {entry["round"]: entry for entry in rounds}),
        *_last_model(artifacts),
        stated_again(context, artifacts),
        measured_again(context, artifacts),
    ]


def payloads(context: RunContext, rounds: list[dict[str, Any]]) -> Finding:
    """Draw every round's payload again: what travelled must follow from public choices alone."""
    name = "payload is the public draw"
    for entry in rounds:
        number, recorded = entry["round"], entry["payload"]
        payload = _public_payload(context, number)
        rows = public_rows(context, number)
        drawn_otherwise = rows is not None and (
            payload.rows is None or not np.array_equal(rows, payload.rows)
        )
        if drawn_otherwise or (payload.dim, payload.digest) != (
            recorded["dim"],
            recorded["digest"],
        ):
            text = (
                f"What travelled in round {number} does not follow from the scenario's seed and "
                "plan: it may have been chosen by what users typed, which no noise hides."
            )
            return Finding(name, False, text)
    text = f"What travelled in {len(rounds)} rounds follows from the scenario's seed and plan."
    return Finding(name, True, text)


def _public_payload(context: RunContext, number: int) -> Payload:
    """Choose a round's payload without the run's own call for it."""
    scenario, tokenizer = context.scenario, context.tokenizer
    public = (context.roles, tokenizer.unigram, tokenizer.specials, scenario.seed)
    return choose(scenario.payload, *public, number)


def public_rows(context: RunContext, number: int) -> np.ndarray | None:
    """Draw the words whose rows travel in a round by the auditor's own code: sorted int64[k].

    A word of weight w arrives at an Exp(w) time, and the earliest travel, beside the words that
    always do. None where the plan draws none.
    """
    plan, tokenizer, seed = context.scenario.payload, context.tokenizer, context.scenario.seed
    if not isinstance(plan.rows, int):
        return None
    always = sorted(set(tokenizer.specials))
    others = np.array([word for word in range(len(tokenizer.unigram)) if word not in set(always)])
    weights = tokenizer.unigram[others] ** (plan.temper if plan.draw == "unigram" else 0.0)
    arrival = stream(seed, "rows", number).exponential(size=len(others)) / weights
    earliest = others[np.argsort(arrival)[: plan.rows - len(always)]]
    return np.sort(np.concatenate([np.array(always, np.int64), earliest]))


def _still_model(artifacts: RunArtifacts, rounds: dict[int, dict[str, Any]]) -> list[Finding]:
    """Check that between checkpoints without a released round the model stood still."""
    name, findings = "abandoned rounds moved nothing", []
    kept = list(artifacts.folder.checkpoints().items())
    for (first, before), (last, after) in pairwise(kept):
        released = [n for n in range(first, last) if rounds.get(n, {}).get("released") is not None]
        if released:
            continue
        try:
            states = [read_checkpoint(path)[0].parameters for path in (before, after)]
        except ValueError as error:  # damaged on the disk
            findings.append(Finding(name, None, f"It could not be told: {error}."))
            continue
        same = _equal(*states)
        text = f"Rounds {first} to {last - 1} released nothing, by the ledger; the model "
        text += "stood still." if same else "MOVED between their checkpoints."
        findings.append(Finding(name, same, text))
    return findings


def _last_model(artifacts: RunArtifacts) -> list[Finding]:
    """Check that the model is the one of the last checkpoint."""
    name, folder = "model of the last checkpoint", artifacts.folder
    planned = artifacts.manifest["scenario"]["rounds"]
    if not folder.model_path.is_file() or planned not in folder.checkpoints():
        text = "Model or last checkpoint is not here; they could not be compared."
        return [Finding(name, None, text)]
    model, (state, _) = load_model(folder.model_path), newest_checkpoint(folder)
    if model.origin.get("statements") != artifacts.statements:
        text = "model.pt carries other statements than the run's manifest."
        return [Finding(name, False, text)]
    if state.round != planned or not _equal(model.parameters, state.averaged()):
        return [Finding(name, False, "model.pt is not what the last checkpoint gives: replaced.")]
    return [Finding(name, True, f"model.pt is what the checkpoint after {planned} rounds gives.")]


def _equal(one: Mapping[str, torch.Tensor], other: Mapping[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(
        torch.equal(value, other[name]) for name, value in one.items()
    )
