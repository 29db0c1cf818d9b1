"""Did a comparison ask for the cells that it states: of all devices, and of permitted groups?

The cells are written down here a second time; what the run says of them is not believed.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from pfl_lm.audit.findings import Finding
from pfl_lm.audit.question.artifacts import QuestionArtifacts

NAME = "the cells are those of permitted groups"
LABELS = "the labels are public"
_MEASURES = ("log-loss", "top-1", "top-3", "keystrokes saved")
_BLOCK = [
    "phones with text",
    *(f"{measure}, {part}" for measure in _MEASURES for part in ("difference", "square")),
]


def group_cells(
    artifacts: QuestionArtifacts, genesis: Mapping[str, Any], rounds: Sequence[Mapping[str, Any]]
) -> list[Finding]:
    """Check that a comparison asked by groups that its policy permits, and in cells of its own.

    Args:
        genesis: the first entry of its ledger.
        rounds: the ledger's entries of rounds.

    Returns:
        A finding about the cells, and where there are groups one about their labels; none for
        another kind of question.
    """
    if artifacts.manifest["kind"] != "comparison":
        return []
    groups = list(artifacts.manifest["asked"].get("groups", []))
    if wrong := _wrong(artifacts, groups, genesis, rounds):
        return [Finding(NAME, False, wrong)]
    cells = len(_BLOCK)
    if not groups:
        return [Finding(NAME, True, f"No groups were asked for: {cells} cells of all devices.")]
    text = (
        f"{cells} cells of all devices and {cells} of each of {len(groups)} groups "
        f"({', '.join(groups)}), which the policy permits; a device fills {2 * cells}, and its "
        "answer is as long as without groups."
    )
    vouched = (
        f"Who is in which group ({', '.join(groups)}) is taken to be public: ε does not cover it. "
        "The policy's owner vouches for that."
    )
    return [Finding(NAME, True, text), Finding(LABELS, None, vouched)]


def _wrong(
    artifacts: QuestionArtifacts,
    groups: list[str],
    genesis: Mapping[str, Any],
    rounds: Sequence[Mapping[str, Any]],
) -> str:
    """Return what is wrong with the cells, or ""."""
    policy, asked = artifacts.policy or {}, artifacts.manifest["asked"]
    permitted = policy.get("public_labels", [])
    if more := [name for name in groups if name not in permitted]:
        return f"Figures were asked for the group {more[0]!r}, which the policy does not permit."
    if genesis.get("groups", []) != groups:
        return "The ledger began with other groups than the manifest states."
    filled = len(_BLOCK) * (2 if groups else 1)
    if (asked["entries"], asked["norm"]) != (filled, 1):
        return (
            f"A device fills {asked['entries']} cells up to a length of {asked['norm']:g}; it "
            f"should be {filled} cells, those of all devices and of its own group, and 1."
        )
    digest = _digest(groups, filled, policy["noise"]["min_dim"])
    for entry in rounds:
        if entry.get("payload", {}).get("digest") != digest:
            return f"Round {entry['round']} asked for other cells than those that are stated."
    return _wrong_result(artifacts, groups)


def _wrong_result(artifacts: QuestionArtifacts, groups: list[str]) -> str:
    """Return why the result has figures of other groups, or ""."""
    path = artifacts.path / artifacts.manifest["result"]
    try:
        told = list(json.loads(path.read_text(encoding="utf-8")).get("groups", {}))
    except (OSError, ValueError, AttributeError):
        return ""  # absent or damaged: the finding about the result says so
    return "" if told == groups else "The result has figures of other groups than were asked for."


def _digest(groups: list[str], filled: int, least: int) -> str:
    """Return the SHA-256 of the question: name, cells, bounds, and the cells of each group."""
    labels = _BLOCK + [f"{group}: {label}" for group in groups for label in _BLOCK]
    size = len(_BLOCK)
    stated: list[Any] = ["candidate less current", labels, filled, 1.0, 1.0]
    stated.append(max(len(labels), least))
    if groups:
        stated.append([[size * (1 + g), size * (2 + g)] for g in range(len(groups))])
    return hashlib.sha256(json.dumps(stated, ensure_ascii=True).encode()).hexdigest()
