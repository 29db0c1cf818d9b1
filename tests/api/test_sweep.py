"""Sweeps: all combinations, taken up again, ranked on validation users, with their cost said."""

from __future__ import annotations

import json
import math
import re
import shutil
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
from pfl_lm.audit.artifacts import RunArtifacts
from pfl_lm.recipes import RecipeError
from pfl_lm.run.control import RunStopped
from pfl_lm.run.divergence import Diverged
from pfl_lm.run.look import Refused

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
    both = cost([RunArtifacts.open(folder / name) for name in ("000", "001")])
    assert both.startswith("2 simulations: no ε is promised")
    total = float(re.search(r"together ε = ([\d.]+) at δ = 10⁻⁷", both)[1])
    assert 3.0 < total < 4.0
    assert cost([]) == "No trial has begun."


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


def test_every_trial_that_began_counts_also_without_its_folder(recipe, tmp_path):
    folder, choices = tmp_path / "s", ["training.learning_rate=0.5,3.0", "rounds=1"]
    together = re.compile(r"together ε = ([\d.]+|∞)")
    paid = together.search(sweep(choices, folder, Runs(recipe)).cost)[1]
    shutil.rmtree(folder / "000")
    gone = sweep(choices, folder, Runs(recipe))
    assert sorted(gone.scores) == ["000", "001"]
    assert together.search(gone.cost)[1] == paid
    assert gone.cost.startswith("2 trainings")
    assert write_page(gone).is_file()

    shutil.rmtree(folder / "001")
    (folder / "scores.json").unlink()
    again = sweep(choices, folder, Runs(recipe))  # both were trained twice
    assert again.cost.startswith("4 ")
    assert float(together.search(again.cost)[1]) > float(paid)

    (folder / "begun.json").unlink()
    shutil.rmtree(folder / "000")
    assert together.search(sweep(choices, folder, Runs(recipe)).cost)[1] == "∞"


def test_one_trial_is_no_plural(recipe, tmp_path):
    done = sweep(["rounds=1"], tmp_path / "s", Runs(recipe))
    assert done.cost.startswith("1 simulation: no ε is promised for its model. Had real users")


def test_a_trial_that_was_refused_before_it_began_does_not_count(recipe, tmp_path):
    done = sweep(["rounds=9"], tmp_path / "s", Runs(recipe))
    assert done.failed
    assert done.cost == "No trial has begun."


def test_only_a_trial_that_has_ended_is_not_tried_again(recipe, tmp_path, monkeypatch):
    folder, asked = tmp_path / "s", []
    problems = {"000": Diverged("lost"), "001": Refused("drowned"), "002": ValueError("a lock")}

    def simulate(scenario, path, **_):
        asked.append(path.name)
        raise problems[path.name]

    monkeypatch.setattr(module, "simulate", simulate)
    first = sweep(["cohort=4,5,6"], folder, Runs(recipe))
    assert first.failed == {"000": "lost", "001": "drowned", "002": "a lock"}
    asked.clear()
    assert sweep(["cohort=4,5,6"], folder, Runs(recipe)).failed == first.failed
    assert asked == ["002"]


def test_a_trial_that_was_killed_as_it_began_is_begun_again(recipe, tmp_path):
    folder = tmp_path / "s"
    sweep(["rounds=1,9"], folder, Runs(recipe))
    (folder / "scores.json").unlink()
    run = folder / "000"
    genesis = run.joinpath("ledger.jsonl").read_text().splitlines(keepends=True)[0]
    shutil.rmtree(run)
    (run / "checkpoints").mkdir(parents=True)
    (run / "ledger.jsonl").write_text(genesis)
    assert list(sweep(["rounds=1,9"], folder, Runs(recipe)).scores) == ["000"]

    (folder / "001").mkdir()
    (folder / "001" / "cat.jpg").write_text("cat")
    sweep(["rounds=1,9"], folder, Runs(recipe))
    assert (folder / "001" / "cat.jpg").exists()


def test_a_sweep_runs_once_at_a_time(recipe, tmp_path):
    folder = tmp_path / "s"
    with (
        module.SweepFolder.open(folder, {}),
        pytest.raises(ValueError, match="another process runs the sweep"),
    ):
        sweep(["rounds=1"], folder, Runs(recipe))


def test_a_trial_without_a_finite_figure_has_diverged(recipe, tmp_path, monkeypatch):
    def simulate(scenario, path, **_):
        figures = SimpleNamespace(perplexity=math.inf, top3=0.1, keystrokes_saved=0.1)
        return SimpleNamespace(evaluate=lambda **_: figures)

    monkeypatch.setattr(module, "simulate", simulate)
    for _ in range(2):
        done = sweep(["cohort=4"], tmp_path / "s", Runs(recipe), seeds=2)
        assert not done.scores
        assert "diverged in its last round" in done.failed["000"]
    (tmp_path / "s" / "scores.json").write_text('{"000": {"perplexity": 1}}')
    with pytest.raises(ValueError, match=r"scores\.json is damaged: 000 lacks one of perplexity"):
        sweep(["cohort=4"], tmp_path / "s", Runs(recipe), seeds=2)


def test_a_policy_that_is_missing_is_said_before_anything_runs(recipe, tmp_path):
    with pytest.raises(ValueError, match=r"gone\.toml"):
        sweep([f"policy={tmp_path / 'gone.toml'}"], tmp_path / "s", Runs(recipe))
    assert not (tmp_path / "s").exists()


def test_seeds_follow_from_the_stated_one():
    assert [t.settings["seed"] for t in plan(["seed=9"], seeds=2, first_seed=0)] == [9, 10]
    with pytest.raises(RecipeError, match="set seed to the first of them"):
        plan(["seed=1,2"], seeds=2, first_seed=0)
    with pytest.raises(RecipeError, match="expected a whole number"):
        plan(["seed=x"], seeds=2, first_seed=0)


def test_equal_values_are_one():
    assert [t.settings for t in plan(["a.b=1,1.0,1,2", "c=true,1"], 1, 0)] == [
        {"a.b": 1, "c": True}, {"a.b": 1, "c": 1}, {"a.b": 2, "c": True}, {"a.b": 2, "c": 1},
    ]  # fmt: skip


def test_another_text_of_the_scenario_is_another_sweep(recipe, tmp_path, monkeypatch):
    own = tmp_path / "scenario.toml"
    own.write_text(recipe.read_text())

    def refused(scenario, path, **_):
        raise Diverged("diverged")

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
        ({"a": [100, 101, 100.5], "b": [100.6]}, "Not told apart from it by these seeds: b."),
        ({"a": [100.0], "b": [120, 121, 119]}, "Only one of its seeds ended"),
        ({"a": [100, math.nan, math.inf], "b": [120, 121, 119]}, "Only one of its seeds ended"),
    ],
)
def test_the_verdict_counts_the_luck_of_seeds(tmp_path, perplexities, sentence):
    assert sentence in verdict(combinations(scored(tmp_path, **perplexities)))


def test_intervals_over_seeds_are_students(tmp_path):
    (found,) = combinations(scored(tmp_path, a=[1.0, 2.0, 3.0]))
    assert found.half_width == pytest.approx(4.30 / math.sqrt(3))
