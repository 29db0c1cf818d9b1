"""Messages of any origin become a store; what cannot be read is refused with the remedy."""

from __future__ import annotations

from collections import defaultdict

import pytest

from pfl_lm.interop import hugging_face
from pfl_lm.interop.imports import _stackoverflow_split, import_population
from pfl_lm.interop.lines import Line, build_from_lines
from pfl_lm.language.population import PopulationStore
from pfl_lm.language.population_build import BuildOptions

KEEP = BuildOptions(keep_user_ids=True)


def test_every_message_is_there_in_order(store, lines, tokenizer, streams):
    expected: dict[str, list[int]] = defaultdict(list)
    for _, user, text in lines:
        expected[user] += [2, *tokenizer.encode(text), 3]
    assert streams(store) == expected


def test_stated_splits_are_kept(lines, tokenizer, tmp_path):
    told = [Line("train" if user < "user5" else "test", user, text) for _, user, text in lines]
    build_from_lines("x", told, tokenizer, tmp_path / "store", KEEP)
    found = PopulationStore.open(tmp_path / "store")
    assert set(found.user_ids("train")) == {u for split, u, _ in told if split == "train"}
    assert set(found.user_ids("test")) == {u for split, u, _ in told if split == "test"}


def test_an_interrupted_import_leaves_nothing(tokenizer, tmp_path):
    def broken():
        yield Line(None, "a", "word")
        raise ValueError("the connection broke")

    with pytest.raises(ValueError, match="broke"):
        build_from_lines("x", broken(), tokenizer, tmp_path / "store", KEEP)
    assert list(tmp_path.iterdir()) == []


def test_an_existing_folder_is_refused_before_anything_is_read(tokenizer, tmp_path):
    def never():
        raise AssertionError("read")
        yield

    with pytest.raises(ValueError, match="exists"):
        build_from_lines("x", never(), tokenizer, tmp_path, KEEP)


def test_held_out_users_of_stackoverflow_are_divided_evenly_and_for_good():
    splits = [_stackoverflow_split("heldout", str(user), "key") for user in range(2000)]
    assert 850 < splits.count("validation") < 1150  # 6.7 standard deviations
    assert splits.count("validation") + splits.count("test") == 2000
    assert _stackoverflow_split("train", "7", "key") == "train"


@pytest.mark.parametrize(
    ("source", "path", "reason"),
    [
        ("tff-csv", "x", "expected one of tff-stackoverflow"),
        ("tff-stackoverflow", "x", "takes no path"),
        ("tff-sqlite", None, "needs a path"),
        ("tff-sqlite", "absent.sqlite", "no such file"),
        ("leaf", "absent.json", "does not exist"),
    ],
)
def test_arguments_that_do_not_fit(source, path, reason, tokenizer, tmp_path):
    with pytest.raises(ValueError, match=reason):
        import_population(source, path, tokenizer, tmp_path / "store", KEEP)
    assert list(tmp_path.iterdir()) == []


def test_without_datasets_a_line_says_what_to_install(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "datasets", None)
    with pytest.raises(ValueError, match="pip install datasets"):
        list(hugging_face.messages("anything"))
