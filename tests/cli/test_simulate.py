"""`pfl-lm simulate` and `pfl-lm pretrain`: what a person sees, and what a mistake leaves behind."""

from __future__ import annotations

import pytest

from pfl_lm.dp.ledger import verify
from pfl_lm.files import sole_writer
from pfl_lm.run.folder import RunFolder

pytestmark = pytest.mark.usefixtures("quick")

SCENARIO = """
description = "tiny [/people] run"
policy = "{policy}"
rounds = {rounds}
cohort = 6
clip_norm = 0.5
seed = 3
{more}
[population]
kind = "synthetic"
users = 200
tokens_per_user = 40
[model]
kind = "cifg_lstm"
vocabulary_size = {vocabulary_size}
embedding_dim = 8
hidden_dim = 8
[training]
learning_rate = 0.5
window = 8
max_tokens = 64
[evaluation]
every = 2
users = 3
final_users = 3
"""


@pytest.fixture
def recipe(tmp_path, policy_file):
    """A function that writes a scenario."""

    def write(**changes):
        fields = {"policy": policy_file(), "rounds": 4, "more": "", "vocabulary_size": 300}
        path = tmp_path / "scenario.toml"
        path.write_text(SCENARIO.format(**(fields | changes)), encoding="utf-8")
        return path

    return write


def contents(folder):
    return {p: p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_a_run_ends_with_a_table_both_statements_and_the_page(pfl_lm, recipe, tmp_path):
    run = tmp_path / "run"
    status, out, err = pfl_lm("simulate", recipe(), "--output", run)
    assert status == 0
    for part in ("federated model", "public bigram", "Guaranteed", "Nothing for this very model",
                 "Simulated", "A deployment under the policy", "report.html"):  # fmt: skip
        assert part in out
    assert err.startswith("tiny [/people] run\n")
    assert "round 4 of 4: loss" in err
    assert (run / "report.html").read_text().startswith("<!doctype html>")

    before = contents(run)
    status, _, err = pfl_lm("simulate", recipe(), "--output", run)
    assert status == 2
    assert err.splitlines()[-1].endswith("choose another folder, --overwrite or --resume")
    assert contents(run) == before
    # A mistake in the new scenario must not cost the earlier run.
    for mistake in ({"rounds": 7}, {"vocabulary_size": 100}, {"more": 'start = "absent.pt"'}):
        status, _, err = pfl_lm("simulate", recipe(**mistake), "--output", run, "--overwrite")
        assert status == 2
        assert contents(run) == before
    status, _, err = pfl_lm("simulate", recipe(rounds=3), "--output", run, "--resume")
    assert status == 2
    assert "another scenario" in err
    assert contents(run) == before

    assert pfl_lm("simulate", recipe(rounds=3), "--output", run, "--overwrite")[0] == 0
    assert RunFolder.open(run).manifest()["scenario"]["rounds"] == 3
    kinds = [entry["kind"] for entry in verify(run / "ledger.jsonl")]
    assert len([kind for kind in kinds if kind in ("round", "abandoned")]) == 3
    assert kinds[-1] == "end"


def test_ctrl_c_speaks_of_rounds_of_its_own_run_alone(pfl_lm, recipe, tmp_path, monkeypatch):
    """An earlier run's rounds in the folder are not what --resume would go on with."""
    run = tmp_path / "run"
    assert pfl_lm("simulate", recipe(), "--output", run)[0] == 0

    def stopped(*_arguments, **_named):
        raise KeyboardInterrupt

    monkeypatch.setattr("pfl_lm.run.simulate.open_run", stopped)
    for more, says in (("--overwrite", False), ("--resume", True)):
        _, _, err = pfl_lm("simulate", recipe(), "--output", run, more)
        assert ("keeps 4 of 4 rounds" in err) == says


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"rounds": 7}, "rounds = 7 exceeds the policy's 6"),
        ({"vocabulary_size": 100}, "needs at least 200"),
        ({"more": "rounds = 3"}, "not valid TOML"),
        ({"more": "cohorts = 3"}, "did you mean 'cohort'?"),
        ({"more": 'start = "absent.pt"'}, "no such model file"),
        ({"policy": "absent.toml"}, "no such recipe"),
    ],
)
def test_a_mistake_is_one_line_and_leaves_nothing(pfl_lm, recipe, tmp_path, changes, told):
    path = recipe(**changes)
    status, out, err = pfl_lm("simulate", path, "--output", tmp_path / "run")
    assert status == 2
    assert out == ""
    last = err.splitlines()[-1]
    assert last.startswith("pfl-lm: ")
    assert told in last
    assert "Traceback" not in err
    assert list(tmp_path.iterdir()) == [path]


def test_other_peoples_files_are_never_overwritten(pfl_lm, recipe, tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    (folder / "cat.jpg").write_text("cat")
    for option in ("--overwrite", "--resume"):
        status, _, err = pfl_lm("simulate", recipe(), "--output", folder, option)
        assert status == 2
        assert "is not a run folder" in err
    assert (folder / "cat.jpg").read_text() == "cat"


def test_a_demo_deletes_nothing_that_is_not_its_own(pfl_lm, tmp_path):
    folder = tmp_path / "demo.start"
    folder.mkdir()
    (folder / "cat.jpg").write_text("cat")
    status, _, err = pfl_lm("demo", "--output", tmp_path / "demo")
    assert (status, err.count("\n")) == (2, 1)
    assert "holds other files than a demo's" in err
    assert (folder / "cat.jpg").read_text() == "cat"


def test_resume_and_overwrite_exclude_each_other(pfl_lm, recipe, tmp_path):
    status, _, err = pfl_lm("simulate", recipe(), "-o", tmp_path / "r", "--resume", "--overwrite")
    assert (status, err.count("\n")) == (2, 1)
    assert "choose one" in err


PRETRAINING = """
tokenizer = "tokenizer"
text = "text"
text_is = "public"
batch_size = 8
window = 10
candidates = 50
[model]
kind = "cifg_lstm"
vocabulary_size = {vocabulary_size}
embedding_dim = 8
hidden_dim = 8
"""


def test_pretraining_writes_a_model_that_a_run_starts_from(pfl_lm, recipe, tmp_path):
    from pfl_lm.text.synthetic.population import (
        SyntheticPopulation,
        synthetic_tokenizer,
        write_public_store,
    )

    synthetic_tokenizer(300).save(tmp_path / "tokenizer")
    people = SyntheticPopulation({"train": 1, "public": 40}, 300, 40, seed=1)
    write_public_store(people, tmp_path / "text")
    path = tmp_path / "pretrain.toml"
    path.write_text(PRETRAINING.format(vocabulary_size=301))
    status, _, err = pfl_lm("pretrain", path, "--output", tmp_path / "start.pt")
    assert status == 2
    assert "make them equal" in err.splitlines()[-1]
    assert not (tmp_path / "start.pt").exists()

    path.write_text(PRETRAINING.format(vocabulary_size=300))
    status, out, err = pfl_lm("pretrain", path, "--output", tmp_path / "start.pt")
    assert status == 0
    assert out.startswith(f"wrote {tmp_path / 'start.pt'}")
    assert "pretraining pretrain: step" in err
    status, _, err = pfl_lm("pretrain", path, "--output", tmp_path / "start.pt")
    assert (status, err.count("\n")) == (2, 1)
    assert "exists already" in err

    with sole_writer(tmp_path / "second.pt"):  # as another training of that name holds it
        status, _, err = pfl_lm("pretrain", path, "--output", tmp_path / "second.pt")
    assert status == 2
    assert "another process is writing" in err

    scenario = recipe(more='start = "start.pt"')
    status, out, _ = pfl_lm("simulate", scenario, "--output", tmp_path / "run")
    assert status == 0
    assert "public pretraining" in out


def test_two_demos_do_not_share_a_folder(pfl_lm, tmp_path):
    with sole_writer(tmp_path / "demo"):  # as another demo holds it
        status, _, err = pfl_lm("demo", "--output", tmp_path / "demo")
    assert status == 2
    assert "another process is writing" in err


def test_a_demo_names_only_options_that_it_has(pfl_lm, tmp_path):
    (tmp_path / "demo").mkdir()
    (tmp_path / "demo" / "manifest.json").write_text("{}")
    status, _, err = pfl_lm("demo", "--output", tmp_path / "demo")
    assert status == 2
    assert "--overwrite" in err
    assert "--resume" not in err
