"""Figures that a run's files claim and nobody measured: the audit derives each from the policy."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pfl_lm.audit.accounting.this_model import claim
from pfl_lm.audit.artifacts import RunArtifacts
from pfl_lm.audit.chain import read_chain
from pfl_lm.audit.ledger.check import audit_ledger
from tests.audit.conftest import CENTRAL, ROTATION, run_tiny
from tests.audit.doctoring import (
    chained,
    entries_of,
    failing,
    rewrite_ledger,
    rewrite_manifest,
    rewrite_metrics,
)

REMOVED = ROTATION.replace(
    "tolerated_dropout = 0.1", 'tolerated_dropout = 0.3, excess = "removed", honest_fraction = 0.9'
)
PROMISED = "every round as promised"


@pytest.fixture(scope="module", params=["kept", "removed", "central"])
def honest(request, tmp_path_factory) -> Path:
    policy = {"kept": ROTATION, "removed": REMOVED, "central": CENTRAL}[request.param]
    return run_tiny(tmp_path_factory.mktemp(request.param), policy, rounds=3)


@pytest.fixture(scope="module")
def rotated(tmp_path_factory) -> Path:
    return run_tiny(tmp_path_factory.mktemp("rotated"), ROTATION, rounds=4)


@pytest.fixture
def run(rotated, tmp_path) -> Path:
    return Path(shutil.copytree(rotated, tmp_path / "run"))


def rewrite_rounds(run: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change every round of a ledger, and remove the checkpoints that remember the old one."""

    def each(entries: list[dict[str, Any]]) -> None:
        for entry in entries:
            if entry["kind"] == "round":
                change(entry)

    rewrite_ledger(run, each)
    shutil.rmtree(run / "checkpoints", ignore_errors=True)


def test_ten_times_the_noise_in_every_round(honest, tmp_path):
    run = Path(shutil.copytree(honest, tmp_path / "run"))

    def louder(entry):
        entry["sum_multiplier"] *= 10
        entry["event"]["noise_multiplier"] *= 10

    assert failing(run, accounting=False) == {}
    rewrite_rounds(run, louder)
    assert PROMISED in failing(run, accounting=False)


def test_more_noise_than_stays_where_the_excess_is_removed(tmp_path):
    run = run_tiny(tmp_path, REMOVED, rounds=3, dropout=0.1)
    assert failing(run, accounting=False) == {}
    rewrite_rounds(run, lambda entry: entry["noise"].update(achieved=10.0))
    assert "is removed" in failing(run, accounting=False)[PROMISED]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("max_participations", 1),
        ("pivotal_probability", 0.5),
        ("reports", 7),
        ("rate", 0.5),
        ("round", 70),
        ("noise_multiplier", 0.1),
        ("per_user", [1] * 400),
    ],
)
def test_an_event_that_follows_from_neither_policy_nor_record(run, key, value):
    rewrite_rounds(run, lambda entry: entry["event"].update({key: value}))
    assert key.replace("_", " ").split()[0] in failing(run, accounting=False)[PROMISED]


def test_an_event_that_leaves_out_what_no_policy_states_is_no_fault(run):
    rewrite_rounds(run, lambda entry: entry["event"].pop("max_participations"))
    assert failing(run, accounting=False) == {}


WRONG = [
    *(("round", value) for value in (None, "1", 1.0, True)),
    *(("reports", value) for value in ("20", 20.5)),
    *(("payload", value) for value in ("x", [], {"dim": "x"})),
    *(("noise", value) for value in ("x", {"achieved": float("nan"), "planned": 1.0})),
    *(("event", value) for value in ("x", [], {"noise_multiplier": float("nan")})),
    *(("sum_multiplier", value) for value in (float("nan"), float("inf"), "x", None)),
    *(("grid", value) for value in (None, [], {"scale": "x"})),
    *(("groups", value) for value in ({}, ["x"], [{"reports": "6"}])),
    ("released", 5),
    ("divisor", True),
    ("kind", []),
]


@pytest.mark.parametrize(("key", "value"), WRONG, ids=str)
def test_a_record_of_a_wrong_type_breaks_the_chain(rotated, tmp_path, key, value):
    path = tmp_path / "ledger.jsonl"
    entries = entries_of(rotated)
    entries[2][key] = value
    path.write_text("".join(line + "\n" for line in chained(entries)))
    assert read_chain(rotated / "ledger.jsonl").fault == ""
    assert read_chain(path).fault.startswith("line 3: ")


def test_a_record_of_a_wrong_type_fails_the_audit(run):
    rewrite_rounds(run, lambda entry: entry.update(payload="x"))
    assert "payload = 'x' is of a wrong type" in failing(run, accounting=False)["hash chain"]


@pytest.mark.parametrize("key", ["reports", "clipped_share", "epsilon"])
def test_a_figure_of_the_metrics_that_is_no_number_is_refused_by_key(run, key):
    rewrite_metrics(run, lambda lines: lines[2].update({key: "x"}))
    with pytest.raises(ValueError, match=rf"metrics.jsonl: {key} = 'x' of round 2"):
        failing(run, accounting=False)


DAMAGED = [
    ("policy.participation.kind", "x"),
    ("policy.participation.min_separation", "6"),
    ("policy.population", 0),
    ("policy.report_goal", 0),
    ("policy.epsilon", "2"),
    ("policy.noise.tolerated_dropout", float("nan")),
    ("guarantee.noise_multiplier", "3"),
    ("guarantee.noise_multiplier", float("nan")),
]


@pytest.mark.parametrize(("key", "value"), DAMAGED, ids=str)
def test_a_manifest_with_a_damaged_number_is_refused_by_key(run, key, value):
    def damage(manifest):
        *tables, last = key.split(".")
        for name in tables:
            manifest = manifest[name]
        manifest[last] = value

    rewrite_manifest(run, damage)
    with pytest.raises(ValueError, match=key.split(".")[-1]) as refused:
        failing(run)
    assert "manifest.json" in str(refused.value)


def findings(run: Path) -> dict[str, bool | None]:
    return {f.name: f.holds for f in audit_ledger(RunArtifacts.open(run)).findings}


def test_without_checkpoints_nothing_is_confirmed_by_them(run):
    assert findings(run)["checkpoints of this ledger"] is True
    shutil.rmtree(run / "checkpoints")
    assert findings(run)["checkpoints of this ledger"] is None


def test_a_round_that_does_not_say_what_it_released(run):
    rewrite_rounds(run, lambda entry: entry.pop("released"))
    assert "names neither" in failing(run, accounting=False)[PROMISED]
    rewrite_rounds(run, lambda entry: entry.update(released=None))
    assert "names neither" in failing(run, accounting=False)[PROMISED]


def test_two_rounds_that_released_the_same(run):
    rewrite_rounds(run, lambda entry: entry.update(released="0" * 64))
    assert "what round 0 did" in failing(run, accounting=False)[PROMISED]


def test_a_server_counts_no_reports_of_a_round_that_released_nothing(run):
    def lost(entries):
        entries[2].update(released=None, failure="the sum was lost")
        reports = entries[3]["reports"] // 2
        entries[3] = {"kind": "abandoned", "round": entries[3]["round"], "reports": reports}

    def uncounted(lines):
        for line in lines[1:3]:
            line.update(reports=0, mean_norm=None, noise_norm=None)

    rewrite_ledger(run, lost)
    rewrite_metrics(run, uncounted)
    for folder in ("checkpoints", "tensorboard"):
        shutil.rmtree(run / folder)
    assert failing(run, accounting=False) == {}


TOLD = "ε told round by round"


@pytest.mark.parametrize("key", ["epsilon", "epsilon_unamplified"])
@pytest.mark.parametrize(
    ("value", "says"), [(None, "no number"), (float("nan"), "no number"), (0.001, "falls")]
)
def test_a_line_that_does_not_tell_what_was_spent(run, key, value, says):
    rewrite_metrics(run, lambda lines: lines[2].update({key: value}))
    assert says in failing(run, accounting=False)[TOLD]


def test_lines_that_tell_too_little_before_the_last(run):
    def less(lines):
        for line in lines[:-1]:
            line["epsilon"] = 0.001

    rewrite_metrics(run, less)
    assert "the rounds paid by then cost" in failing(run, accounting=False)[TOLD]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("epsilon_unamplified", 0.1),
        ("rho", 0.001),
        ("delta", 1e-12),
        ("participations", 1),
        ("sensitivity", 0.1),
        ("honest_reports", 9999),
        ("least_reports", 1),
        ("most_reports", None),
        ("share_multiplier", None),
        ("share_multiplier", 0.5),
    ],
)
def test_a_stated_figure_beside_epsilon(run, key, value):
    rewrite_manifest(run, lambda manifest: manifest["guarantee"].update({key: value}))
    assert key in failing(run)["figures beside ε"]


@pytest.fixture(scope="module")
def sampled(tmp_path_factory) -> Path:
    return run_tiny(tmp_path_factory.mktemp("sampled"), CENTRAL, rounds=1)


@pytest.mark.parametrize(
    ("pattern", "instead"),
    [
        (r"ε is [\d.,]+ for a user", "ε is 2.500 for a user"),
        (r"over [\d,]+ rounds", "over 3 rounds"),
        (r"probability [\d.e-]+", "probability 0.001"),
        (r"noise of [\d.]+ clip", "noise of 33.8 clip"),
        (r"\(zero_out\)", "(replace_one)"),
        (r"\.$", "; against everyone ε is 0.1."),
    ],
)
def test_another_number_in_the_sentence(sampled, tmp_path, pattern, instead):
    run = Path(shutil.copytree(sampled, tmp_path / "run"))
    assert claim(RunArtifacts.open(run)).holds

    def doctored(manifest):
        old = manifest["guarantee"]["statement"]
        new = re.sub(pattern, instead, old)
        assert new != old
        manifest["guarantee"]["statement"] = new
        said = manifest["statements"]
        said["simulated"] = said["simulated"].replace(old, new)

    rewrite_manifest(run, doctored)
    assert claim(RunArtifacts.open(run)).holds is False
