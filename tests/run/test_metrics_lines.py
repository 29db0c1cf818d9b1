"""Metrics of any shape: they are read, or refused in one line; nothing else is raised."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pfl_lm.run.folder import read_metrics, was_opened

plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["kind", "round", "loss", "x"]), inner, max_size=4)
    ),
    max_leaves=6,
)


@settings(max_examples=60, derandomize=True, deadline=None)
@given(lines=st.lists(plain, max_size=4))
def test_lines_of_any_shape(tmp_path_factory, lines):
    path = tmp_path_factory.mktemp("metrics") / "metrics.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    try:
        entries = read_metrics(path)
    except ValueError as error:
        refused = str(error)
    else:
        refused = ""
    if refused:
        assert refused.startswith(f"{path} is damaged: ")
        return
    assert len(entries) == len(lines)
    for entry in entries:
        assert isinstance(entry["kind"], str)
        assert type(entry["round"]) is int
        was_opened(entry)


@pytest.mark.parametrize(
    "line", ['{"kind":"round"}', "[]", "3", "null", '{"round":1}', '{"kind":"round","round":"1"}',
             '{"kind":7,"round":1}', '{"kind":"round","round":true}', "[" * 50_000],
    ids=range(9),
)  # fmt: skip
def test_a_line_that_is_none_is_named(tmp_path, line):
    path = tmp_path / "metrics.jsonl"
    path.write_text(f'{{"kind":"round","round":0}}\n{line}\n', encoding="utf-8")
    with pytest.raises(ValueError, match=r"metrics\.jsonl is damaged"):
        read_metrics(path)
