"""`pfl-lm new`: every template is whole, explained, and read by the same reader as any recipe."""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path

import pytest

from pfl_lm.cli import new
from pfl_lm.project import create as module
from pfl_lm.project.create import create
from pfl_lm.project.templates import TEMPLATES
from pfl_lm.recipes import load
from pfl_lm.reference.keys import NAME, keys_of
from pfl_lm.reference.kinds import KINDS, kind_of


@pytest.fixture(scope="module")
def projects(tmp_path_factory):
    root = tmp_path_factory.mktemp("projects")
    return {name: create(root / name, name) for name in TEMPLATES}


FILES = [(name, file) for name, template in TEMPLATES.items() for file in template.recipes]


@pytest.mark.parametrize(("template", "file"), FILES)
def test_a_recipe_states_what_the_template_chose(projects, template, file):
    path = projects[template] / file
    kind = kind_of(Path(file).stem)
    assert tomllib.loads(path.read_text(encoding="utf-8")) == TEMPLATES[template].recipes[file]
    load(kind, path)  # without an error


@pytest.mark.parametrize(("template", "file"), FILES)
def test_a_recipe_explains_every_key(projects, template, file):
    text = (projects[template] / file).read_text(encoding="utf-8")
    kind = Path(file).stem
    assert text.startswith(f"#:schema schemas/{kind}.json\n")
    for key in keys_of(kind_of(kind)):
        last = key.name.rpartition(".")[2]
        if key.table and last == "profiles":
            continue  # its tables have names
        assert f"# {last}: " in text.replace("\n# ", " # "), key.name
        opens = key.name.replace(NAME, "high")
        line = rf"^#?\[{opens}\]$" if key.table else rf"^#?{last} = ?"
        assert re.search(line, text, re.MULTILINE), key.name


def test_a_default_that_is_uncommented_is_read(projects, tmp_path):
    text = (projects["invented"] / "scenario.toml").read_text(encoding="utf-8")
    stated = re.sub(r"^#(\w+ = .+)$", r"\1", text, flags=re.MULTILINE)
    stated = re.sub(r"^steps = .*$", "", stated, flags=re.MULTILINE)
    tables = re.sub(r"^#\[(server.average)\]$", r"[\1]", stated, flags=re.MULTILINE)
    lora = re.compile(r"^#\[model.lora\].*?(?=^\[)", re.MULTILINE | re.DOTALL)
    tables = lora.sub("", tables)
    assert len(tomllib.loads(tables)) > 15
    path = tmp_path / "scenario.toml"
    path.write_text(tables, encoding="utf-8")
    (tmp_path / "policy.toml").write_text("")
    read = load(kind_of("scenario"), path)
    ours = load(kind_of("scenario"), projects["invented"] / "scenario.toml")
    assert (read.training, read.server) == (ours.training, ours.server)


@pytest.mark.parametrize("template", TEMPLATES)
def test_a_project_has_a_readme_schemas_and_ignores_what_is_built(projects, template):
    folder = projects[template]
    readme = (folder / "README.md").read_text(encoding="utf-8")
    assert readme.startswith(f"# {template}\n")
    assert "```bash\npfl-lm " in readme
    for name in re.findall(r"`(\w+\.toml)`", readme):
        assert (folder / name).is_file(), name
    for kind in KINDS:
        json.loads((folder / "schemas" / f"{kind}.json").read_text(encoding="utf-8"))
    assert "/runs/" in (folder / ".gitignore").read_text().split("\n")


def test_sample_text_is_read_by_the_population_reader(projects):
    text = projects["chat"] / "text"
    rows = [json.loads(line) for line in (text / "messages.jsonl").read_text().splitlines()]
    assert len({row["user"] for row in rows}) > 200
    assert all(row["text"].strip() for row in rows)
    assert "user" not in json.loads((text / "public.jsonl").read_text().splitlines()[0])


def test_an_empty_folder_is_filled_and_any_other_refused(tmp_path):
    empty = tmp_path / "empty"
    empty.mkdir()
    create(empty)
    assert (empty / "scenario.toml").is_file()
    before = sorted(path.name for path in tmp_path.iterdir())
    for full in (empty, empty / "policy.toml"):
        with pytest.raises(ValueError, match="is not empty; choose a new folder"):
            create(full)
    assert sorted(path.name for path in tmp_path.iterdir()) == before


@pytest.mark.parametrize("exists", [True, False])
def test_a_failure_half_way_leaves_nothing(tmp_path, monkeypatch, exists):
    monkeypatch.setattr(module, "json_schema", lambda kind: 1 / 0)
    if exists:
        (tmp_path / "project").mkdir()
    with pytest.raises(ZeroDivisionError):
        create(tmp_path / "project")
    left = list(tmp_path.rglob("*"))
    assert left == ([tmp_path / "project"] if exists else [])


def test_an_unknown_template_is_refused_with_the_nearest(tmp_path):
    with pytest.raises(ValueError, match="did you mean 'invented'"):
        create(tmp_path / "p", "inventd")
    assert list(tmp_path.iterdir()) == []


def test_the_verb_names_all_templates():
    assert tuple(TEMPLATES) == new._TEMPLATES


def test_a_folder_beside_an_empty_one_stays(tmp_path):
    (tmp_path / "first").mkdir()
    (mine := tmp_path / ".first.new").mkdir()
    (mine / "notes").write_text("someone's")
    create(tmp_path / "first")
    assert (mine / "notes").read_text() == "someone's"
    assert (tmp_path / "first" / "scenario.toml").exists()
