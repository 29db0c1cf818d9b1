"""Runs whose clip norm follows their updates: honest ones fail nothing, doctored ones are named."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pfl_lm.audit.accounting.check import audit_accounting
from pfl_lm.audit.accounting.policy_file import PolicyFile
from pfl_lm.audit.artifacts import RunArtifacts
from pfl_lm.audit.ledger.clipping import after
from pfl_lm.audit.mechanism import check as mechanism_check
from pfl_lm.audit.mechanism import noise_tests
from pfl_lm.audit.mechanism.clipping_tests import clipping_findings
from pfl_lm.audit.mechanism.harness import at_one_clip
from pfl_lm.audit.mechanism.rebuild import rebuild_context
from pfl_lm.dp.clipping import Clipping
from pfl_lm.dp.guarantee import guarantee
from pfl_lm.dp.policy import Noise, Policy
from pfl_lm.payload.plan import PayloadPlan
from pfl_lm.recipes import load
from pfl_lm.run import round as privacy_path
from pfl_lm.run.deployment import Deployment
from tests.audit.conftest import POLICY, run_tiny
from tests.audit.doctoring import (
    entries_of,
    failing,
    rewrite_ledger,
    rewrite_manifest,
    rewrite_metrics,
)

ADAPTIVE = (
    POLICY.replace('"poisson"', '"rotation", min_separation = 6')
    + "clipping = { lowest = 1e-3, highest = 1e3 }\n"
)
NOISE = '{ at = "device", kind = "skellam", tolerated_dropout = 0.1 }'
KINDS = {
    "central, poisson": (
        {"policy": '{ at = "server", kind = "gaussian" }'},
        {},
    ),
    "excess removed": (
        {"policy": NOISE.replace("0.1", '0.3, excess = "removed"')},
        {"dropout": 0.05},
    ),
    "blt": ({"policy": '{ at = "server", kind = "blt" }'}, {"payload": PayloadPlan(rows=100)}),
    "rotated": ({}, {"rotate": True}),
    "own shares, lost rounds": ({}, {"separate_noise": True, "dropout": 0.1}),
}


@pytest.fixture(scope="module")
def adaptive(tmp_path_factory) -> Path:
    return run_tiny(tmp_path_factory.mktemp("adaptive"), ADAPTIVE, clip_norm=0.1)


@pytest.fixture
def run(adaptive, tmp_path) -> Path:
    return Path(shutil.copytree(adaptive, tmp_path / "run"))


def code_failures(run: Path) -> dict[str, str]:
    found = clipping_findings(rebuild_context(RunArtifacts.open(run)))
    return {finding.name: finding.text for finding in found if finding.holds is False}


@pytest.mark.parametrize("rotate", [False, True])
def test_long_indicators_are_no_randomness_that_devices_share(adaptive, rotate):
    """Of devices that add no noise, and whose updates are alike, indicators are alike too."""
    context = rebuild_context(RunArtifacts.open(adaptive))
    policy = replace(
        context.privacy.policy,
        noise=Noise("server", "gaussian"),
        clipping=Clipping(1e-3, 1e3, indicator_noise=0.003),
    )
    privacy = replace(context.privacy, deployment=Deployment(policy), rotate=rotate)
    assert privacy.indicator_weight > 0.05
    found = noise_tests.devices(replace(context, privacy=privacy))
    assert found.holds, found.text


def test_rotated_indicators_are_no_noise(adaptive, monkeypatch):
    """Rotated and rounded, the indicators of silent devices widen what a small noise releases."""
    context = rebuild_context(RunArtifacts.open(adaptive))
    policy = replace(context.privacy.policy, epsilon=20.0, noise=Noise("server", "gaussian"))
    privacy = replace(context.privacy, deployment=Deployment(policy), rotate=True)
    context = replace(context, privacy=privacy)
    part = mechanism_check.audit_mechanism(context)
    assert {f.name: f.text for f in part.findings if f.holds is False} == {}
    monkeypatch.setattr(mechanism_check, "of_silent_devices", lambda context: context)
    part = mechanism_check.audit_mechanism(context)
    assert "noise on the sum" in {f.name for f in part.findings if f.holds is False}


def test_an_honest_run_fails_nothing(adaptive):
    assert failing(adaptive) == {}
    artifacts = RunArtifacts.open(adaptive)
    part = mechanism_check.audit_mechanism(rebuild_context(artifacts), artifacts)
    assert {f.name: f.text for f in part.findings if f.holds is False} == {}
    held = {finding.name for finding in part.findings if finding.holds}
    assert held >= {
        "noise on the sum",
        "each report counts once",
        "no device moves the sum by more than the sensitivity",
        "shares of short updates are noised",
        "clip norm follows the quantile",
    }
    table = next(t for t in audit_accounting(artifacts).tables if t.title == "Reporting checklist")
    told = dict(table.rows)
    assert "no ε: an indicator of 0.006" in next(v for k, v in told.items() if "adaptive" in k)


@pytest.mark.parametrize("kind", KINDS)
def test_honest_runs_of_every_kind_fail_nothing(tmp_path, kind):
    lines, changes = KINDS[kind]
    policy = ADAPTIVE.replace(NOISE, lines.get("policy", NOISE))
    if "poisson" in kind:
        policy = policy.replace('"rotation", min_separation = 6', '"poisson"')
        policy += "accepted_server_epsilon = inf\n"
    run = run_tiny(tmp_path, policy, **{"rounds": 5, "clip_norm": 0.1, **changes})
    assert failing(run, accounting=False) == {}
    if kind == "blt":
        artifacts = RunArtifacts.open(run)
        part = mechanism_check.audit_mechanism(rebuild_context(artifacts), artifacts)
        assert {f.name: f.text for f in part.findings if f.holds is False} == {}
        assert "noise correlates as stated" in {f.name for f in part.findings if f.holds}


def test_a_clip_norm_that_does_not_follow(run):
    def higher(entries):
        entries[5]["clip_norm"] *= 1.1
        entries[5]["grid"]["scale"] /= 1.1

    rewrite_ledger(run, higher)
    found = failing(run, accounting=False)
    assert "Round 4 clipped to" in found["clip norm follows what was released"]


def test_a_clip_norm_that_follows_another_rule(run):
    def faster(entries):
        entries[4]["clipping"]["next"]["rate"] *= 2

    rewrite_ledger(run, faster)
    assert "at a rate of" in failing(run, accounting=False)["clip norm follows what was released"]


@pytest.mark.parametrize("key", ["clip_norm", "short_share"])
def test_metrics_that_tell_another_clip_norm_or_share(run, key):
    rewrite_metrics(run, lambda lines: lines[4].update({key: 0.011}))
    told = failing(run, accounting=False)["metrics say of each round what the ledger does"]
    assert f"Round 4: the metrics' {key} is 0.011" in told


def test_a_round_that_hides_what_it_released(run):
    rewrite_ledger(run, lambda entries: entries[4].pop("clipping"))
    told = failing(run, accounting=False)["clip norm follows what was released"]
    assert "Round 3 does not say which share" in told


def test_a_clip_norm_beyond_the_policys(run):
    rewrite_manifest(run, lambda m: m["policy"]["clipping"].update(lowest=0.095))
    assert "clip norm follows what was released" in failing(run, accounting=False)


def without_noise(run: Path) -> None:
    """Tell the true shares, and let every later clip norm follow from them."""
    artifacts = RunArtifacts.open(run)
    lines = {line["round"]: line for line in artifacts.rounds}
    rule = artifacts.policy["clipping"]

    def change(entries):
        clip = (0.1, rule["first_rate"], 0)
        for entry in entries:
            if entry["kind"] != "round":
                continue
            entry["grid"]["scale"] *= entry["clip_norm"] / clip[0]
            entry["clip_norm"] = clip[0]
            share = 1 - lines[entry["round"]]["clipped_share"]
            clip = after(rule, clip, share)
            following = dict(zip(("norm", "rate", "side"), clip, strict=True))
            entry["clipping"] = {"share": share, "next": following}

    rewrite_ledger(run, change)


def test_shares_that_were_released_without_noise(run):
    """Everything follows, and nothing is hidden: only that the shares are exact."""
    without_noise(run)
    found = failing(run, accounting=False)
    assert "clip norm follows what was released" not in found
    assert "0.000 of the stated" in found["shares of short updates carry noise"]


def test_shares_with_more_noise_than_is_stated(run):
    def louder(entries):
        for place, entry in enumerate(entries):
            if entry["kind"] == "round":
                entry["clipping"]["share"] += 0.4 * (-1) ** place

    rewrite_ledger(run, louder)
    assert "shares of short updates carry noise" in failing(run, accounting=False)


def test_an_indicator_heavier_than_its_noise_allows(run):
    rewrite_manifest(run, lambda m: m["guarantee"].update(indicator_weight=0.2))
    told = failing(run, accounting=False)["clip norm follows what was released"]
    assert "Indicators of 0.2 clip norms are stated" in told


def test_a_ledger_that_leaves_the_indicator_out_of_the_cost(run):
    def fewer(entries):
        for entry in entries:
            if entry["kind"] == "round":
                entry["event"]["dim"] -= 1

    rewrite_ledger(run, fewer)
    assert "accounted for with dim" in failing(run, accounting=False)["every round as promised"]


def test_code_that_adds_no_noise_to_the_indicator(run, monkeypatch):
    genuine = privacy_path._shares_at_once

    def sparing(*arguments):
        noise = genuine(*arguments)
        noise[-1] = 0
        return noise

    monkeypatch.setattr(privacy_path, "_shares_at_once", sparing)
    assert "or not noised" in code_failures(run)["shares of short updates are noised"]


def test_code_whose_indicators_tell_something_else(run, monkeypatch):
    genuine = privacy_path.with_indicators

    def inverted(updates, clip_norm, weight):
        joint, told = genuine(updates, clip_norm, weight)
        joint[:, -1] = np.abs(joint[:, -1])
        return joint, told

    monkeypatch.setattr(privacy_path, "with_indicators", inverted)
    assert "shares of short updates are noised" in code_failures(run)


def test_code_whose_clip_norm_follows_another_quantile(run, monkeypatch):
    genuine = Clipping.after

    def other(self, clip, share):
        return genuine(replace(self, quantile=0.7), clip, share)

    monkeypatch.setattr(Clipping, "after", other)
    assert "clip norm follows the quantile" in code_failures(run)


def test_the_auditors_rule_is_the_codes(adaptive):
    rule, clip = Clipping(1e-3, 1e3), Clipping(1e-3, 1e3).begin(0.1)
    plain = RunArtifacts.open(adaptive).policy["clipping"]
    told = (0.1, 2.0, 0)
    for share in (0.5, 1.2, 0.7, 0.5, 0.3, 0.3, 0.6, 0.5, 0.1, -0.2, 0.9):
        clip, told = rule.after(clip, share), after(plain, told, share)
        assert told == pytest.approx((clip.norm, clip.rate, clip.side), rel=1e-12)


def test_the_attack_holds_the_clip_norm(adaptive):
    context = at_one_clip(rebuild_context(RunArtifacts.open(adaptive)))
    assert context.privacy.clipping is None
    assert context.privacy.grid(100).dim == 100


def test_a_policy_without_a_run_is_read_with_its_table(tmp_path):
    path = tmp_path / "policy.toml"
    path.write_text(ADAPTIVE)
    policy = PolicyFile.open(path).policy
    assert policy["clipping"]["quantile"] == load(Policy, path).clipping.quantile
    assert guarantee(load(Policy, path)).indicator_weight > 0
    path.write_text(ADAPTIVE.replace("lowest = 1e-3, ", ""))
    with pytest.raises(ValueError, match=r"clipping\.lowest is missing"):
        PolicyFile.open(path)
    path.write_text(ADAPTIVE.replace("lowest", "lwest"))
    with pytest.raises(ValueError, match=r"clipping\.lwest is no key"):
        PolicyFile.open(path)


def test_the_ledger_names_every_clip_norm(adaptive):
    rounds = [entry for entry in entries_of(adaptive) if entry["kind"] == "round"]
    # A share of exactly the quantile, on the grid of a small cohort, leaves the clip norm.
    assert len({entry["clip_norm"] for entry in rounds}) > len(rounds) / 2
