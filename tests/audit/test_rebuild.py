"""The code of a run is tested under the policy that the run states, and with its own files."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from pfl_lm.audit.artifacts import RunArtifacts
from pfl_lm.audit.mechanism.rebuild import rebuild_context
from pfl_lm.run.folder import RunFolder
from tests.audit.conftest import ROTATION, run_tiny
from tests.audit.doctoring import rewrite_manifest

RECIPE = """
policy    = "policy.toml"
rounds    = 1
cohort    = 20
clip_norm = 0.5
[population]
kind            = "synthetic"
users           = 400
tokens_per_user = 40
[model]
kind            = "cifg_lstm"
vocabulary_size = 300
embedding_dim   = 16
hidden_dim      = 16
[payload]
rows = 100
[training]
learning_rate = 0.5
window        = 10
[evaluation]
every           = 0
users           = 5
final_users     = 5
tokens_per_user = 50
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """A folder with a run, its recipe and its policy."""
    folder = tmp_path_factory.mktemp("made")
    run_tiny(folder, ROTATION, rounds=1)
    (folder / "recipe.toml").write_text(RECIPE)
    return folder


@pytest.fixture
def folder(made, tmp_path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "made"))


def rebuilt(folder: Path):
    return rebuild_context(RunArtifacts.open(folder / "run"), folder / "recipe.toml")


def test_the_recipe_that_was_run_opens_the_runs_own_context(folder):
    stated = json.loads((folder / "run" / "manifest.json").read_text())
    privacy = rebuilt(folder).privacy
    assert privacy.policy is not None
    assert privacy.policy.epsilon == stated["policy"]["epsilon"]
    assert privacy.sum_multiplier == stated["noise"]["simulated_sum_multiplier"]


@pytest.mark.parametrize(
    ("old", "new", "named"),
    [
        ("epsilon = 2.0", "epsilon = 40.0", "policy.epsilon"),
        ("min_separation = 6", "min_separation = 3", "policy.participation.min_separation"),
        ("tolerated_dropout = 0.1", "tolerated_dropout = 0.2", "policy.noise.tolerated_dropout"),
        ("rounds = 12", "rounds = 12\ngroups = 4", "policy.groups"),
    ],
)
def test_a_policy_that_was_changed_since_is_refused(folder, old, new, named):
    (folder / "policy.toml").write_text(ROTATION.replace(old, new))
    with pytest.raises(ValueError, match=f"not the scenario of this run: {named} differs"):
        rebuilt(folder)


def test_a_key_that_a_doctor_took_out_of_the_stated_policy_is_missed(folder):
    (folder / "policy.toml").write_text(ROTATION + "groups = 4\n")
    rewrite_manifest(folder / "run", lambda manifest: manifest["policy"].pop("groups"))
    with pytest.raises(ValueError, match=r"policy\.groups differs"):
        rebuilt(folder)


def test_figures_that_a_person_approved_since_change_no_run(folder):
    (folder / "policy.toml").write_text(ROTATION + "[reviewed]\nepsilon = 2.0\n")
    rebuilt(folder)


@pytest.mark.parametrize(
    ("key", "value"),
    [("tokenizer.digest", "ab"), ("population.users.train", 401), ("model.start.kind", "public")],
)
def test_other_files_than_the_runs_are_refused(folder, key, value):
    def change(manifest):
        *within, last = key.split(".")
        for name in within:
            manifest = manifest[name]
        manifest[last] = value

    rewrite_manifest(folder / "run", change)
    with pytest.raises(ValueError, match=f"{key} differs"):
        rebuilt(folder)


def test_a_served_run_invites_the_devices_that_are_enrolled(folder):
    """Its scenario's population is what it evaluates on."""
    run = RunFolder(folder / "run")
    run.served_rounds_path.touch()
    rule = {"population": 5_000}
    rewrite_manifest(run.path, lambda m: m["population"]["cohort_rule"].update(rule))
    assert rebuilt(folder).privacy.rule.population == 5_000


def test_a_loss_that_a_program_registered_is_audited_from_that_program(folder):
    rewrite_manifest(folder / "run", lambda m: m["scenario"]["training"].update(loss="tempered"))
    with pytest.raises(ValueError, match="a name that a program registered is known in that"):
        rebuild_context(RunArtifacts.open(folder / "run"))
