"""Every key of every recipe is explained, by the docstrings that a developer reads."""

from __future__ import annotations

import json

import pytest

from pfl_lm.reference.docstrings import explanations, summary
from pfl_lm.reference.json_schema import json_schema
from pfl_lm.reference.keys import find_key, in_toml, keys_of, within
from pfl_lm.reference.kinds import KINDS, kind_of
from pfl_lm.reference.units import BARE, UNITS

ALL = [(name, key) for name in KINDS for key in keys_of(kind_of(name))]


@pytest.mark.parametrize(("kind", "key"), ALL, ids=lambda value: getattr(value, "name", value))
def test_a_key_is_explained_and_a_number_has_its_unit(kind, key):
    assert len(key.meaning.split()) >= 2, f"{kind} {key.name}: say what it means in the docstring"
    assert "``" not in key.meaning
    last = key.name.rpartition(".")[2]
    if not key.table and "number" in key.expected and last not in BARE:
        assert key.unit, f"{key.name}: give its unit in reference/units.py"


def test_every_listed_unit_is_of_a_key():
    names = {key.name for _, key in ALL}
    for listed in (*UNITS, *BARE):
        assert any(f".{name}".endswith(f".{listed}") for name in names), listed


def test_one_explanation_may_be_of_several_fields_and_of_several_lines():
    class Sample:
        """Does a thing. It does more.

        Attributes:
            first, second: what both
                are, in ``rounds``; None: nothing.
            third: another.

        Raises:
            fourth: is no field.
        """

    found = explanations(Sample)
    assert found == {
        "first": "what both are, in rounds; left out: nothing.",
        "second": "what both are, in rounds; left out: nothing.",
        "third": "another.",
    }
    assert summary(Sample) == "Does a thing. It does more"


def test_a_key_is_found_by_its_last_part_if_that_is_one_key():
    scenario = kind_of("scenario")
    assert find_key(scenario, "clip_norm").name == "clip_norm"
    assert find_key(scenario, "epochs").name == "training.epochs"
    with pytest.raises(ValueError, match=r"several tables; choose one of .*training.learning_rate"):
        find_key(scenario, "learning_rate")
    with pytest.raises(ValueError, match=r"did you mean 'training\.epochs'"):
        find_key(scenario, "epoch")
    with pytest.raises(ValueError, match="did you mean 'scenario'"):
        kind_of("scenarios")


def test_a_table_holds_its_keys():
    scenario = kind_of("scenario")
    names = [key.name for key in within(scenario, find_key(scenario, "server"))]
    assert names[:2] == ["server.kind", "server.learning_rate"]
    assert "server.average.decay" in names
    fleet = [key.name for key in keys_of(kind_of("fleet"))]
    assert "profiles.NAME.failures.upload" in fleet


def test_facts_are_those_of_the_dataclass():
    scenario = kind_of("scenario")
    kind = find_key(scenario, "server.kind")
    assert (kind.choices, kind.default) == (("sgd", "momentum", "adam", "yogi"), '"sgd"')
    assert find_key(scenario, "clip_norm").default is None
    assert find_key(scenario, "training.gradient_clip").default == "none"
    rows = find_key(scenario, "payload.rows")
    assert rows.choices == ("all", "none")
    assert rows.expected == "a whole number or one of 'all', 'none'"


@pytest.mark.parametrize(
    ("value", "text"),
    [(True, "true"), (10_000, "10_000"), (0.3, "0.3"), ('a"b', '"a\\"b"'), ((), "[]"),
     ({"at": "device", "levels": 3}, '{ at = "device", levels = 3 }')],
)  # fmt: skip
def test_values_are_written_as_toml_reads_them(value, text):
    import tomllib

    assert in_toml(value) == text
    back = tomllib.loads(f"value = {text}")["value"]
    assert back == (list(value) if isinstance(value, tuple) else value)


@pytest.fixture(scope="module")
def validator():
    jsonschema = pytest.importorskip("jsonschema", reason="needs jsonschema, a dev dependency")

    def build(kind):
        jsonschema.Draft202012Validator.check_schema(json_schema(kind))
        return jsonschema.Draft202012Validator(json_schema(kind))

    return build


class TestSchema:
    @pytest.mark.parametrize(
        ("kind", "folder"),
        [("scenario", "simulations"), ("policy", "privacy"), ("tokenizer", "tokenizers"),
         ("fleet", "simulations/fleets")],
    )  # fmt: skip
    def test_shipped_recipes_fit(self, validator, kind, folder):
        import tomllib

        from pfl_lm.recipes import shipped

        fitting = validator(kind)
        seen = 0
        for name, file in shipped().items():
            parent = name.rpartition("/")[0]
            table = tomllib.loads(file.read_text(encoding="utf-8"))
            if parent == folder and "text_is" not in table:
                assert list(fitting.iter_errors(table)) == [], name
                seen += 1
        assert seen >= 3

    @pytest.mark.parametrize(
        ("change", "told"),
        [({"clip_nrm": 1}, "clip_nrm"), ({"rounds": "many"}, "many"), ({"adversary": "x"}, "x")],
    )
    def test_what_the_reader_refuses_is_refused(self, validator, change, told):
        table = {
            "rounds": 1, "cohort": 2, "clip_norm": 1.0, "population": {"kind": "synthetic"},
            "model": {"kind": "lstm", "vocabulary_size": 9, "embedding_dim": 4, "hidden_dim": 4},
            "training": {"learning_rate": 1.0},
        }  # fmt: skip
        fitting = validator("scenario")
        assert list(fitting.iter_errors(table)) == []
        problems = [error.message for error in fitting.iter_errors(table | change)]
        assert len(problems) == 1
        assert told in problems[0]

    @pytest.mark.parametrize("kind", KINDS)
    def test_every_key_is_described_and_nothing_is_null(self, kind):
        schema = json_schema(kind)
        tables = [schema, *schema.get("$defs", {}).values()]
        assert "null" not in json.dumps(schema)
        for table in tables:
            assert table["additionalProperties"] is False
            for name, entry in table["properties"].items():
                assert entry.get("description"), f"{table['title']}.{name}"
