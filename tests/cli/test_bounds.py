"""Every number that a verb takes has bounds, and what lies outside is refused in one line."""

from __future__ import annotations

import inspect
import types
import typing
from collections.abc import Iterator
from typing import Annotated, Any

import pytest
import typer
from typer.testing import CliRunner

from pfl_lm.cli import app, main

# Numbers that any value of their type may have.
FREE = {"seed"}


def verbs(of: typer.Typer, path: tuple[str, ...] = ()) -> Iterator[tuple[str, Any]]:
    for command in of.registered_commands:
        assert command.callback is not None
        name = command.name or command.callback.__name__
        yield " ".join((*path, name)), command.callback
    for group in of.registered_groups:
        assert group.typer_instance is not None
        yield from verbs(group.typer_instance, (*path, str(group.name)))


def numbers() -> Iterator[tuple[str, str, type, Any]]:
    """Yield (verb, option, type, typer's description of it) of every number."""
    for verb, callback in verbs(app):
        for name, parameter in inspect.signature(callback, eval_str=True).parameters.items():
            if typing.get_origin(parameter.annotation) is not Annotated:
                continue
            kind, about = typing.get_args(parameter.annotation)[:2]
            options = [kind, *typing.get_args(kind)] if not isinstance(kind, type) else [kind]
            found = next((k for k in options if k in (int, float)), None)
            if found is not None or kind == list[float] | None:
                yield verb, name, found or float, about


@pytest.mark.parametrize(
    ("verb", "name", "about"),
    [(verb, name, about) for verb, name, _, about in numbers() if name not in FREE],
    ids=lambda part: part if isinstance(part, str) else "",
)
def test_every_number_has_a_least_and_a_largest_value(verb, name, about):
    low, high = getattr(about.callback, "bounds", (None, None))
    assert low is not None, f"pfl-lm {verb} --{name} has no bounds"
    assert low < high


def test_there_are_numbers():
    assert len(list(numbers())) > 25
    assert not isinstance(numbers(), types.NoneType)


CALCULATOR = ("privacy", "epsilon", "--sampling", "none", "--rounds", "10", "--delta", "1e-6",
              "--adjacency", "zero_out", "--noise-multiplier")  # fmt: skip


@pytest.mark.parametrize("value", ["1e-310", "5e-324", "nan", "inf", "-1", "1e400"])
def test_noise_that_is_none_is_never_answered_with_a_small_epsilon(value, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["pfl-lm", *CALCULATOR, value])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert "ε" not in capsys.readouterr().out


def test_no_noise_is_answered_with_infinity():
    printed = CliRunner().invoke(app, [*CALCULATOR, "0"])
    assert printed.exit_code == 0
    assert "∞" in printed.output
