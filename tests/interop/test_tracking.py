"""Figures that trackers are told: the public ones, once, by the real packages where they are."""

from __future__ import annotations

import json
from typing import ClassVar

import pytest

import pfl_lm
from pfl_lm.interop import tracking
from pfl_lm.interop.tracking import tracked
from pfl_lm.run.folder import RunFolder
from pfl_lm.run.progress import ProgressListener

pytestmark = pytest.mark.usefixtures("quick")
SECRET = {
    "participation": '{ kind = "poisson" }',
    "noise": '{ at = "server", kind = "gaussian" }',
}
OF_REPORTS = {"reports", "invited", "seconds", "loss", "upload_bytes", "clipped_share"}


class Kept:
    """A tracker that keeps what it is told."""

    all: ClassVar[list[Kept]] = []
    fails = False

    def __init__(self, run):
        self.run, self.lines, self.ended = run, [], None
        self.all.append(self)

    @staticmethod
    def check():
        pass

    def log(self, figures, round):
        if self.fails:
            raise ConnectionError("nobody answers\nat all")
        self.lines.append((round, dict(figures)))

    def close(self, ended):
        self.ended = ended


@pytest.fixture
def kept(monkeypatch):
    """A tracker named json, a module that is always there."""
    monkeypatch.setattr(Kept, "all", [])
    monkeypatch.setitem(tracking.TRACKERS, "json", Kept)
    return Kept


@pytest.fixture
def scenario(tiny_scenario, policy_file):
    from pfl_lm.run.scenario import EvaluationConfig

    def build(**changes):
        policy = policy_file(
            **({"participation": '{ kind = "rotation", min_separation = 6 }'} | changes)
        )
        looks = EvaluationConfig(1, users=3, final_users=3, tokens_per_user=30)
        return tiny_scenario(policy=policy, rounds=2, evaluation=looks)

    return build


def test_a_tracker_is_told_what_the_metrics_hold(kept, scenario, tmp_path):
    run = pfl_lm.simulate(scenario(), tmp_path / "run", track=["json"])
    (told,) = kept.all
    names = [set(figures) for _, figures in told.lines]
    assert [place for place, _ in told.lines] == [0, 0, 1, 1, 2, 2]
    assert {"round/loss", "round/epsilon", "round/reports"} <= names[1]
    assert {"evaluation/perplexity", "evaluation/top3"} <= names[0]
    assert told.lines[-1][1]["test/perplexity"] == run.evaluation["rows"][0]["perplexity"]
    assert told.run.parameters["scenario.training.learning_rate"] == "0.5"
    assert float(told.run.parameters["guarantee.epsilon"]) <= 2.0
    assert told.run.statements == run.statements
    assert told.ended is True


def test_where_counts_are_secret_nothing_is_told_before_the_end(kept, scenario, tmp_path):
    class Watcher(ProgressListener):
        def round_done(self, entry, rounds):
            assert kept.all == []

    folder = tmp_path / "run"
    pfl_lm.simulate(scenario(**SECRET), folder, listener=Watcher(), track=["json"])
    (told,) = kept.all
    assert RunFolder(folder).private_metrics_path.exists()
    names = {name for _, figures in told.lines for name in figures}
    assert {"round/epsilon", "round/mean_norm", "test/perplexity"} <= names
    assert not names & {f"round/{name}" for name in OF_REPORTS}


def test_a_tracker_that_fails_ends_no_run(kept, scenario, tmp_path, monkeypatch, new_watcher):
    monkeypatch.setattr(Kept, "fails", True)
    watcher = new_watcher()
    run = pfl_lm.simulate(scenario(), tmp_path / "run", listener=watcher, track=["json"])
    assert run.metrics.num_rows == 2
    lines = [line for line in watcher.lines if "json" in line]
    assert lines == ["json is told no more: ConnectionError: nobody answers"]


def test_a_resumed_run_has_the_key_of_the_one_that_stopped(kept, tmp_path):
    folder = RunFolder(tmp_path)
    manifest = {"run": "a", "statements": {}, "scenario": {"rounds": 1}}
    folder.manifest_path.write_text(json.dumps(manifest))
    for _ in range(2):
        with (
            pytest.raises(KeyboardInterrupt),
            tracked(["json"], tmp_path, ProgressListener()) as told,
        ):
            told.round_done({"kind": "round", "round": 0, "loss": 5.0}, 1)
            raise KeyboardInterrupt
    assert [each.ended for each in kept.all] == [False, False]
    assert kept.all[0].run.key == kept.all[1].run.key


def test_a_run_that_never_began_is_not_tracked(kept, scenario, tmp_path):
    (tmp_path / "cat.jpg").write_text("cat")
    with pytest.raises(ValueError, match="is not empty"):
        pfl_lm.simulate(scenario(), tmp_path, track=["json"])
    assert kept.all == []
    assert not RunFolder(tmp_path).tracking_path.exists()


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("tensorboard", "must be one of mlflow, wandb; TensorBoard needs no option"),
        ("comet", "must be one of mlflow, wandb"),
        ("nothing", r'pip install "pfl-lm\[nothing\]"'),
    ],
)
def test_a_tracker_that_is_not_there_is_one_line(scenario, tmp_path, monkeypatch, name, told):
    monkeypatch.setattr(tracking, "find_spec", lambda name: None)
    if name == "nothing":
        monkeypatch.setitem(tracking.TRACKERS, "nothing", Kept)
    with pytest.raises(ValueError, match=told):
        pfl_lm.simulate(scenario(), tmp_path / "run", track=[name])
    assert not (tmp_path / "run").exists()


# ── the real packages, offline ─────────────────────────────────────────────────────────────────


def test_mlflow_has_the_runs_figures(scenario, tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow", reason="needs the extra `mlflow`: it is not installed")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    mlflow.set_tracking_uri(f"sqlite:///{tmp_path / 'mlflow.db'}")
    run = pfl_lm.simulate(scenario(), tmp_path / "run", track=["mlflow"])
    client = mlflow.MlflowClient()
    experiment = client.get_experiment_by_name("pfl-lm")
    (found,) = client.search_runs([experiment.experiment_id])
    assert found.info.status == "FINISHED"
    history = client.get_metric_history(found.info.run_id, "round/loss")
    assert [(each.step, each.value) for each in history] == [
        (line["round"], line["loss"]) for line in run.rounds
    ]
    assert found.data.metrics["test/perplexity"] == run.evaluation["rows"][0]["perplexity"]
    assert found.data.params["scenario.rounds"] == "2"
    assert found.data.tags["guaranteed"] == run.statements["guaranteed"]

    with tracked(["mlflow"], tmp_path / "run", ProgressListener()) as told:  # as --resume does
        told.evaluated({"kind": "evaluation", "round": 2, "top3": 0.5})
    assert len(client.search_runs([experiment.experiment_id])) == 1


def test_an_mlflow_that_does_not_answer_is_one_line(scenario, tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow", reason="needs the extra `mlflow`: it is not installed")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    mlflow.set_tracking_uri("http://127.0.0.1:9")
    with pytest.raises(ValueError, match="--track mlflow: "):
        pfl_lm.simulate(scenario(), tmp_path / "run", track=["mlflow"])
    assert not (tmp_path / "run").exists()


def records(path):
    """Yield what a .wandb file holds: a log in LevelDB's format, after a header of seven bytes."""
    from wandb.proto.wandb_internal_pb2 import Record

    content, place, whole = path.read_bytes(), 7, b""
    while place + 7 <= len(content):
        if (left := 32_768 - place % 32_768) < 7:  # no record begins at the end of a block
            place += left
            continue
        size, kind = int.from_bytes(content[place + 4 : place + 6], "little"), content[place + 6]
        whole += content[place + 7 : place + 7 + size]
        place += 7 + size
        if kind in (1, 4):  # whole, or the last part
            yield Record.FromString(whole)
            whole = b""


def test_wandb_writes_the_figures_offline(scenario, tmp_path, monkeypatch):
    pytest.importorskip("wandb", reason="needs the extra `wandb`: it is not installed")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    run = pfl_lm.simulate(scenario(), tmp_path / "run", track=["wandb"])
    (path,) = tmp_path.glob("wandb/offline-run-*/run-*.wandb")
    lines, config = [], {}
    for record in records(path):
        config |= {each.key: json.loads(each.value_json) for each in record.run.config.update}
        if record.history.item:
            items = record.history.item
            lines.append(
                {each.key or ".".join(each.nested_key): json.loads(each.value_json)
                 for each in items}
            )  # fmt: skip
    losses = [line["round/loss"] for line in lines if "round/loss" in line]
    assert losses == pytest.approx([line["loss"] for line in run.rounds])
    assert lines[-1]["test/perplexity"] == pytest.approx(run.evaluation["rows"][0]["perplexity"])
    assert config["guaranteed"] == run.statements["guaranteed"]
    assert config["scenario.rounds"] == "2"


def test_wandb_that_nobody_is_logged_in_to_is_one_line(scenario, tmp_path, monkeypatch):
    pytest.importorskip("wandb", reason="needs the extra `wandb`: it is not installed")
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    with pytest.raises(ValueError, match="--track wandb: "):
        pfl_lm.simulate(scenario(), tmp_path / "run", track=["wandb"])
    assert not (tmp_path / "run").exists()
