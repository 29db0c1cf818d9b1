from __future__ import annotations

import re
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Literal, get_args, get_type_hints

import pytest

import pfl_lm.recipes.names
from pfl_lm.devices.local_training import LocalTraining
from pfl_lm.models.spec import ModelSpec
from pfl_lm.payload.plan import PayloadPlan
from pfl_lm.recipes import (
    RENAMED,
    RENAMED_VALUES,
    RecipeError,
    find,
    load,
    names_recipe,
    parse_settings,
    shipped,
)
from pfl_lm.run.scenario import Scenario


@dataclass(frozen=True)
class Inner:
    kind: Literal["a", "b"]
    size: int = 3

    def __post_init__(self) -> None:
        if self.size < 0:
            raise ValueError(f"size = {self.size} must not be negative")


@dataclass(frozen=True)
class Outer:
    rate: float
    name: str = "x"
    source: Path | None = None
    parts: tuple[str, ...] = ()
    inner: Inner | None = None
    inners: Inner = field(default_factory=lambda: Inner("a"))
    other: Path | None = field(default=None, metadata={"recipe": True})


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "recipe.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_a_recipe_becomes_its_dataclass(tmp_path):
    text = 'rate = 2\nsource = "../data/x"\nparts = ["p", "q"]\n[inner]\nkind = "b"\nsize = 7\n'
    outer = load(Outer, written(tmp_path, text))
    assert outer == Outer(
        2.0, source=(tmp_path / "../data/x").resolve(), parts=("p", "q"), inner=Inner("b", 7)
    )


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("rate = 1.0\nrat = 2", r"rat is not a key .*did you mean 'rate'"),
        ("rate = 1.0\nzzz = 2", r"zzz is not a key .*expected one of rate, name"),
        ("name = 'x'", r"rate is missing \(expected a number\)"),
        ("rate = 'fast'", r"rate = 'fast' is refused: expected a number"),
        ("rate = 1.0\nparts = 'p'", r"parts = 'p' is refused: expected a list of text"),
        ("rate = 1.0\n[inner]\nkind = 'c'", r"inner.kind = 'c' is refused: .*'a', 'b'"),
        ("rate = 1.0\n[inner]\nkind = 'a'\nsize = 1.5", r"inner.size = 1.5 .*whole number"),
        ("rate = 1.0\n[inner]\nkind = 'a'\nsize = -1", r"\[inner\] size = -1 must not be"),
        ("rate = 1.0\ninner = 3", r"inner = 3 is refused: expected a table with kind, size$"),
        ("rate = 1.0\ninner = 'a'", r"inner = 'a' is refused: expected a table with kind, size$"),
        ("rate = 1.0\nsource = ''", r"source is empty; name a path, or leave source out"),
        ("rate = 1.0\nother = ''", r"other is empty; name a path, or leave other out"),
        ("rate = ", r"not valid TOML"),
    ],
)
def test_a_mistake_is_named_with_file_and_key(tmp_path, text, told):
    path = written(tmp_path, text)
    with pytest.raises(RecipeError, match=told) as caught:
        load(Outer, path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("value", ["true", "4.0", "1.0"])
def test_a_choice_among_numbers_is_a_whole_number(tmp_path, value):
    """``weight_bits = true`` would train in one bit, as true equals 1."""
    path = written(tmp_path, f"weight_bits = {value}\nlearning_rate = 1.0")
    told = rf"weight_bits = {value.title()} is refused: expected one of 1, 4, 8"
    with pytest.raises(RecipeError, match=told):
        load(LocalTraining, path)
    with pytest.raises(RecipeError, match=f"--set: {told}"):
        load(
            LocalTraining,
            written(tmp_path, "learning_rate = 1.0"),
            parse_settings([f"weight_bits={value}"]),
        )


def problems_of(kind, path, settings=None) -> list[str]:
    with pytest.raises(RecipeError) as caught:
        load(kind, path, settings)
    return [problem.removeprefix(f"{path}: ") for problem in caught.value.problems]


def test_one_reading_names_every_mistake(tmp_path):
    text = "nam = 'x'\nparts = 'p'\n[inner]\nkind = 'c'\nsize = -2\n[inners]\nkind = 3\nsize = -1"
    found = problems_of(Outer, written(tmp_path, text))
    assert [problem.split(" ")[0] for problem in found] == [
        "nam", "parts", "inner.kind", "[inner]", "inners.kind", "[inners]", "rate",
    ]  # fmt: skip


def test_checks_that_need_a_refused_value_are_passed_over(tmp_path):
    scenario = _SCENARIO.replace("MODEL", "").replace("TRAINING", ", epochs = 0, window = 0")
    text = scenario.replace("DENSE", "all").replace("cohort = 3", "cohort = 'x'")
    text = text.replace("rounds = 1", "rounds = 0")
    found = problems_of(Scenario, written(tmp_path, text))
    assert len(found) == 4
    assert found[0].startswith("rounds = 0") or found[0].startswith("cohort = 'x' is refused")
    for told in ("[training] epochs = 0 must be", "[training] window = 0 must be", "rounds = 0"):
        assert any(problem.startswith(told) for problem in found), told


def test_a_number_that_cannot_be_read_hides_no_other_mistake(tmp_path):
    changed = {"rounds": "x", "cohort": 1, "clip_norm": -1}
    with pytest.raises(RecipeError) as refused:
        load(Scenario, Path("chat_partial"), changed)
    assert sorted(str(refused.value).splitlines()) == [
        "--set: clip_norm = -1.0 must be positive and finite",
        "--set: cohort = 1 must be at least 3: a device reports only where two others hide it",
        "--set: rounds = 'x' is refused: expected a whole number",
    ]


def test_a_policy_names_every_mistake_too(tmp_path):
    from pfl_lm.dp.policy import Policy

    text = """
        unit = "user"
        neighboring = "zero_out"
        epsilon = -1.0
        delta = 0.5
        population = 1000
        report_goal = 2000
        rounds = 0
        participation = { kind = "rotation" }
        noise = { at = "device", kind = "gaussian", tolerated_dropout = 1.0 }
    """
    found = " | ".join(problems_of(Policy, written(tmp_path, text)))
    for told in ("[participation] min_separation must be stated", "[noise] kind must be skellam",
                 "[noise] tolerated_dropout = 1.0 must lie", "rounds = 0 must be at least 1",
                 "report_goal 2000 exceeds population 1000", "delta must be positive",
                 "epsilon must be above 0"):  # fmt: skip
        assert told in found, told


class TestSettings:
    def test_keys_are_set_and_taken_out(self, tmp_path):
        path = written(tmp_path, "rate = 1.0\nname = 'file'\n[inner]\nkind = 'a'\nsize = 7")
        settings = parse_settings(
            [
                "rate=2",
                "inner.kind=b",
                "inners.size = 5",
                "inners.kind=a",
                "parts=['p', 'q']",
                "name=",
            ]
        )
        assert load(Outer, path, settings) == Outer(
            2.0, parts=("p", "q"), inner=Inner("b", 7), inners=Inner("a", 5)
        )
        assert load(Outer, path).rate == 1.0

    def test_a_path_starts_from_the_current_folder(self, tmp_path, monkeypatch):
        (tmp_path / "here").mkdir()
        monkeypatch.chdir(tmp_path / "here")
        outer = load(Outer, written(tmp_path, "rate = 1.0\nother = 'p.toml'"), {"source": "data"})
        assert outer.source == tmp_path / "here" / "data"
        assert outer.other == tmp_path / "p.toml"

    @pytest.mark.parametrize(
        ("settings", "told"),
        [
            (["rat=2"], "--set: rat is not a key of this recipe; did you mean 'rate'?"),
            (["rate=fast"], "--set: rate = 'fast' is refused: expected a number"),
            (["inners.size=-3"], "--set: [inners] size = -3 must not be negative"),
            (["name.first=x"], "--set name.first: name is no table"),
            (["rate"], "--set rate: write KEY=VALUE"),
            (["=3"], "--set =3: write KEY=VALUE"),
        ],
    )
    def test_a_mistake_names_the_option(self, tmp_path, settings, told):
        path = written(tmp_path, "rate = 1.0\nname = 'n'\ninners = { kind = 'a' }")
        with pytest.raises(RecipeError, match=re.escape(told)):
            load(Outer, path, parse_settings(settings))


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(RecipeError, match="no such recipe"):
        load(Outer, tmp_path / "absent.toml")


class TestNames:
    """A recipe that ships with the package is found by name; a path stays a path."""

    @pytest.fixture(autouse=True)
    def shipped_here(self, tmp_path, monkeypatch) -> Path:
        """Ship two recipes and work in an empty folder."""
        root = tmp_path / "package" / "shipped"
        simulation = 'rate = 1.0\nsource = "../data/x"\nother = "privacy/p"'
        recipes = {
            "simulations/sim": simulation,
            "simulations/fleets/mixed": "rate = 2.0",
            "privacy/p": "rate = 3.0",
        }
        for name, text in recipes.items():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / f"{name}.toml").write_text(text)
        monkeypatch.setattr(pfl_lm.recipes.names, "shipped_folder", lambda: root)
        (tmp_path / "empty").mkdir()
        monkeypatch.chdir(tmp_path / "empty")
        return root

    @pytest.mark.parametrize(
        ("name", "rate"),
        [("sim", 1.0), ("simulations/sim", 1.0), ("fleets/mixed", 2.0), ("mixed", 2.0),
         ("privacy/p", 3.0)],
    )  # fmt: skip
    def test_a_shipped_recipe_is_found_by_its_name(self, name, rate):
        assert load(Outer, Path(name)).rate == rate
        assert names_recipe(Path(name))

    @pytest.mark.parametrize(
        "name", ["si", "sim.toml", "elsewhere/sim", "../sim", "privacy/sim", ".", "im", "/sim"]
    )
    def test_nothing_else_is_found(self, name):
        with pytest.raises(RecipeError, match="no such recipe file"):
            load(Outer, Path(name))
        assert not names_recipe(Path(name))

    def test_the_nearest_shipped_recipe_is_named(self):
        with pytest.raises(RecipeError, match=r"pfl-lm ships with simulations/sim, which"):
            find(Path("simulations/sim.toml"))

    def test_no_recipe_of_another_kind_is_named(self, shipped_here):
        """A privacy officer is not offered a scenario, nor an engineer a policy."""
        (shipped_here / "simulations" / "without_privacy.toml").write_text("clip_norm = 1.0")
        (shipped_here / "privacy" / "private.toml").write_text("rate = 3.0")
        for name, kind in (("without_privacy", Outer), ("privat", Scenario)):
            with pytest.raises(RecipeError, match="`pfl-lm recipes` lists"):
                load(kind, Path(f"{name}.toml"))
        with pytest.raises(RecipeError, match="ships with privacy/private"):
            find(Path("privat"), Outer)

    def test_a_file_of_ones_own_comes_first(self):
        Path("privacy").mkdir()
        Path("privacy/p.toml").write_text("rate = 9.0")
        assert load(Outer, Path("privacy/p")).rate == 9.0
        assert load(Outer, Path("p")).rate == 3.0

    def test_a_shipped_recipe_is_read_as_if_it_lay_in_the_current_folder(self, shipped_here):
        outer = load(Outer, Path("sim"))
        assert outer.source == Path.cwd() / "data" / "x"
        assert outer.other == shipped_here / "privacy" / "p.toml"
        as_file = load(Outer, shipped_here / "simulations" / "sim.toml")
        assert as_file.source == shipped_here / "data" / "x"

    def test_a_recipe_of_ones_own_may_name_a_shipped_one(self, tmp_path, shipped_here):
        outer = load(Outer, written(tmp_path, 'rate = 1.0\nother = "p"\nsource = "p"'))
        assert outer.other == shipped_here / "privacy" / "p.toml"
        assert outer.source == tmp_path / "p"  # a key that is no recipe stays a path

    def test_a_missing_file_is_never_replaced_by_a_shipped_one(self, tmp_path, shipped_here):
        outer = load(Outer, written(tmp_path, 'rate = 1.0\nother = "privacy/p.toml"'))
        assert outer.other == tmp_path / "privacy" / "p.toml"
        with pytest.raises(RecipeError, match="no such recipe"):
            load(Outer, outer.other)


def test_names_of_shipped_recipes_are_unambiguous():
    stems = [Path(name).name for name in shipped()]
    assert len(stems) > 20
    assert len(set(stems)) == len(stems)


_SCENARIO = """
rounds = 1
cohort = 3
clip_norm = 1.0
population = { kind = "synthetic" }
model = { kind = "cifg_lstm", vocabulary_size = 100, embedding_dim = 4, hidden_dim = 4MODEL }
training = { learning_rate = 1.0TRAINING }
payload = { dense = "DENSE" }
"""


@pytest.mark.parametrize(
    ("model", "training", "dense", "told"),
    [
        (", residual = 3", "", "all", "model.residual is now called model.side_branch; rename it"),
        ("", ", stretch = 3", "all", "training.stretch is now called training.segment_length"),
        ("", "", "residual", 'payload.dense = "residual" is now called "side_branch"'),
        ("", "", "biases_residual", 'is now called "biases_side_branch"'),
    ],
)
def test_a_key_or_value_that_was_renamed_is_refused_with_its_present_name(
    tmp_path, model, training, dense, told
):
    text = _SCENARIO.replace("MODEL", model).replace("TRAINING", training).replace("DENSE", dense)
    with pytest.raises(RecipeError, match=re.escape(told)):
        load(Scenario, written(tmp_path, text))


def test_present_names_of_renamed_keys_and_values_exist():
    kinds = {"LocalTraining": LocalTraining, "ModelSpec": ModelSpec, "PayloadPlan": PayloadPlan}
    for (kind, old), now in RENAMED.items():
        names = {part.name for part in fields(kinds[kind])}
        assert now in names
        assert old not in names
    for (kind, name, _), now in RENAMED_VALUES.items():
        assert now in get_args(get_type_hints(kinds[kind])[name])


def test_a_recipe_nested_too_deep_is_refused_in_one_line(tmp_path):
    (tmp_path / "x.toml").write_text("a = " + "[" * 100_000)
    with pytest.raises(RecipeError, match="not valid TOML"):
        load(Scenario, tmp_path / "x.toml")
