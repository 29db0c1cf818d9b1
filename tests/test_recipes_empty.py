"""A path that a recipe states is never empty: no table of any recipe lets it pass."""

from __future__ import annotations

import dataclasses
import typing
from pathlib import Path

import pytest

from pfl_lm.dp.policy import Policy
from pfl_lm.phones.fleet import Fleet
from pfl_lm.recipes import RecipeError, load
from pfl_lm.run.pretrain_recipe import Pretraining
from pfl_lm.run.scenario import Scenario
from pfl_lm.text.tokenizer_recipe import TokenizerRecipe


def paths_of(kind, table=""):
    """Yield (dotted key, type) of every path in a recipe."""
    for name, expected in typing.get_type_hints(kind).items():
        key = f"{table}.{name}".strip(".")
        options = (expected, *typing.get_args(expected))
        for option in options:
            if dataclasses.is_dataclass(option):
                yield from paths_of(option, key)
        if Path in options:
            yield key, expected


FIELDS = {
    f"{kind.__name__}.{key}": expected
    for kind in (Scenario, Pretraining, TokenizerRecipe, Policy, Fleet)
    for key, expected in paths_of(kind)
}


def test_the_paths_of_recipes_are_found():
    assert {"Scenario.policy", "Scenario.population.public_text", "Pretraining.text"} <= {*FIELDS}


@pytest.mark.parametrize("blank", ["", " ", r"\t", r"a\u0000b"])
@pytest.mark.parametrize("place", FIELDS)
def test_an_empty_path_is_refused(tmp_path, place, blank):
    """Each key in a recipe of its own, so that nothing else is missing."""
    key, expected = place.rpartition(".")[2], FIELDS[place]
    recipe = dataclasses.make_dataclass("Recipe", [(key, expected)], frozen=True)
    path = tmp_path / "recipe.toml"
    listed = typing.get_origin(expected) is tuple
    value = f'["{blank}"]' if listed else f'"{blank}"'
    path.write_text(f"{key} = {value}\n", encoding="utf-8")
    with pytest.raises(RecipeError, match=f"{key} (is empty|holds an empty path); name a path"):
        load(recipe, path)
