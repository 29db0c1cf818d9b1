"""Files of any shape: every verb that reads one ends in a line at most, never in a traceback."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pfl_lm.cli import main
from pfl_lm.run.simulate import simulate
from pfl_lm.text.synthetic.population import (
    SyntheticPopulation,
    synthetic_tokenizer,
    write_public_store,
)

pytestmark = pytest.mark.usefixtures("quick")

# What is read, and by which verbs: {} is the copy of the folder that it lies in.
READ = {
    "run/manifest.json": ["report {}/run"],
    "run/metrics.jsonl": ["report {}/run"],
    "run/evaluation.json": ["report {}/run"],
    "run/ledger.jsonl": ["report {}/run"],
    "store/population.json": ["population describe {}/store"],
    "tokenizer/tokenizer.json": ["tokenizer describe {}/tokenizer"],
}

DAMAGED = {
    "run/evaluation.json": ["[]", "{}", '{"rows": 3}', '{"split": "test", "rows": [{"name": 3}]}',
                            '{"split": "test", "rows": [], "suggestions": [{"text": "a"}]}'],
    "run/manifest.json": ["[]", "{}"],
}  # fmt: skip

leaf = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4)
plain = st.recursive(
    leaf,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3)
    ),
    max_leaves=5,
)


@pytest.fixture(scope="module")
def whole(tiny_scenario, policy_file, new_watcher, quick, tmp_path_factory) -> Path:
    """A folder with every kind of file, all of them sound."""
    folder = tmp_path_factory.mktemp("whole")
    simulate(tiny_scenario(policy=policy_file(), rounds=2), folder / "run", new_watcher())
    synthetic_tokenizer(300).save(folder / "tokenizer")
    people = SyntheticPopulation({"train": 1, "public": 20}, 300, 40, seed=1)
    write_public_store(people, folder / "store")
    return folder


def outcome(line: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["pfl-lm", *line.replace("{}", str(folder)).split()])
        try:
            main()
        except SystemExit as ended:
            return int(ended.code or 0), capsys.readouterr().err
    return 0, capsys.readouterr().err


def nodes(value, path=()):
    """Yield the place of everything in a JSON value."""
    yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(
        value, list) else ()  # fmt: skip
    for key, item in items:
        yield from nodes(item, (*path, key))


def with_other(value, path, other):
    """Return a copy in which what stands at ``path`` is another value, or is gone."""
    if not path:
        return other
    copy = dict(value) if isinstance(value, dict) else list(value)
    if other is Ellipsis and len(path) == 1:
        del copy[path[0]]
    else:
        copy[path[0]] = with_other(copy[path[0]], path[1:], other)
    return copy


def rewritten(data, path: Path) -> str:
    """Return a file's text with one value in it replaced by one of another shape, or removed."""
    text = path.read_text(encoding="utf-8")
    other = data.draw(plain | st.just(...), label="in its place")
    lines = text.splitlines() if path.suffix == ".jsonl" else [text]
    number = data.draw(st.integers(0, len(lines) - 1))
    value = json.loads(lines[number])
    place = data.draw(st.sampled_from(list(nodes(value))), label="place")
    if not place and other is ...:
        other = None
    lines[number] = json.dumps(with_other(value, place, other))
    return "\n".join(lines) + "\n"


@pytest.mark.parametrize("name", READ)
@settings(
    max_examples=5,
    derandomize=True,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(data=st.data())
def test_no_shape_of_a_file_ends_in_a_traceback(whole, tmp_path_factory, capsys, name, data):
    folder = tmp_path_factory.mktemp("damaged") / "copy"
    shutil.copytree(whole, folder)
    (folder / name).write_text(rewritten(data, folder / name), encoding="utf-8")
    for line in READ[name]:
        status, err = outcome(line, folder, capsys)
        assert status in (0, 1, 2)
        assert err.count("\n") <= 1, (line, err)
        assert status == 0 or err.startswith("pfl-lm: ")


@pytest.mark.parametrize(
    ("name", "content"), [(name, text) for name, texts in DAMAGED.items() for text in texts]
)
def test_a_file_of_another_shape_is_damaged(whole, tmp_path, capsys, name, content):
    shutil.copytree(whole, tmp_path / "copy")
    (tmp_path / "copy" / name).write_text(content, encoding="utf-8")
    status, err = outcome(READ[name][0], tmp_path / "copy", capsys)
    assert status == 2
    assert "is damaged" in err
    assert err.count("\n") == 1
