"""Searches by Optuna: ranges, the same suggestions after a kill, pruning, and what is counted."""

from __future__ import annotations

import json
import math
import sys
from statistics import median

import pytest

from pfl_lm.api.sweep import folder as runs_module
from pfl_lm.api.sweep.folder import Runs
from pfl_lm.api.sweep.plan import Trial
from pfl_lm.api.sweep.pruning import LEAST_TRIALS, Medians
from pfl_lm.api.sweep.results import combinations
from pfl_lm.api.sweep.space import Range, Space
from pfl_lm.cli import main
from pfl_lm.run.divergence import Diverged

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
every = 1
users = 3
final_users = 3
"""
RATE = "training.learning_rate=0.1:10:log"


@pytest.fixture(scope="module")
def recipe(tmp_path_factory, policy_file):
    path = tmp_path_factory.mktemp("search") / "scenario.toml"
    policy = policy_file(participation='{ kind = "rotation", min_separation = 6 }')
    path.write_text(SCENARIO.format(policy=policy), encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (RATE, ("training.learning_rate", 0.1, 10.0, True, False)),
        ("cohort=20:100", ("cohort", 20.0, 100.0, False, True)),
        ("clip_norm=1:2", ("clip_norm", 1.0, 2.0, False, False)),
    ],
)
def test_ranges_are_read(text, expected):
    found = Range.parse(text)
    assert (found.key, found.low, found.high, found.log, found.whole) == expected


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("training.learning_rate", "write KEY=LOW:HIGH"),
        ("training.learning_rate=0.1", "write KEY=LOW:HIGH"),
        ("training.learning_rate=a:b", "write KEY=LOW:HIGH"),
        ("training.learning_rate=0.1:1:lin", "write KEY=LOW:HIGH"),
        ("training.learning_rate=1:nan", "write KEY=LOW:HIGH"),
        ("training.learning_rate=1:1", "must be below the second"),
        ("training.learning_rate=0:1:log", "begins above 0"),
        ("cohort=1.5:3", "takes whole numbers"),
        ("training.learning_rte=1:2", "did you mean"),
        ("epochs=1:2", "write training.epochs=LOW:HIGH"),
        ("server.kind=1:2", "takes no number; name values by --set server.kind=A,B"),
    ],
)
def test_a_mistake_in_a_range_is_said(text, told):
    with pytest.raises(ValueError, match=told.replace("(", r"\(")):
        Range.parse(text)


@pytest.mark.parametrize(
    ("ranges", "choices", "told"),
    [
        ([], ["cohort=4"], "needs something to vary"),
        ([RATE], ["training.learning_rate=1,2"], "is stated twice"),
        ([RATE, RATE], [], "is stated twice"),
        (["seed=1:9"], [], "the luckiest seed"),
        ([RATE], ["seed=1,2"], "the luckiest seed"),
    ],
)
def test_a_space_that_makes_no_sense_is_refused(ranges, choices, told):
    with pytest.raises(ValueError, match=told):
        Space.parse(ranges, choices)


def test_suggestions_become_settings_that_a_person_can_type():
    space = Space.parse([RATE, "cohort=2:9"], ["server.kind=sgd,adam", "rounds=2", "policy="])
    (trial,) = space.trials(
        {"training.learning_rate": 0.123456, "cohort": 4, "server.kind": "adam"}, 7, 1, 3
    )
    assert trial == Trial(
        "007",
        {"rounds": 2, "policy": None, "server.kind": "adam", "training.learning_rate": 0.1235,
         "cohort": 4, "seed": 3},
        "training.learning_rate = 0.1235, cohort = 4, server.kind = adam",
    )  # fmt: skip
    corners = list(space.corners())
    assert {corner["cohort"] for corner in corners} == {2, 9}
    assert {corner["server.kind"] for corner in corners} == {"sgd", "adam"}


def test_the_median_rule_stops_what_is_worse(tmp_path):
    def run(name, *perplexities):
        folder = tmp_path / name
        folder.mkdir()
        lines = [
            {"kind": "evaluation", "round": place, "perplexity": value}
            for place, value in enumerate(perplexities)
        ]
        (folder / "metrics.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines))
        return folder

    earlier = [run(f"{place}", 300.0, 100.0 + place, 50.0) for place in range(LEAST_TRIALS)]
    medians = Medians.of(earlier, rounds=2)
    assert medians.perplexity == {0: 300.0, 1: 101.5}  # nobody is stopped after the last round
    assert medians.reason(run("better", 300.0, 101.0)) == ""
    assert medians.reason(run("worse", 300.0, 102.0)).startswith("stopped after 1 rounds")
    assert Medians.of(earlier[1:], rounds=2).perplexity == {}


# ── with Optuna, and with runs that are not run ────────────────────────────────────────────────


@pytest.fixture
def optuna():
    return pytest.importorskip("optuna", reason="needs the extra `search`: optuna is not installed")


@pytest.fixture
def landscape(monkeypatch):
    """Runs are not run: perplexity is least at a rate of 1, and a small clip norm diverges."""
    asked = []

    class Done:
        def __init__(self, perplexity):
            self.perplexity, self.top3, self.keystrokes_saved = perplexity, 0.3, 0.4

        def evaluate(self, **_):
            return self

    def simulate(scenario, path, **_):
        rate = scenario.training.learning_rate
        asked.append((path.name, rate, scenario.seed))
        if scenario.clip_norm < 0.2:
            raise Diverged("diverged: lower training.learning_rate")
        return Done(100 + 20 * abs(rate - 1) + (scenario.server.kind == "adam") + scenario.seed)

    monkeypatch.setattr(runs_module, "simulate", simulate)
    return asked


def search(space, folder, recipe, trials, **budget):
    from pfl_lm.api.sweep.search import Budget
    from pfl_lm.api.sweep.search import search as run_search

    return run_search(space, folder, Runs(recipe), Budget(trials, **budget))


def test_a_search_finds_the_valley(optuna, landscape, recipe, tmp_path):
    space = Space.parse([RATE], ["server.kind=sgd,adam"])
    done = search(space, tmp_path / "s", recipe, 20)
    best = combinations(done)[0]
    assert best.perplexity < 108  # a third of random rates lie there
    away = [abs(math.log10(rate)) for _, rate, _ in landscape]
    assert median(away[12:]) < 0.4  # of rates at random, 0.5
    assert next(iter(done.importance)) == "training.learning_rate"
    assert sum(done.importance.values()) == pytest.approx(1)


def test_a_search_that_was_killed_goes_on_with_the_same_suggestions(
    optuna, landscape, recipe, tmp_path, monkeypatch
):
    space = Space.parse([RATE, "clip_norm=0.1:1"], ["server.kind=sgd,adam"])
    whole = search(space, tmp_path / "whole", recipe, 14)
    assert whole.failed  # some had a small clip norm
    names = [name for name, *_ in landscape]
    rates = [rate for _, rate, _ in landscape]
    landscape.clear()
    simulate = runs_module.simulate

    for fatal in (0, 5, 13):  # killed as the run of this trial began

        def killed(scenario, path, fatal=fatal, **more):
            if path.name == f"{fatal:03d}":
                raise KeyboardInterrupt
            return simulate(scenario, path, **more)

        monkeypatch.setattr(runs_module, "simulate", killed)
        with pytest.raises(KeyboardInterrupt):
            search(space, tmp_path / "killed", recipe, 14)
    monkeypatch.setattr(runs_module, "simulate", simulate)
    again = search(space, tmp_path / "killed", recipe, 14)
    assert [name for name, *_ in landscape] == names  # each ran once
    assert [rate for _, rate, _ in landscape] == rates
    assert (again.trials, again.scores, again.failed) == (whole.trials, whole.scores, whole.failed)
    assert again.importance == whole.importance

    landscape.clear()
    more = search(space, tmp_path / "killed", recipe, 16)
    assert len(landscape) == 2
    assert more.trials[:14] == whole.trials
    with pytest.raises(ValueError, match="belongs to another sweep"):
        search(Space.parse([RATE], []), tmp_path / "killed", recipe, 14)


def test_a_suggestion_is_kept_before_its_run_begins(
    optuna, landscape, recipe, tmp_path, monkeypatch
):
    """Another version of Optuna may suggest another number: the begun one is gone on with."""
    space, simulate = Space.parse([RATE], []), runs_module.simulate

    def killed(scenario, path, **_):
        raise KeyboardInterrupt

    monkeypatch.setattr(runs_module, "simulate", killed)
    with pytest.raises(KeyboardInterrupt):
        search(space, tmp_path / "s", recipe, 1)
    monkeypatch.setattr(runs_module, "simulate", simulate)
    monkeypatch.setattr("pfl_lm.api.sweep.search.stream", None)  # nothing is suggested again
    assert search(space, tmp_path / "s", recipe, 1).scores


def test_seeds_are_averaged_and_a_choice_is_not_run_twice(optuna, landscape, recipe, tmp_path):
    space = Space.parse([], ["server.kind=sgd,adam"])
    done = search(space, tmp_path / "s", recipe, 6, seeds=2)
    assert len(landscape) == 4  # two kinds, two seeds
    ranked = combinations(done)
    assert [each.label for each in ranked] == ["server.kind = sgd", "server.kind = adam"]
    assert ranked[0].half_width > 0


def test_fewer_trials_than_before_forget_none(optuna, landscape, recipe, tmp_path):
    space = Space.parse([RATE], [])
    three = search(space, tmp_path / "s", recipe, 3)
    landscape.clear()
    one = search(space, tmp_path / "s", recipe, 1)
    assert (one.trials, one.scores, one.cost) == (three.trials, three.scores, three.cost)
    assert three.cost.startswith("3 ")
    assert not landscape


def test_what_no_trial_could_run_is_refused_before_anything(optuna, recipe, tmp_path):
    for ranges, told in (
        (["cohort=0:9"], "cohort = 0"),
        (["training.learning_rate=-1:1"], "learning_rate"),
    ):
        with pytest.raises(ValueError, match=told):
            search(Space.parse(ranges, []), tmp_path / "s", recipe, 2)
    with pytest.raises(ValueError, match="2,000 runs"):
        search(Space.parse([RATE], []), tmp_path / "s", recipe, 1000, seeds=2)
    still = Space.parse([RATE], ["evaluation.every=0"])
    with pytest.raises(ValueError, match="--prune needs figures"):
        search(still, tmp_path / "s", recipe, 2, prune=True)
    with pytest.raises(ValueError, match="rounds vary"):
        search(Space.parse(["rounds=1:2"], []), tmp_path / "s", recipe, 2, prune=True)
    assert not (tmp_path / "s").exists()


# ── with real runs ─────────────────────────────────────────────────────────────────────────────


def test_a_search_runs_prunes_and_counts(optuna, recipe, tmp_path, monkeypatch, capsys, quick):
    folder = tmp_path / "s"
    words = ["sweep", recipe, "-o", folder, "--search", "--range", RATE, "--trials", "3", "--prune"]
    monkeypatch.setattr(
        Medians, "of", lambda trials, rounds: Medians({1: 1.0} if trials else {})
    )  # every trial but the first is worse
    monkeypatch.setattr(sys, "argv", ["pfl-lm", *map(str, words)])
    with pytest.raises(SystemExit) as ended:
        main()
    assert not ended.value.code
    shown = capsys.readouterr()
    assert "trial 3 of 3: training.learning_rate = " in shown.err
    stopped = json.loads((folder / "failed.json").read_text())
    assert list(stopped) == ["001", "002"]
    assert all(text.startswith("stopped after 1 rounds") for text in stopped.values())
    assert list(json.loads((folder / "scores.json").read_text())) == ["000"]
    said = " ".join(shown.out.split())
    assert "3 simulations: no ε is promised" in said
    assert "all trials would count: together ε = " in said
    assert "at random" not in said  # no bound is known for trials that follow from earlier ones
    page = (folder / "sweep.html").read_text(encoding="utf-8")
    assert "search, 1 of 3 trials" in page
    study = optuna.load_study(study_name="pfl-lm", storage=f"sqlite:///{folder / 'study.sqlite'}")
    assert len(study.trials) == 3


@pytest.mark.parametrize("words", [["--range", RATE], ["--trials", "3"], ["--prune"]])
def test_options_of_a_search_need_it(recipe, tmp_path, monkeypatch, capsys, words):
    monkeypatch.setattr(sys, "argv", ["pfl-lm", "sweep", str(recipe), "-o", "s", *words])
    with pytest.raises(SystemExit):
        main()
    assert "add --search" in capsys.readouterr().err


def test_without_optuna_one_line_names_the_extra(recipe, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    words = ["sweep", recipe, "-o", tmp_path / "s", "--search", "--range", RATE]
    monkeypatch.setattr(sys, "argv", ["pfl-lm", *map(str, words)])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    err = capsys.readouterr().err
    assert 'pip install "pfl-lm[search]"' in err
    assert err.count("\n") == 1
    assert not (tmp_path / "s").exists()


def test_the_page_of_a_search_shows_its_history(tmp_path):
    from pfl_lm.api.sweep.run import Sweep

    trials = tuple(Trial(f"{n:03d}", {}, f"rate = {n}") for n in range(4))
    scores = {
        trial.name: {"perplexity": perplexity, "top3": 0.3, "keystrokes_saved": 0.4}
        for trial, perplexity in zip(trials, (100.0, 99.0, 1e20), strict=False)
    }
    found = Sweep(tmp_path, trials, scores, {"003": "diverged"}, "", {"rate": 1.0})
    import pfl_lm.api.sweep.page as module

    drawn = module._history(module.in_order(found))
    assert drawn[1].y == [100.0, 99.0]
    assert drawn[0].y == [100.0, None, 99.0, None]  # and none at 10²⁰
    assert module.table(module.combinations(found))[2][1] == "10²⁰"
