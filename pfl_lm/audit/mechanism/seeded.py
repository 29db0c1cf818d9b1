"""Does a run's noise come from its printed seed? Its first round is repeated from that seed."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from pfl_lm.audit.artifacts import RunArtifacts
from pfl_lm.audit.findings import Finding
from pfl_lm.audit.mechanism.harness import repeated_round
from pfl_lm.run.context import RunContext

_NAME = "noise of no printed seed"


def seeded(context: RunContext, artifacts: RunArtifacts) -> list[Finding]:
    """Repeat round 0 with all randomness from the scenario's seed; compare what was released.

    A run that may be reproduced gives the same bytes on the same kind of processor. In any other
    run the same bytes mean that its noise came from the seed, which everybody can read.
    """
    first, started = artifacts.first_round, artifacts.manifest["model"]["start"].get("kind")
    if (
        (context.privacy.policy is None or context.privacy.external_noise)
        or (first is None or first["round"] != 0 or first.get("released") is None)
        or started != context.start.origin["kind"]
    ):
        return []
    privacy = replace(context.privacy, reproducible=True)
    again = repeated_round(replace(context, privacy=privacy), 0)
    return [_compared(first["released"] == again, artifacts.manifest["scenario"])]


def _compared(same: bool, scenario: dict[str, Any]) -> Finding:
    if scenario["reproducible"]:
        text = (
            "Round 0, repeated from the scenario's seed, released the same bytes."
            if same
            else "Round 0 released other bytes than its repetition: another processor or version."
        )
        return Finding("the run can be repeated", True if same else None, text)
    if same:
        text = (
            "Round 0 is repeated to the byte from the scenario's seed, which is no secret: its "
            "noise protects nobody."
        )
        return Finding(_NAME, False, text)
    return Finding(_NAME, True, "Round 0 cannot be repeated from the scenario's seed.")
