"""A run in a program: its figures, its guarantee, how it shows itself."""

from __future__ import annotations

import numpy as np
import pytest

import pfl_lm
from pfl_lm.api import runs
from pfl_lm.distributed import ALONE
from pfl_lm.run.folder import RunFolder

pytestmark = pytest.mark.usefixtures("quick")


@pytest.fixture(scope="module")
def run(tiny_scenario, policy_file, tmp_path_factory, quick, new_watcher):
    policy = policy_file(participation='{ kind = "rotation", min_separation = 6 }')
    watcher = new_watcher()
    folder = tmp_path_factory.mktemp("api") / "run"
    done = pfl_lm.simulate(tiny_scenario(policy=policy, rounds=2), folder, listener=watcher)
    assert [entry["round"] for entry in watcher.rounds] == [0, 1]
    return done


def test_metrics_are_a_table(run):
    table = run.metrics
    assert table.num_rows == 2
    assert {"loss", "epsilon", "noise_norm", "upload_bytes"} <= set(table.column_names)
    assert table.column("round").to_pylist() == [0, 1]
    assert run.rounds[1]["loss"] == table.column("loss").to_pylist()[1]


def test_what_is_guaranteed_is_said(run):
    assert run.guarantee.epsilon <= 2.0
    assert run.statements["guaranteed"].startswith("Nothing for this very model")
    assert run.statements == RunFolder.open(run.folder).manifest()["statements"]


def test_the_model_is_evaluated_on_the_runs_own_users(run):
    figures = run.evaluate(users=3)
    assert figures.users == 3
    assert 0 < figures.perplexity < 10_000
    assert run.evaluation["rows"][0]["name"] == "federated model"


def test_a_run_shows_itself(run):
    shown = run._repr_html_()
    assert shown.startswith("<iframe srcdoc=")
    assert "sandbox" in shown
    for part in ("federated model", "ε = 2.000", "&lt;table&gt;"):
        assert part in shown
    assert "http" not in shown


def test_a_run_is_opened_again(run):
    assert pfl_lm.open_run(str(run.folder)).guarantee == run.guarantee
    assert run.report().name == "report.html"
    with pytest.raises(ValueError, match="is not a run folder"):
        pfl_lm.open_run(run.folder.parent)


def test_workers_are_processes_that_share_the_run(run, tiny_scenario, monkeypatch, tmp_path):
    def launch(count, work):
        assert count == 3
        work(ALONE)

    monkeypatch.setattr(runs, "launch", launch)
    shared = pfl_lm.simulate(tiny_scenario(rounds=2), tmp_path / "run", workers=3)
    assert shared.metrics.num_rows == 2


@pytest.mark.parametrize("workers", [0, -3, 2.0, "2", True])
def test_no_number_of_workers_returns_an_earlier_run(run, tiny_scenario, workers):
    with pytest.raises(ValueError, match="workers = "):
        pfl_lm.simulate(tiny_scenario(rounds=2), run.folder, workers=workers, overwrite=True)
    assert run.folder.joinpath("model.pt").exists()


def test_arguments_that_make_no_sense_are_refused(run, tiny_scenario, tmp_path):
    for call, told in (
        (lambda: pfl_lm.simulate({"rounds": 2}, tmp_path / "r"), "scenario: pass what"),
        (
            lambda: pfl_lm.simulate(tiny_scenario(), run.folder, resume=True, overwrite=True),
            "choose one",
        ),
        (lambda: run.evaluate(split="train"), "split = 'train'"),
        (lambda: run.evaluate(users=2.5), "users = 2.5 is refused"),
        (lambda: run.evaluate(users="3"), "users = '3' is refused"),
        (lambda: run.evaluate(users=0), "users = 0 must be at least 1"),
        (lambda: pfl_lm.compare(run, run, users=True), "users = True is refused"),
        (lambda: pfl_lm.compare(run, run, users="3"), "users = '3' is refused"),
        (lambda: pfl_lm.compare([run, run]), "name them one by one"),
        (lambda: run.export(tmp_path / "x", formats="onx"), "format 'onx'"),
        (lambda: run.suggest("how", -1), "count = -1 must be at least 1"),
        (lambda: run.suggest(None), "text = None is refused"),
    ):
        with pytest.raises(ValueError, match=told):
            call()


def test_numbers_of_numpy_are_numbers():
    settings = {"cohort": np.int64(4), "clip_norm": np.float64(0.5)}
    scenario = pfl_lm.load_scenario("chat_partial", settings)
    assert (scenario.cohort, scenario.clip_norm) == (4, 0.5)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"overwrite": "no"}, "overwrite = 'no' is refused: expected True or False"),
        ({"resume": 1}, "resume = 1 is refused"),
        ({"anyway": None}, "anyway = None is refused"),
        ({"processor": None}, "processor = 'None' must be one of 'cpu', 'cuda'"),
        ({"track": "mlfow"}, "--track mlfow: must be one of"),
        ({"listener": pfl_lm.ProgressListener}, "is a class: pass an object"),
    ],
)
def test_an_argument_of_another_type_touches_no_earlier_run(arguments, told, run, tiny_scenario):
    before = run.folder.joinpath("model.pt").read_bytes()
    with pytest.raises(ValueError, match=told):
        pfl_lm.simulate(tiny_scenario(rounds=2), run.folder, **arguments)
    assert run.folder.joinpath("model.pt").read_bytes() == before


def test_settings_of_other_types_are_refused():
    for settings, told in (
        ([("rounds", 2)], "expected values by dotted key"),
        ("rounds=2", "expected values by dotted key"),
        ({1: 2}, "expected values by dotted key"),
        ({"policy": pfl_lm.load_policy("keyboard_150")}, "policy is Policy, which no recipe can"),
        ({"model.lora": {"rank": 2j}}, "model.lora.rank is complex"),
        ({"rounds": np.arange(3)}, "rounds is ndarray"),
    ):
        with pytest.raises(ValueError, match=told):
            pfl_lm.load_scenario("chat_partial", settings)
    with pytest.raises(ValueError, match="template = None is refused"):
        pfl_lm.new_project("nowhere", None)


def test_numbers_of_numpy_are_numbers_in_tables_too():
    settings = {"server": {"kind": "sgd", "learning_rate": np.float32(0.5)}, "cohort": np.array(4)}
    scenario = pfl_lm.load_scenario("chat_partial", settings)
    assert (scenario.server.learning_rate, scenario.cohort) == (0.5, 4)
