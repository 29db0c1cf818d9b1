"""No argument of any verb is empty: an unset variable of a shell is said, not read as a folder."""

from __future__ import annotations

import os
import pathlib
import typing

import pytest

from pfl_lm.cli import app
from pfl_lm.cli.arguments import refuse_empty, refuse_other_encodings
from tests.cli.test_bounds import verbs


def paths():
    """Yield (verb, option) of every option that takes a path."""
    import inspect

    for verb, callback in verbs(app):
        for name, parameter in inspect.signature(callback, eval_str=True).parameters.items():
            kind = typing.get_args(parameter.annotation)[:1]
            about = typing.get_args(parameter.annotation)[1:2]
            if kind and pathlib.Path in (kind[0], *typing.get_args(kind[0])) and about:
                stated = [o for o in about[0].param_decls or () if o.startswith("--")]
                yield verb, stated[0] if stated else f"--{name.replace('_', '-')}"


OPTIONS = sorted({*paths()})


def test_there_are_paths():
    assert ("export run", "--block-list") in OPTIONS
    assert len(OPTIONS) > 25


@pytest.mark.parametrize(("verb", "option"), OPTIONS)
def test_an_empty_path_is_refused_by_name(pfl_lm, verb, option):
    for given in ([option, ""], [f"{option}="]):
        status, out, err = pfl_lm(*verb.split(), *given)
        assert (status, out) == (2, "")
        assert err == f"pfl-lm: {option} is empty: state a value, or leave it out\n"


def test_an_empty_argument_is_refused(pfl_lm):
    status, _, err = pfl_lm("report", "")
    assert status == 2
    assert err == "pfl-lm: an argument after 'report' is empty: an unset variable of the shell?\n"


def test_a_message_may_be_empty_and_a_setting_may_have_signs():
    refuse_empty(["suggest", "runs/a", ""])
    refuse_empty(["simulate", "a.toml", "--set", "policy=", "-o", "x"])
    refuse_empty([])


def test_a_name_that_is_no_utf_8_is_refused_before_anything_is_written(
    pfl_lm, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    name = os.fsdecode(b"caf\xe9")
    status, out, err = pfl_lm("new", name)
    assert (status, out) == (2, "")
    assert err == (
        "pfl-lm: 'caf?' is not UTF-8, and files and pages must state names in UTF-8: rename it\n"
    )
    assert list(tmp_path.iterdir()) == []


def test_text_and_names_in_utf_8_are_taken_in_every_locale():
    refuse_other_encodings(["suggest", "runs/a", "caf\udce9"])
    refuse_other_encodings(["tokenizer", "describe", "a", "--text", "caf\udce9"])
    refuse_other_encodings(["new", "café"])
    refuse_other_encodings([])
