"""Does the rest of a manifest follow from scenario and policy? The run's own code states it again.

What assumptions a guarantee has, who draws the noise, which graph sums, who is invited: readers of
the run's page believe these values, and its ledger vouches for whatever was written first.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

from pfl_lm.audit.artifacts import RunArtifacts
from pfl_lm.audit.findings import Finding
from pfl_lm.run.context import RunContext
from pfl_lm.run.manifest import manifest
from pfl_lm.run.setup import draws_separately
from pfl_lm.version import code_digest

_NAME = "manifest follows from scenario and policy"
_CLOSE = 1e-4  # relative: covers the rounding of another machine's mathematical library
_STATED = (
    *("guarantee", "noise", "secure_aggregation", "fleet"),
    *("tokenizer", "vocabulary", "population", "payload"),
)


def stated_again(context: RunContext, artifacts: RunArtifacts) -> Finding:
    """Hold a manifest against what the code that is installed here states of the same run."""
    written, privacy = artifacts.manifest, context.privacy
    separate = draws_separately(context.scenario, privacy.policy)
    context = replace(context, privacy=replace(privacy, separate_noise=separate))
    now = manifest(context, written["run"])
    parts = [(name, written.get(name), now[name]) for name in _STATED]
    parts.append(("model.parameters", written["model"]["parameters"], now["model"]["parameters"]))
    differing = (_difference(told, value, name) for name, told, value in parts)
    wrong = next(filter(None, differing), "")
    if not wrong:
        text = "Assumptions, noise, summing, users and payload are stated as they follow."
        return Finding(_NAME, True, text)
    if written.get("versions", {}).get("code") != code_digest():
        text = f"{wrong}. Other code made this run: audit it with the version that made it."
        return Finding(_NAME, None, text)
    return Finding(_NAME, False, f"{wrong}.")


def _difference(told: Any, value: Any, key: str) -> str:
    """Return the first value that was written otherwise than it follows, or ""."""
    if isinstance(told, dict) and isinstance(value, dict):
        names = sorted(told.keys() | value.keys())
        inner = (_difference(told.get(n), value.get(n), f"{key}.{n}") for n in names)
        return next(filter(None, inner), "")
    if isinstance(told, list) and isinstance(value, list) and len(told) == len(value):
        pairs = enumerate(zip(told, value, strict=True))
        inner = (_difference(one, other, f"{key}.{n}") for n, (one, other) in pairs)
        return next(filter(None, inner), "")
    if told == value or _close(told, value):
        return ""
    return f"{key} is written as {told}, and {value} follows"


def _close(told: Any, value: Any) -> bool:
    return (
        isinstance(told, float)
        and isinstance(value, int | float)
        and math.isclose(told, value, rel_tol=_CLOSE)
    )
