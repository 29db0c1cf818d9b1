"""Do ledger and manifest hold what a run writes, and nothing else? And what the scenario implies?

A list of users under a new name would be a release that no ε covers, in a ledger like anywhere.
What takes the run's own code to recompute is recomputed by the mechanism part.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import fields
from typing import Any

from pfl_lm.audit.accounting.policy_file import TABLES, TOP_KEYS
from pfl_lm.audit.accounting.stated import StatedGuarantee
from pfl_lm.audit.accounting.this_model import shortfalls
from pfl_lm.audit.artifacts import RunArtifacts
from pfl_lm.audit.chain import Chain
from pfl_lm.audit.findings import Finding
from pfl_lm.audit.ledger.replay import TOLERANCE, Entry
from pfl_lm.audit.ledger.schema import (
    ANY,
    NUMBER,
    OPEN,
    SENTENCES,
    TEXT,
    VALUE,
    not_ours,
    numbers,
    unknown,
)
from pfl_lm.phones.fleet import Fleet
from pfl_lm.recipes import from_plain
from pfl_lm.run.scenario import Scenario

KNOWN, _FOLLOWS = "records of known names alone", "records follow from the scenario"
_WRAP = 2.0**-40  # chance that a ring wraps, as the manifest states it
_STATEMENTS = {"guaranteed": SENTENCES, "simulated": SENTENCES}
_SERVED = {"trial": VALUE}

_ENTRIES: dict[str, dict[str, Any]] = {
    "genesis": {
        **dict.fromkeys(("policy_digest", "manifest_digest", "nonce"), TEXT),
        **dict.fromkeys(("population", "population_head"), TEXT),
        "run": SENTENCES,
        "statements": _STATEMENTS,
        "served": _SERVED,
    },
    "round": {
        **numbers("round simulated reports divisor sum_multiplier clip_norm trimmed"),
        **dict.fromkeys(("aggregator", "noise_state", "noise_taken_up"), TEXT),
        "released": VALUE,
        "failure": SENTENCES,
        "event": {
            **dict.fromkeys(("mechanism", "neighboring", "sampling"), TEXT),
            **numbers("noise_multiplier rate min_separation max_participations dim grid_steps"),
            **numbers("reports pivotal_probability round"),
            "stream": ANY,
        },
        "noise": numbers("planned achieved"),
        "grid": numbers("scale norm_bound bits rotated"),
        "payload": {"dim": NUMBER, "digest": TEXT},
        "clipping": {"share": NUMBER, "next": numbers("norm rate side")},
        "groups": [{"reports": NUMBER, "asked": NUMBER, "failure": SENTENCES}],
    },
    "abandoned": numbers("round reports"),
    "recovery": {"dropped": SENTENCES},
    "end": {"rounds": NUMBER, "model": TEXT, "result": TEXT, "code": TEXT},
}
_GRAPH = {
    **dict.fromkeys(
        ("cohort", "neighbours", "threshold", "corrupt", "window_survivors", "complete"), NUMBER
    ),
    "failure_bits": numbers("connected secret correct"),
    "statement": SENTENCES,
}
_POLICY = {
    **dict.fromkeys(TOP_KEYS, VALUE),
    "public_labels": ANY,  # of a policy that a person wrote
    **{name: dict.fromkeys(keys, VALUE) for name, keys in TABLES.items()},
}
_GUARANTEE = {
    **numbers("noise_multiplier share_multiplier least_reports most_reports honest_reports"),
    **numbers("participations epsilon epsilon_unamplified epsilon_server delta rho"),
    **numbers("sensitivity indicator_weight"),
    "accountant": SENTENCES,
    "assumptions": [SENTENCES],
    "statement": SENTENCES,
    "stream": ANY,  # its numbers are those of the noise: see the accounting
}
_FLEET = {
    **dict.fromkeys((field.name for field in fields(Fleet)), VALUE),
    **dict.fromkeys(("source", "description"), SENTENCES),
    **dict.fromkeys(("profiles", "time_zones"), OPEN),
    "demand": numbers("memory_bytes flops download_bytes upload_bytes"),
    "left_out": [TEXT],
}
_MANIFEST: dict[str, Any] = {
    "format": NUMBER,
    "run": SENTENCES,
    "scenario": ANY,  # read as one, below
    "policy": _POLICY,
    "guarantee": _GUARANTEE,
    "statements": _STATEMENTS,
    "served": _SERVED,
    "noise": {"drawn": TEXT, "source": TEXT, "simulated_sum_multiplier": NUMBER},
    "secure_aggregation": {
        **dict.fromkeys(("ran", "adversary"), TEXT),
        "corrupt": NUMBER,
        "dropout": numbers("simulated planned"),
        "ring": numbers("bits rotated wrap_probability"),
        "simulated": _GRAPH,
        "deployed": _GRAPH,
    },
    "fleet": _FLEET,
    "tokenizer": {"digest": TEXT, "vocabulary_size": NUMBER},
    "vocabulary": {
        "kind": TEXT,
        "provenance": SENTENCES,
        "asked": [{"population": SENTENCES, "unit": TEXT, **numbers("epsilon delta")}],
    },
    "population": {
        "name": SENTENCES,
        "users": numbers("train validation test"),
        "digest": VALUE,
        "public_text": VALUE,
        "cohort_rule": {"kind": TEXT, **numbers("population size_or_rate min_separation")},
    },
    "model": {"parameters": NUMBER, "start": OPEN, "start_digest": VALUE},
    "payload": numbers("total coordinates bytes noise_norm_ratio"),
    "versions": OPEN,
}


def known_records(artifacts: RunArtifacts, chain: Chain) -> list[Finding]:
    """Check the names in ledger and manifest, and the values that the scenario implies."""
    for where, name in _unknown(artifacts, chain):
        return [Finding(KNOWN, False, not_ours(where, name))]
    known = Finding(KNOWN, True, "Ledger and manifest hold nothing of another name.")
    wrong = next(_unlike(artifacts, chain), "")
    text = "Noise, summing, users and rounds are recorded as the scenario has them."
    return [known, Finding(_FOLLOWS, not wrong, f"{wrong}." if wrong else text)]


def unknown_entry(chain: Chain, more: Entry | None = None) -> str:
    """Return the first name in a ledger's entries that none of its kind has, or "".

    Args:
        more: schemas by name of what a question's first entry may hold beside a run's.
    """
    for place, entry in enumerate(chain.entries):
        kind = entry.get("kind")
        if kind not in _ENTRIES:
            return f"an entry of kind {kind!r}"
        first = (more or {}) if place == 0 else {}
        if name := unknown(entry, {"kind": TEXT, **first, **_ENTRIES[kind]}):
            return f"{name} in line {place + 1}"
    return ""


def _unknown(artifacts: RunArtifacts, chain: Chain) -> Iterator[tuple[str, str]]:
    """Yield (file, name) of what no run writes."""
    manifest, path = artifacts.manifest, artifacts.folder.manifest_path
    if name := unknown_entry(chain):
        yield artifacts.folder.ledger_path.name, name
    if name := unknown(manifest, _MANIFEST):
        yield path.name, name
    try:
        _scenario(artifacts)
    except ValueError as error:
        yield path.name, f"another scenario than a run has ({error})"


def _unlike(artifacts: RunArtifacts, chain: Chain) -> Iterator[str]:
    """Yield what the manifest or a round's record says otherwise than the scenario implies."""
    manifest = artifacts.manifest
    for key, value in _implied(artifacts).items():
        told: Any = manifest
        for name in key.split("."):
            told = told.get(name) if isinstance(told, dict) else None
        if not _agree(told, value):
            yield f"The manifest states {key} = {told}; the scenario makes it {value}"
    simulated = artifacts.policy is None or bool(shortfalls(manifest))
    scenario = _scenario(artifacts)
    for entry in chain.entries:
        if entry.get("kind") != "round":
            continue
        if entry.get("simulated") is not simulated:
            word = "a simulation" if simulated else "no simulation"
            yield f"Round {entry['round']} is not recorded as what the run is, {word}"
        if entry.get("aggregator") != scenario.aggregator:
            yield f"Round {entry['round']} was summed by {entry.get('aggregator')}"
        if _table(entry.get("event")).get("stream") != artifacts.guarantee.get("stream"):
            yield f"Round {entry['round']} records another stream of noise than the manifest"
        if _table(entry.get("grid")).get("rotated") is not scenario.rotate:
            yield f"Round {entry['round']} records other rotations than the scenario has"


def _scenario(artifacts: RunArtifacts) -> Scenario:
    return from_plain(Scenario, artifacts.manifest["scenario"], artifacts.where)


def _implied(artifacts: RunArtifacts) -> Entry:
    """Return the manifest's values that follow from scenario and policy without the run's code."""
    manifest, policy = artifacts.manifest, artifacts.policy
    scenario, people = _scenario(artifacts), manifest["population"]
    ours = scenario.aggregator == "exact"
    seeded = "reproducible stream" if scenario.reproducible else "csprng"
    silent = 0.0 if policy is None else 1 - policy["noise"]["honest_fraction"]
    implied = {
        "noise.source": seeded if ours else "tensorflow",
        "secure_aggregation.ran": scenario.secure_aggregation if ours else scenario.aggregator,
        "secure_aggregation.adversary": scenario.adversary or "semi-honest",
        "secure_aggregation.corrupt": max(scenario.corrupt, silent),
        "secure_aggregation.dropout.simulated": scenario.dropout,
        "secure_aggregation.ring.rotated": scenario.rotate,
        "secure_aggregation.ring.wrap_probability": _WRAP,
        "payload.total": manifest["model"]["parameters"],
    }
    if not manifest.get("served"):  # else the enrolled devices
        implied["population.cohort_rule.population"] = people["users"]["train"]
    guarantee = StatedGuarantee.of(artifacts)
    if guarantee is None or guarantee.stream is None:
        implied["guarantee.stream"] = None
    if guarantee is not None:
        implied["noise.simulated_sum_multiplier"] = guarantee.sum_multiplier(scenario.cohort)
    return implied


def _agree(told: Any, value: Any) -> bool:
    if isinstance(value, float) and isinstance(told, int | float):
        return math.isclose(told, value, rel_tol=TOLERANCE)
    return bool(told == value)


def _table(value: Any) -> Entry:
    return value if isinstance(value, dict) else {}
