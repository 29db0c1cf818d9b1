"""Sweeps: all combinations, taken up again, ranked on validation users, with their cost said."""

from __future__ import annotations

import json
import math
import re
from types import SimpleNamespace

import pytest

from pfl_lm.api.sweep import folder as module
from pfl_lm.api.sweep.cost import _lead as lead_of
from pfl_lm.api.sweep.cost import cost
from pfl_lm.api.sweep.folder import Runs
from pfl_lm.api.sweep.page import write_page
from pfl_lm.api.sweep.plan import Trial, plan
from pfl_lm.api.sweep.results import combinations, verdict
from pfl_lm.api.sweep.run import Sweep, sweep
from pfl_lm.recipes import RecipeError
from pfl_lm.run.control import RunStopped

pytestmark = pytest.mark.usefixtures("quick")

SCENARIO = """
policy = "{policy}"
rounds = 2
cohort = 6
clip_norm = 0.5
[population]
kind = "synthetic"
users = 200
tokens_per_user = 40
[model]
kind = "cifg_lstm"
vocabulary_size = 300
embedding_dim = 8
hidden_dim = 8
[training]
learning_rate = 0.5
window = 8
[evaluation]
every = 0
users = 3
final_users = 3
"""


@pytest.fixture(scope="module")
def recipe(tmp_path_factory, policy_file):
    path = tmp_path_factory.mktemp("sweep") / "scenario.toml"
    policy = policy_file(participation='{ kind = "rotation", min_separation = 6 }')
    path.write_text(SCENARIO.format(policy=policy), encoding="utf-8")
    return path


def test_all_combinations_are_planned():
    trials = plan(["a.b=1,2", 'c=x,"y,z"', "d=[1, 2]"], seeds=2, first_seed=5)
    assert len(trials) == 8
    assert trials[0].settings == {"a.b": 1, "c": "x", "d": [1, 2], "seed": 5}
    assert trials[1].settings["seed"] == 6
    assert trials[2].settings["c"] == "y,z"
    assert [trial.label for trial in trials[::2]] == [
        "a.b = 1, c = x", "a.b = 1, c = y,z", "a.b = 2, c = x", "a.b = 2, c = y,z",
    ]  # fmt: skip
    assert [trial.name for trial in trials] == [f"{n:03d}" for n in range(8)]
    assert plan([], 1, 0)[0].settings == {}


def test_too_many_trials_and_texts_without_a_key_are_refused():
    with pytest.raises(RecipeError, match="1,331 trials"):
        plan([f"{key}={','.join(map(str, range(11)))}" for key in "abc"], 1, 0)
    with pytest.raises(RecipeError, match="write KEY=VALUE"):
        plan(["cohort"], 1, 0)


def test_a_sweep_is_run_ranked_and_taken_up_again(recipe, tmp_path, monkeypatch):
    choices = ["training.learning_rate=0.5,3.0", "cohort=12"]
    done = sweep(choices, tmp_path / "s", Runs(recipe), seeds=2)
    assert len(done.scores) == 4
    assert not done.failed
    assert "4 simulations: no ε is promised" in done.cost
    paid = re.search(
        r"together ε = ([\d.]+) at δ = 10⁻⁷, where the policy pays for 2.000", done.cost
    )
    assert 2.0 < float(paid[1]) < 8.0
    ranked = combinations(done)
    assert [len(combination.trials) for combination in ranked] == [2, 2]
    assert ranked[0].perplexity <= ranked[1].perplexity
    assert ranked[0].half_width > 0
    page = write_page(done).read_text(encoding="utf-8")
    assert "training.learning_rate = 3.0" in page
    assert "<svg" in page

    began = []
    simulate = module.simulate
    monkeypatch.setattr(
        module, "simulate", lambda *a, **k: (began.append(a[1]), simulate(*a, **k))[1]
    )
    (tmp_path / "s" / "scores.json").write_text(
        json.dumps({name: done.scores[name] for name in ("000", "001", "002")})
    )
    again = sweep(choices, tmp_path / "s", Runs(recipe), seeds=2)
    assert [path.name for path in began] == ["003"]
    assert again.scores["003"] == done.scores["003"]
    with pytest.raises(ValueError, match="belongs to another sweep"):
        sweep(["cohort=12"], tmp_path / "s", Runs(recipe), seeds=2)


def test_a_bad_setting_is_refused_before_anything_runs(recipe, tmp_path):
    with pytest.raises(RecipeError, match="did you mean 'cohort'"):
        sweep(["cohrt=3,4"], tmp_path / "s", Runs(recipe))
    assert not (tmp_path / "s").exists()
    (tmp_path / "t").mkdir()
    (tmp_path / "t" / "cat.jpg").write_text("cat")
    with pytest.raises(ValueError, match="is not empty and holds no sweep"):
        sweep(["cohort=4"], tmp_path / "t", Runs(recipe))


def test_a_trial_that_cannot_run_does_not_stop_the_others(recipe, tmp_path):
    done = sweep(["rounds=1,9"], tmp_path / "s", Runs(recipe))
    assert list(done.scores) == ["000"]
    assert "exceeds the policy's 6" in done.failed["001"]
    ranked = combinations(done)
    assert ranked[1].problem.startswith("rounds = 9")
    assert math.isinf(ranked[1].perplexity)
    assert "exceeds the policy" in write_page(done).read_text(encoding="utf-8")


def test_trials_that_are_not_alike_are_all_composed(recipe, policy_file, tmp_path):
    """The first trial's policy says nothing of what the others cost."""
    rotation = '{ kind = "rotation", min_separation = 6 }'
    policies = [policy_file(participation=rotation, epsilon=epsilon) for epsilon in ("1.0", "3.0")]
    folder = tmp_path / "s"
    choices = [f"policy={policies[0]},{policies[1]},", "rounds=1"]
    done = sweep(choices, folder, Runs(recipe))
    assert len(done.scores) == 3
    assert "1 of 3 had no noise, so together ε = ∞" in done.cost
    both = cost([folder / "000", folder / "001"])
    assert both.startswith("2 simulations: no ε is promised")
    total = float(re.search(r"together ε = ([\d.]+) at δ = 10⁻⁷", both)[1])
    assert 3.0 < total < 4.0
    assert cost([folder / "absent"]) == "No trial has begun."


def test_trainings_on_people_are_no_simulations():
    def trial(guaranteed: str) -> SimpleNamespace:
        return SimpleNamespace(statements={"guaranteed": guaranteed})

    simulated, real = trial("Nothing for this very model"), trial("(2.0, 1e-6)-differential …")
    assert lead_of([simulated, simulated]).startswith("2 simulations: no ε is promised")
    assert lead_of([simulated, real]) == "2 trainings on the same users: all of them count"


def test_trials_are_tracked_as_runs_are(recipe, tmp_path, monkeypatch):
    told = []

    def simulate(scenario, path, *, track, **_):
        told.append((path.name, track))
        raise ValueError("diverged")

    monkeypatch.setattr(module, "simulate", simulate)
    sweep(["cohort=4,6"], tmp_path / "s", Runs(recipe, track=("mlflow",)))
    assert told == [("000", ("mlflow",)), ("001", ("mlflow",))]


def test_a_person_who_stops_a_trial_stops_the_sweep(recipe, tmp_path, monkeypatch):
    def stopped(scenario, path, **_):
        raise RunStopped("stopped after 1 rounds, as was asked")

    monkeypatch.setattr(module, "simulate", stopped)
    with pytest.raises(RunStopped):
        sweep(["cohort=4,6"], tmp_path / "s", Runs(recipe))
    assert not (tmp_path / "s" / "failed.json").exists()


def test_another_text_of_the_scenario_is_another_sweep(recipe, tmp_path, monkeypatch):
    own = tmp_path / "scenario.toml"
    own.write_text(recipe.read_text())

    def refused(scenario, path, **_):
        raise ValueError("diverged")

    monkeypatch.setattr(module, "simulate", refused)
    sweep(["cohort=4"], tmp_path / "s", Runs(own))
    own.write_text(recipe.read_text() + "\n# another\n")
    with pytest.raises(ValueError, match="belongs to another sweep"):
        sweep(["cohort=4"], tmp_path / "s", Runs(own))


def scored(tmp_path, **perplexities: list[float]) -> Sweep:
    trials, scores = [], {}
    for label, values in perplexities.items():
        for value in values:
            name = f"{len(trials):03d}"
            trials.append(Trial(name, {}, label))
            scores[name] = {"perplexity": value, "top3": 0.3, "keystrokes_saved": 0.4}
    return Sweep(tmp_path, tuple(trials), scores, {}, "")


@pytest.mark.parametrize(
    ("perplexities", "sentence"),
    [
        ({"a": [100.0], "b": [90.0]}, "Best on validation users: b (perplexity 90.0). One seed"),
        ({"a": [100, 101, 99], "b": [90, 91, 89]}, "lies apart from all others"),
        ({"a": [100, 90, 110], "b": [99, 89, 109]}, "Not told apart from it by these seeds: a."),
        ({"a": [100.0]}, "Best on validation users: a (perplexity 100"),
    ],
)
def test_the_verdict_counts_the_luck_of_seeds(tmp_path, perplexities, sentence):
    assert sentence in verdict(combinations(scored(tmp_path, **perplexities)))


def test_intervals_over_seeds_are_students(tmp_path):
    (found,) = combinations(scored(tmp_path, a=[1.0, 2.0, 3.0]))
    assert found.half_width == pytest.approx(4.30 / math.sqrt(3))
