"""Every recipe in the repository can be read, and what a person reviewed still follows."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from pfl_lm.dp.guarantee import guarantee, stale
from pfl_lm.dp.policy import Policy
from pfl_lm.recipes import load
from pfl_lm.run.pretrain_recipe import Pretraining
from pfl_lm.run.scenario import Scenario
from pfl_lm.text.tokenizer_recipe import TokenizerRecipe

ROOT = Path(__file__).resolve().parents[1]
DEMO = ROOT / "pfl_lm" / "demo"
TOKENIZERS = sorted((ROOT / "tokenizers").glob("*.toml"))
POLICIES = sorted((ROOT / "privacy").rglob("*.toml"))
SIMULATIONS = sorted((ROOT / "simulations").glob("*.toml"))
SCENARIOS = [p for p in SIMULATIONS if "text_is" not in p.read_text(encoding="utf-8")]
PRETRAININGS = sorted(set(SIMULATIONS) - set(SCENARIOS))


def name(path: Path) -> str:
    return path.name


def test_there_are_recipes_of_every_kind():
    assert all((TOKENIZERS, POLICIES, SCENARIOS, PRETRAININGS))


@pytest.mark.parametrize("path", TOKENIZERS, ids=name)
def test_tokenizers(path):
    assert load(TokenizerRecipe, path).size >= 10_000


@pytest.mark.parametrize("path", POLICIES, ids=name)
def test_policies_are_reviewed_and_the_review_holds(path):
    policy = load(Policy, path)
    assert policy.reviewed.epsilon is not None
    assert policy.reviewed.noise_multiplier is not None
    found = guarantee(policy)
    assert stale(policy.reviewed, found) == []
    assert found.epsilon <= policy.epsilon * (1 + 1e-9)


@pytest.mark.parametrize("path", [*SCENARIOS, DEMO / "scenario.toml"], ids=name)
def test_scenarios_fit_their_policies(path):
    scenario = load(Scenario, path)
    assert scenario.description
    if scenario.policy is None:
        return
    policy = load(Policy, scenario.policy)
    assert scenario.rounds <= policy.rounds
    assert scenario.cohort <= policy.report_goal
    assert not scenario.reproducible
    follows = guarantee(policy)
    assert follows.epsilon == follows.epsilon_unamplified
    if scenario.policy.parent.name == "trusted":  # the aggregator is, and the policy says so
        assert policy.accepted_server_epsilon == follows.epsilon_server == math.inf
    else:
        assert follows.epsilon_server == follows.epsilon


@pytest.mark.parametrize("path", PRETRAININGS, ids=name)
def test_pretrainings(path):
    recipe = load(Pretraining, path)
    assert recipe.description
    assert recipe.model.vocabulary_size >= 30_000


@pytest.mark.parametrize(
    "path", [*TOKENIZERS, *POLICIES, *ROOT.glob("simulations/**/*.toml")], ids=name
)
def test_no_recipe_leans_on_files_beside_the_clone(path):
    """Paths stay in the clone; words come from a package that installs with this one."""
    text = path.read_text(encoding="utf-8")
    assert "../.." not in text
    assert "shared/" not in text
    if path in TOKENIZERS:
        assert load(TokenizerRecipe, path).source.kind == "wordfreq"


def test_the_demos_policy_can_be_kept():
    policy = load(Policy, DEMO / "policy.toml")
    assert guarantee(policy).epsilon <= policy.epsilon
