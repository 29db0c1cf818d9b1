"""`pfl-lm compare`: two seeds are no difference; another vocabulary is said, not measured."""

from __future__ import annotations

import re
import shutil
import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest

import pfl_lm
from pfl_lm.cli import main
from pfl_lm.report.comparison.compare import _notes, compare
from pfl_lm.report.comparison.page import cost_rows, render

pytestmark = pytest.mark.usefixtures("quick")


@pytest.fixture(scope="module")
def folders(tiny_scenario, tmp_path_factory, quick):
    """Runs by name, of one scenario with a change."""
    root = tmp_path_factory.mktemp("compared")
    base = tiny_scenario(rounds=2)
    training = replace(base.training, learning_rate=3.0)
    changes = {
        "first": {},
        "seed": {"seed": 4},
        "faster": {"training": training, "cohort": 12, "rounds": 4},
        "words": {"model": replace(base.model, vocabulary_size=320)},
    }
    for name, change in changes.items():
        pfl_lm.simulate(replace(base, **change), root / name)
    return {name: root / name for name in changes}


def test_two_seeds_of_one_scenario_are_no_difference(folders):
    found = compare([folders["first"], folders["seed"]], users=20)
    assert [setting.key for setting in found.settings] == ["seed"]
    assert found.settings[0].values == ("3", "4")
    assert all(": no difference (only the seed" in text for text in found.judged[0].verdicts)


def test_a_copy_or_an_unfinished_run_shows_no_luck(folders, tmp_path):
    """Only ended runs of seeds that differ tell what luck does."""
    for name in ("first", "seed"):
        shutil.copytree(folders[name], tmp_path / name)
    (tmp_path / "seed" / "model.pt").unlink()
    (tmp_path / "seed" / "evaluation.json").unlink()
    for other in ("first", "seed"):
        found = compare([folders["first"], tmp_path / other], users=5)
        assert not any("only the seed" in text for text in found.judged[0].verdicts)
        assert any("--set seed" in note for note in found.notes)


def test_settings_differences_and_luck(folders):
    found = compare([folders[n] for n in ("first", "faster", "seed")], users=20)
    keys = {setting.key: setting.values for setting in found.settings}
    assert keys["training.learning_rate"] == ("0.5", "3.0", "0.5")
    assert keys["cohort"] == ("6", "12", "6")
    faster = found.judged[0]
    assert faster.differences[0].figure.name == "perplexity"
    assert faster.differences[0].second < faster.differences[0].first
    assert not any("--set seed" in note for note in found.notes)
    alone = compare([folders["first"], folders["faster"]], users=20)
    assert any("--set seed" in note for note in alone.notes)


@pytest.mark.parametrize("kind", ["store", "synthetic"])
def test_figures_of_peoples_text_are_said_to_be_outside_of_epsilon(kind):
    people = SimpleNamespace(name="chat", digest="ab", kind=kind)
    manifest = SimpleNamespace(population=people, scenario=SimpleNamespace(population=people))
    told = _notes([SimpleNamespace(manifest=manifest, finished=True)] * 2, {})
    assert any("no ε covers it" in note for note in told) == (kind == "store")


def test_what_privacy_costs_is_said_in_percent(tiny_scenario, policy_file, tmp_path):
    """ε = 0.5 against ∞, for a goal so small that the noise is seen."""
    policy = policy_file(
        epsilon="0.5", population="100_000", report_goal="10",
        participation='{ kind = "rotation", min_separation = 6 }',
    )  # fmt: skip
    base = tiny_scenario(rounds=3, reproducible=True)
    base = replace(base, training=replace(base.training, learning_rate=3.0))
    pfl_lm.simulate(base, tmp_path / "none")
    pfl_lm.simulate(replace(base, policy=policy), tmp_path / "private", anyway=True)
    found = compare([tmp_path / "none", tmp_path / "private"], users=20)
    perplexity = found.judged[0].verdicts[0]
    assert re.fullmatch(r"perplexity: [\d.]+% higher, worse", perplexity)
    difference = found.judged[0].differences[0]
    assert 0 < difference.low < difference.value < difference.high
    assert "policy.epsilon" in {setting.key for setting in found.settings}
    assert dict(cost_rows(found))["ε of the policy, against the server"] == ["∞", "0.500"]


def test_another_vocabulary_is_said_and_not_measured(folders):
    found = compare([folders["first"], folders["words"]], users=5)
    assert found.judged[0].differences == ()
    assert found.judged[0].verdicts == ("another vocabulary: its figures count other words",)
    assert "another vocabulary" in render(found)


def test_a_run_beside_itself_has_no_differing_setting(folders):
    found = compare([folders["first"], folders["first"]], users=5)
    assert found.settings == ()
    assert found.judged[0].differences[0].value == 0
    assert len(set(found.names)) == 1 or found.names[0] == str(folders["first"])


def test_the_page_is_one_file_and_shows_all_of_it(folders):
    page = render(compare([folders["first"], folders["faster"]], users=5))
    for part in ("faster beside first", "training.learning_rate", "<svg", "95% of samples",
                 "ε of the policy"):  # fmt: skip
        assert part in page
    assert "http://" not in page.replace("http://www.w3.org", "")


def test_the_verb_prints_tables_and_writes_the_page(folders, tmp_path, monkeypatch, capsys):
    page = tmp_path / "c.html"
    words = ["compare", folders["first"], folders["seed"], "--users", "5", "-o", page]
    monkeypatch.setattr(sys, "argv", ["pfl-lm", *map(str, words)])
    with pytest.raises(SystemExit) as ended:
        main()
    assert not ended.value.code
    shown = capsys.readouterr().out
    for part in ("Settings that differ", "seed beside first", "no difference", "ε and cost"):
        assert part in shown
    assert page.read_text(encoding="utf-8").startswith("<!doctype html>")


@pytest.mark.parametrize("names", [(), ("first",)])
def test_fewer_than_two_runs_are_refused(folders, names):
    with pytest.raises(ValueError, match="name 2 to 20 to compare"):
        compare([folders[name] for name in names])
