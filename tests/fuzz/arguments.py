"""Arguments of every verb: strange values end in one line and status 2, never in a traceback."""

from __future__ import annotations

import contextlib
import io
import json
import os
import random
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer
from click import Group
from typer.main import get_command

from pfl_lm.cli import app, main
from tests.fuzz.targets import Target

# What takes long, opens a port or writes outside its --output; their numbers are bounded alike.
_LEFT_OUT = {"demo", "keyboard", "serve", "benchmark"}
_VALUES = (
    *("", "0", "1", "-1", "2", "0.5", "1e-310", "1e309", "nan", "inf", "-inf", "1e-9", "0x10"),
    *("9" * 40, "∞", "\x00", "../x", "/dev/null", "-", "--", "true", "poisson", "rotation"),
    *("gaussian", "zero_out", "{garbage}", "{folder}", "{missing}"),
)


def target(folder: Path) -> Target:
    """Return the target; an input is the seed of one command line.

    Args:
        folder: for files; new.
    """
    folder.mkdir(parents=True)
    (folder / "garbage").write_bytes(bytes(range(256)))
    verbs = list(_verbs(get_command(app), ()))

    def attempt(data: bytes) -> None:
        line = _line(random.Random(data), verbs, folder)
        status = _run(line, folder)
        assert status in (0, 1, 2), f"status {status} of {json.dumps(line)}"

    return Target("arguments", [bytes([number]) for number in range(8)], attempt, ())


def _verbs(command: Any, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Any]]:
    if isinstance(command, Group):
        for name, part in command.commands.items():
            if not (not path and name in _LEFT_OUT):
                yield from _verbs(part, (*path, name))
    else:
        yield path, command


def _line(draw: random.Random, verbs: list[tuple[tuple[str, ...], Any]], folder: Path) -> list[str]:
    """Draw a command line: one verb, its arguments, and some of its options."""
    path, command = draw.choice(verbs)
    line = list(path)
    for parameter in command.params:
        value = draw.choice(_VALUES).format(
            garbage=folder / "garbage", folder=folder, missing=folder / "none"
        )
        if parameter.param_type_name == "argument":
            line.append(str(folder / draw.choice(("garbage", "none"))))
        elif parameter.name in ("help", "overwrite", "execute"):
            continue
        elif parameter.name == "output":
            line += ["--output", str(folder / "none" / "out")]
        elif parameter.required or draw.random() < 0.3:
            flag = getattr(parameter, "is_flag", False)
            line += [draw.choice(parameter.opts)] + ([] if flag else [value])
    return line


def _run(line: list[str], folder: Path) -> int:
    """Run a command line in this process; return its status."""
    before, here = sys.argv, os.getcwd()
    sys.argv = ["pfl-lm", *line]
    os.chdir(folder)
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            main()
    except SystemExit as ended:
        return ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    except typer.Exit as ended:
        return ended.exit_code
    finally:
        sys.argv = before
        os.chdir(here)
    return 0
