"""A comparison by public group in the audit: its cells, and devices that fill two groups."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from pfl_lm.audit.question.artifacts import QuestionArtifacts
from pfl_lm.audit.question.groups import NAME, group_cells
from pfl_lm.audit.question.mechanism import audit_question_mechanism
from pfl_lm.queries.comparison import comparison_query
from pfl_lm.queries.query import Query
from tests.queries.conftest import policy_of

GROUPS = ["low", "middle", "high"]


@pytest.fixture
def question(tmp_path: Path) -> dict[str, Any]:
    """What a comparison leaves: manifest, first entry, rounds and result."""
    policy = replace(policy_of(users=60), public_labels=tuple(GROUPS))
    query = comparison_query(policy.noise.min_dim, GROUPS)
    asked = {"entries": query.entries, "norm": 1.0, "groups": list(GROUPS), "cohort": 60}
    plain = json.loads(json.dumps(asdict(policy)))
    manifest = {"kind": "comparison", "asked": asked, "policy": plain, "result": "comparison.json"}
    return {
        "manifest": manifest,
        "genesis": {"groups": list(GROUPS)},
        "rounds": [{"round": 0, "payload": {"digest": query.digest}}],
        "result": {"groups": {group: {} for group in GROUPS}},
    }


def audited(question: dict[str, Any], folder: Path) -> str:
    """Return what the audit says of the cells: "" where they are right."""
    (folder / "comparison.json").write_text(json.dumps(question["result"]))
    artifacts = QuestionArtifacts(folder, question["manifest"])
    finding, *labels = group_cells(artifacts, question["genesis"], question["rounds"])
    assert finding.name == NAME
    groups = question["manifest"]["asked"]["groups"]
    assert [told.holds for told in labels] == ([None] if groups and finding.holds else [])
    return "" if finding.holds else finding.text


def test_an_honest_one_is_right_with_groups_and_without(
    question: dict[str, Any], tmp_path: Path
) -> None:
    assert audited(question, tmp_path) == ""
    plain = comparison_query(64)
    question["manifest"]["asked"] |= {"groups": [], "entries": plain.entries}
    question |= {"genesis": {}, "result": {}}
    question["rounds"][0]["payload"]["digest"] = plain.digest
    assert audited(question, tmp_path) == ""
    assert group_cells(QuestionArtifacts(tmp_path, {"kind": "words"}), {}, []) == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda q: q["manifest"]["policy"].update(public_labels=["low", "high"]), "'middle'"),
        (lambda q: q["manifest"]["policy"].pop("public_labels"), "does not permit"),
        (lambda q: q["manifest"]["asked"].update(groups=[]), "other groups than the manifest"),
        (lambda q: q["manifest"]["asked"].update(entries=27), "fills 27 cells"),
        (lambda q: q["manifest"]["asked"].update(norm=2.0), "up to a length of 2"),
        (lambda q: q["rounds"][0]["payload"].update(digest="ab"), "other cells than those"),
        (lambda q: q["result"]["groups"].update(secret={}), "figures of other groups"),
    ],
)
def test_a_doctored_one_is_caught(
    question: dict[str, Any],
    tmp_path: Path,
    change: Callable[[dict[str, Any]], Any],
    message: str,
) -> None:
    change(question)
    assert message in audited(question, tmp_path)


def test_devices_that_fill_two_groups_are_caught(
    question: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    artifacts = QuestionArtifacts(tmp_path, question["manifest"])

    def failing() -> set[str]:
        part = audit_question_mechanism(artifacts)
        assert "no device fills cells of two groups" in {f.name for f in part.findings}
        return {f.name for f in part.findings if f.holds is False}

    assert failing() == set()
    plain = Query.refusal
    monkeypatch.setattr(
        Query, "refusal", lambda self, answer: plain(replace(self, groups=()), answer)
    )
    assert failing() == {"no device fills cells of two groups"}
