from __future__ import annotations

import pytest

from pfl_lm.devices.local_training import LocalTraining
from pfl_lm.models.models import ModelSpec
from pfl_lm.recipes import RecipeError, load
from pfl_lm.run.scenario import EvaluationConfig, PopulationConfig, Scenario

SMALLEST = """
rounds = 3
cohort = 4
clip_norm = 0.5
{more}
[population]
kind = "synthetic"
{people}
[model]
kind = "cifg_lstm"
vocabulary_size = 300
embedding_dim = 8
hidden_dim = 8
[training]
learning_rate = 0.5
{training}
"""


def recipe(tmp_path, more="", people="", training=""):
    path = tmp_path / "scenario.toml"
    path.write_text(SMALLEST.format(more=more, people=people, training=training))
    return path


def test_the_smallest_scenario_has_stated_defaults(tmp_path):
    assert load(Scenario, recipe(tmp_path)) == Scenario(
        PopulationConfig("synthetic"),
        ModelSpec("cifg_lstm", 300, 8, hidden_dim=8),
        LocalTraining(0.5),
        rounds=3,
        cohort=4,
        clip_norm=0.5,
    )


def test_local_steps_take_the_place_of_epochs(tmp_path):
    assert load(Scenario, recipe(tmp_path)).training.epochs == 1
    stepped = load(Scenario, recipe(tmp_path, training="steps = 3")).training
    assert (stepped.epochs, stepped.steps) == (None, 3)
    path = recipe(tmp_path, training="epochs = 2")
    assert load(Scenario, path, {"training.epochs": None, "training.steps": 3}).training == stepped


def test_a_cohort_in_which_nobody_would_report_is_refused(tmp_path):
    with pytest.raises(RecipeError, match="cohort = 2 must be at least 3"):
        load(Scenario, recipe(tmp_path), {"cohort": 2})
    assert load(Scenario, recipe(tmp_path), {"cohort": 3}).cohort == 3


def test_paths_are_taken_from_the_recipes_folder(tmp_path):
    found = load(Scenario, recipe(tmp_path, 'policy = "../privacy/p.toml"\nstart = "s.pt"'))
    assert found.policy == (tmp_path / "../privacy/p.toml").resolve()
    assert found.start == tmp_path / "s.pt"


@pytest.mark.parametrize(
    ("parts", "told"),
    [
        ({"more": "round = 3"}, "did you mean 'rounds'"),
        ({"more": "rounds = 3"}, "not valid TOML"),
        ({"more": "seed = 1.5"}, "whole number"),
        ({"more": "checkpoint_every = 0"}, "checkpoint_every = 0 must be at least 1"),
        ({"more": 'secure_aggregation = "none"'}, "'ideal'"),
        ({"people": 'path = "x"'}, "path makes no sense for invented users; remove it"),
        ({"people": "users = 0"}, "users = 0 must be at least 1"),
        ({"training": "epochs = 0"}, "epochs"),
        ({"training": "epochs = 1\nsteps = 3"}, "either epochs or steps"),
        ({"training": 'loss = "hinge"'}, "'softmax', 'sampled', 'nce'"),
        ({"training": "[evaluation]\nevery = -1"}, "every = -1"),
        ({"training": '[payload]\nrows = "some"'}, "rows"),
        ({"training": '[server]\nkind = "lamb"'}, "'sgd', 'momentum', 'adam', 'yogi'"),
    ],
)
def test_a_mistake_is_one_line_with_its_key(tmp_path, parts, told):
    path = recipe(tmp_path, **parts)
    with pytest.raises(RecipeError) as caught:
        load(Scenario, path)
    assert told in str(caught.value)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("rounds", 0),
        ("cohort", 1),
        ("clip_norm", 0.0),
        ("clip_norm", float("inf")),
        ("clip_norm", float("nan")),
    ],
)
def test_impossible_numbers_are_refused_by_name(tiny_scenario, field, value):
    with pytest.raises(ValueError, match=f"{field} = "):
        tiny_scenario(**{field: value})


def test_a_store_needs_a_path_and_a_tokenizer(tiny_scenario, tmp_path):
    with pytest.raises(ValueError, match=r"path is missing: .*population build"):
        PopulationConfig("store")
    with pytest.raises(ValueError, match=r"tokenizer is missing: .*tokenizer build"):
        tiny_scenario(population=PopulationConfig("store", path=tmp_path))


@pytest.mark.parametrize(
    ("field", "least"), [("users", 1), ("final_users", 1), ("tokens_per_user", 2)]
)
def test_an_evaluation_needs_something_to_measure(field, least):
    """Of one token nothing can be predicted: it has no word before it."""
    with pytest.raises(ValueError, match=f"{field} = {least - 1} must be at least {least}"):
        EvaluationConfig(**{field: least - 1})
