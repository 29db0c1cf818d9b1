"""Every verb has help; mistakes are one line on standard error and exit status 2."""

from __future__ import annotations

import subprocess
import sys

import pytest
import typer
from typer.testing import CliRunner

import pfl_lm.cli
from pfl_lm import __version__
from pfl_lm.cli import app, main


def verbs(command, path=()):
    """Yield every group and every verb, as the words that a person types."""
    yield path
    for name, child in getattr(command, "commands", {}).items():
        yield from verbs(child, (*path, name))


VERBS = sorted(verbs(typer.main.get_command(app)))


def test_all_verbs_are_there():
    for verb in [("simulate",), ("demo",), ("pretrain",), ("evaluate",), ("report",), ("check",),
                 ("audit",), ("population", "build"), ("population", "describe"),
                 ("tokenizer", "build"), ("privacy", "epsilon"), ("privacy", "noise")]:  # fmt: skip
        assert verb in VERBS


@pytest.mark.parametrize("verb", VERBS, ids=" ".join)
def test_every_verb_explains_itself(verb):
    for flag in ("--help", "-h"):
        shown = CliRunner().invoke(app, [*verb, flag])
        assert shown.exit_code == 0
        assert "Usage:" in shown.output
        body = [line for line in shown.output.splitlines() if line.strip()]
        assert len(body) > 3
        assert body[1].strip()[0] not in "╭│"  # a sentence comes before the options


@pytest.mark.parametrize("verb", [v for v in VERBS if v], ids=" ".join)
def test_an_unknown_option_exits_with_2(verb):
    assert CliRunner().invoke(app, [*verb, "--no-such-option"]).exit_code == 2


def test_version():
    shown = CliRunner().invoke(app, ["--version"])
    assert (shown.exit_code, shown.output) == (0, f"pfl-lm {__version__}\n")


def run_main(monkeypatch, capsys, *arguments):
    monkeypatch.setattr(sys, "argv", ["pfl-lm", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    return ended.value.code, capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [
        ["simulate", "absent.toml", "--output", "run"],
        ["pretrain", "absent.toml", "--output", "start.pt"],
        ["report", "absent"],
        ["evaluate", "absent"],
        ["audit", "absent"],
        ["population", "describe", "absent"],
        ["check", "absent"],
        ["privacy", "epsilon", "--noise-multiplier", "-1", "--sampling", "none", "--rounds", "1",
         "--delta", "1e-6", "--adjacency", "zero_out"],
    ],
    ids=lambda arguments: " ".join(arguments[:2]),
)  # fmt: skip
def test_a_mistake_is_one_line_on_standard_error(monkeypatch, capsys, tmp_path, arguments):
    monkeypatch.chdir(tmp_path)
    status, err = run_main(monkeypatch, capsys, *arguments)
    assert status == 2
    assert err.startswith("pfl-lm: ")
    assert err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("raised", "status", "line"),
    [
        (ValueError("two\n  lines"), 2, "pfl-lm: two lines\n"),
        (OSError(28, "No space left on device"), 2, "pfl-lm: [Errno 28] No space left on device\n"),
        (KeyboardInterrupt(), 130, "pfl-lm: interrupted\n"),
    ],
)
def test_what_main_makes_of_an_error(monkeypatch, capsys, raised, status, line):
    failing = typer.Typer(pretty_exceptions_enable=False)

    @failing.command()
    def fail():
        raise raised

    monkeypatch.setattr(pfl_lm.cli, "app", failing)
    assert run_main(monkeypatch, capsys) == (status, line)


def test_help_imports_nothing_heavy():
    code = (
        "import sys; from typer.testing import CliRunner; from pfl_lm.cli import app; "
        "CliRunner().invoke(app, ['simulate', '--help']); "
        "print(sorted({'torch', 'numpy', 'scipy', 'opacus'} & set(sys.modules)))"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout == "[]\n"
