"""What breaks guarantees in practice: each flag fires on a run that is wrong, and on no right one.

The manifests are written by hand: nothing is trained here.
"""

from __future__ import annotations

import copy
import json
import math
from pathlib import Path

import pytest

from pfl_lm.audit.accounting.flags import flags
from pfl_lm.audit.accounting.stated import StatedGuarantee
from pfl_lm.audit.artifacts import RunArtifacts
from pfl_lm.audit.findings import Finding, Part
from pfl_lm.audit.hazards import hazards
from pfl_lm.run.folder import RunFolder

SHARE = 2.39216 / math.sqrt(4050)
MANIFEST = {
    "run": "by hand",
    "policy": {
        "unit": "user",
        "neighboring": "zero_out",
        "epsilon": 2.0,
        "delta": 1e-6,
        "population": 1_000_000,
        "report_goal": 5_000,
        "rounds": 150,
        "participation": {"kind": "rotation", "min_separation": 200},
        "noise": {
            "at": "device",
            "kind": "skellam",
            "tolerated_dropout": 0.1,
            "honest_fraction": 0.9,
            "grid_steps": 8.0,
            "min_dim": 1024,
        },
    },
    "guarantee": {
        "noise_multiplier": 2.39216,
        "share_multiplier": SHARE,
        "epsilon": 1.99999,
        "epsilon_server": 1.99999,
        "accountant": "Rényi",
    },
    "statements": {"guaranteed": "Nothing.", "simulated": "Much."},
    "scenario": {"clip_norm": 0.5, "cohort": 100},
    "population": {
        "name": "people",
        "users": {"train": 20_000},
        "cohort_rule": {
            "kind": "rotation",
            "population": 20_000,
            "size_or_rate": 100,
            "min_separation": 200,
        },
    },
    "model": {"start": {"kind": "public"}},
    "vocabulary": {"kind": "word_list", "provenance": "a public list"},
}
ROUND = {"kind": "round", "round": 0, "reports": 100, "seconds": 1.0, "epsilon": 1.0}


def judged(
    folder: Path, changes: dict[str, object] | None = None, metrics=(ROUND,), trials=None
) -> dict[str, Finding]:
    """Return the flags of a run whose manifest differs by dotted keys."""
    manifest = copy.deepcopy(MANIFEST)
    for key, value in (changes or {}).items():
        *path, last = key.split(".")
        table = manifest
        for name in path:
            table = table[name]
        table[last] = value
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "manifest.json").write_text(json.dumps(manifest))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in metrics))
    artifacts = RunArtifacts(RunFolder(folder), manifest)
    guarantee = StatedGuarantee.of(artifacts)
    assert guarantee is not None
    return {finding.name: finding for finding in flags(guarantee, artifacts, trials)}


def test_a_sound_run_raises_no_flag(tmp_path):
    found = judged(tmp_path / "run", trials=1)
    assert {name for name, flag in found.items() if flag.holds is not True} == {"this very model"}


WRONG = {
    "sampling matches the accountant": {"population.cohort_rule.kind": "fixed"},
    "adjacency": {
        # ε of a Gaussian release at one clip norm, stated for replacing a user.
        "policy.neighboring": "replace_one",
        "policy.noise.kind": "gaussian",
        "policy.noise.at": "server",
        "guarantee.noise_multiplier": 3.0,
        "guarantee.epsilon": 1.476,
    },
    "δ against the population": {"policy.delta": 1e-5},
    "honest devices": {"guarantee.share_multiplier": 2.39216 / math.sqrt(4500)},
    "noise planned for dropout": {"guarantee.share_multiplier": 2.39216 / math.sqrt(5000)},
    "what training started from": {"model.start": {"kind": "private"}},
    "where the words come from": {"vocabulary": {"kind": "private_text", "provenance": "chats"}},
}


@pytest.mark.parametrize("name", list(WRONG))
def test_each_flag_is_raised_by_what_it_is_for(tmp_path, name):
    found = judged(tmp_path / "run", WRONG[name], trials=1)
    assert {flag.name for flag in found.values() if flag.holds is False} == {name}


def test_a_rate_above_the_promised_one_in_a_population_of_the_promised_size(tmp_path):
    rule = {"kind": "poisson", "population": 1_000_000, "size_or_rate": 0.01, "min_separation": 1}
    sampled = {
        "population.cohort_rule": rule,
        "policy.participation": {"kind": "poisson", "min_separation": None},
        "policy.noise.kind": "gaussian",
        "policy.noise.at": "server",
    }
    found = judged(tmp_path / "run", sampled)
    assert "drawn with chance 0.01" in found["sampling matches the accountant"].text


def test_two_clip_norms_that_are_counted_raise_no_flag(tmp_path):
    right = WRONG["adjacency"] | {"guarantee.epsilon": 3.2, "policy.epsilon": 4.0}
    assert judged(tmp_path / "run", right)["adjacency"].holds is True


def test_noise_that_counts_on_every_device_is_for_a_person_to_judge(tmp_path):
    trusting = {"policy.noise.honest_fraction": 1.0}
    assert judged(tmp_path / "run", trusting)["honest devices"].holds is None


class TestTuning:
    name = "hyperparameter tuning"

    def test_trainings_that_were_stated_and_not_paid_for(self, tmp_path):
        found = judged(tmp_path / "run", trials=10)[self.name]
        assert found.holds is False
        assert "leaves them unpaid" in found.text

    def test_trainings_that_the_stated_figure_covers(self, tmp_path):
        generous = {"policy.epsilon": 8.0, "guarantee.epsilon": 7.9}
        assert judged(tmp_path / "run", generous, trials=3)[self.name].holds is True

    def test_nothing_stated_and_nothing_found(self, tmp_path):
        found = judged(tmp_path / "run")[self.name]
        assert found.holds is None
        assert "No tuning is recorded" in found.text

    def test_other_runs_on_the_same_users_are_found_beside_it(self, tmp_path):
        judged(tmp_path / "first", {"run": "first"})
        judged(tmp_path / "others", {"run": "others", "population.name": "other people"})
        found = judged(tmp_path / "second")[self.name]
        assert found.holds is None
        assert "(first)" in found.text

    def test_the_same_users_are_known_by_their_digest_whatever_their_stores_are_called(
        self, tmp_path
    ):
        here, there = ({"population.digest": each * 32} for each in ("ab", "cd"))
        judged(tmp_path / "first", {"run": "again", "population.name": "built again"} | here)
        judged(tmp_path / "others", {"run": "others"} | there)
        text = judged(tmp_path / "second", here)[self.name].text
        assert "(again)" in text

    def test_a_run_without_noise_beside_it_costs_everything(self, tmp_path):
        judged(tmp_path / "first", {"run": "loud"})
        manifest = json.loads((tmp_path / "first" / "manifest.json").read_text())
        (tmp_path / "first" / "manifest.json").write_text(json.dumps(manifest | {"policy": None}))
        assert "∞ (loud had no noise)" in judged(tmp_path / "second")[self.name].text


def test_metrics_of_users_are_flagged_for_a_person(tmp_path):
    told = judged(tmp_path / "run", metrics=(ROUND | {"loss": 4.5, "update_norm": 1.0},))
    assert told["metrics without noise"].holds is None
    assert "loss, update_norm" in told["metrics without noise"].text


def test_measures_on_held_out_users_are_flagged_for_a_person(tmp_path):
    """What a server writes: no figure of the devices, and the norm of a mean with noise."""
    validation = {"kind": "evaluation", "round": 0, "split": "validation", "perplexity": 90.0}
    told = judged(tmp_path / "a", metrics=(ROUND | {"mean_norm": 1.0}, validation))
    assert told["metrics without noise"].holds is None
    assert "validation users" in told["metrics without noise"].text
    assert "mean_norm" not in told["metrics without noise"].text
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "evaluation.json").write_text("{}")
    told = judged(tmp_path / "b", metrics=(ROUND | {"mean_norm": 1.0},))
    assert "evaluation.json holds measures on test users" in told["metrics without noise"].text


def test_only_what_the_public_file_holds_is_said_of_it(tmp_path):
    (tmp_path / "run").mkdir()
    private = json.dumps(ROUND | {"loss": 4.5})
    (tmp_path / "run" / "metrics.private.jsonl").write_text(private + "\n")
    told = judged(tmp_path / "run", metrics=(ROUND | {"mean_norm": 1.0},))
    assert told["metrics without noise"].holds is True


def test_a_manifest_that_does_not_say_where_words_come_from(tmp_path):
    assert judged(tmp_path / "run", {"vocabulary": None})["where the words come from"].holds is None


def part(*findings: Finding) -> Part:
    return Part("accounting", "?", (), findings, ())


def test_hazards_gather_what_the_parts_found():
    found = part(Finding("adjacency", True, ""), Finding("honest devices", False, ""))
    more = part(Finding("metrics without noise", None, ""))
    states = [hazard.state for hazard in hazards([found, more])]
    assert len(states) == 12
    assert {state: states.count(state) for state in set(states)} == {
        "averted": 1, "present": 1, "to judge": 1, "not looked for": 9,
    }  # fmt: skip
