"""Every verb has help; mistakes are one line on standard error and exit status 2."""

from __future__ import annotations

import io
import itertools
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

import pfl_lm.cli
from pfl_lm import __version__
from pfl_lm.cli import app, main
from pfl_lm.cli.arguments import typed
from pfl_lm.cli.errors import tell_of_threads


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


@pytest.mark.parametrize("columns", [80, 120])
@pytest.mark.parametrize("verb", VERBS, ids=" ".join)
def test_help_wraps_with_the_terminal(verb, columns):
    """A paragraph's lines are as long as the terminal allows, and none is longer."""
    shown = CliRunner().invoke(app, [*verb, "--help"], env={"COLUMNS": str(columns)})
    lines = [line.rstrip() for line in shown.output.splitlines()]
    assert max(len(line) for line in lines) <= columns
    prose = [line for line in lines if line and line.lstrip()[0] not in "╭│╰"]
    for line, following in itertools.pairwise(prose):
        if lines[lines.index(line) + 1] != following or "Usage:" in line:
            continue  # a paragraph ends here
        assert len(line) + 1 + len(following.split()[0]) > columns - 2, line


def test_help_keeps_what_stands_in_brackets():
    """Markup must not swallow the defaults that help texts state in brackets."""
    shown = CliRunner().invoke(app, ["audit", "--help"], env={"COLUMNS": "200"}).output
    assert "may be repeated [all]." in shown


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
        (
            OSError(28, "No space left on device"),
            2,
            "pfl-lm: No space left on device; make room on that disk and try again\n",
        ),
        (
            OSError(28, "No space left on device", "a"),
            2,
            "pfl-lm: a: No space left on device; make room on that disk and try again\n",
        ),
        (
            NotADirectoryError(20, "Not a directory", "a/b"),
            2,
            "pfl-lm: a/b: a part of this path is a file, not a folder\n",
        ),
        (
            MemoryError("Unable to allocate 7 TiB"),
            2,
            "pfl-lm: Unable to allocate 7 TiB\n",
        ),
        (
            RuntimeError("DefaultCPUAllocator: not enough memory: you tried to get 9 bytes."),
            2,
            "pfl-lm: DefaultCPUAllocator: not enough memory: you tried to get 9 bytes.\n",
        ),
        (KeyboardInterrupt(), 130, "pfl-lm: interrupted\n"),
    ],
)
def test_what_main_makes_of_an_error(monkeypatch, capsys, raised, status, line):
    failing = typer.Typer(pretty_exceptions_enable=False)

    @failing.command()
    def fail():
        raise raised

    monkeypatch.setattr(pfl_lm.cli, "app", failing)
    answering = signal.getsignal(signal.SIGINT)
    try:
        assert run_main(monkeypatch, capsys) == (status, line)
    finally:
        signal.signal(signal.SIGINT, answering)  # main lets a second Ctrl-C do nothing


@pytest.mark.parametrize(
    "raised",
    [KeyError("tokenizer"), TypeError("no"), RecursionError("deep"), ZeroDivisionError("0"),
     RuntimeError("[enforce fail at x.cc:1]\n  and more"), AssertionError(), IndexError()],
    ids=lambda error: type(error).__name__,
)  # fmt: skip
def test_a_fault_is_one_line_that_names_it(monkeypatch, capsys, raised):
    failing = typer.Typer(pretty_exceptions_enable=False)

    @failing.command()
    def fail():
        raise raised

    monkeypatch.setattr(pfl_lm.cli, "app", failing)
    status, err = run_main(monkeypatch, capsys)
    assert status == 1
    assert err.startswith(f"pfl-lm: a fault of pfl-lm: {type(raised).__name__}: ")
    assert err.count("\n") == 1
    monkeypatch.setenv("PFL_LM_TRACEBACK", "1")
    with pytest.raises(type(raised)):
        main()


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_a_terminal_without_greek_ends_no_verb(encoding):
    environment = {**os.environ, "PYTHONIOENCODING": encoding, "PYTHONUTF8": "0"}
    command = [sys.executable, "-m", "pfl_lm", "privacy", "--help"]
    shown = subprocess.run(command, capture_output=True, env=environment)
    assert shown.returncode == 0, shown.stderr
    assert b"Usage" in shown.stdout


def test_a_text_is_utf_8_in_every_locale():
    as_the_c_locale_reads = "çığ شكرا".encode().decode("ascii", "surrogateescape")
    assert typed(as_the_c_locale_reads) == typed("çığ شكرا") == "çığ شكرا"
    assert typed([as_the_c_locale_reads, "a"]) == ["çığ شكرا", "a"]
    assert typed(None) is None


@pytest.mark.parametrize("output", ["", ".", "file/run", "file/deep/run"])
@pytest.mark.parametrize(
    "verb",
    [("simulate", "chat_partial"), ("pretrain", "pretrain_30k"), ("tokenizer", "build", "en_30k"),
     ("population", "build", "--tokenizer", "t", "x.jsonl"), ("demo",), ("export", "run", "r"),
     ("report", "r")],
    ids=lambda verb: verb[0],
)  # fmt: skip
def test_an_output_that_cannot_be_is_refused_first(monkeypatch, capsys, tmp_path, verb, output):
    monkeypatch.chdir(tmp_path)
    Path("file").write_text("mine")
    status, err = run_main(monkeypatch, capsys, *verb, "--output", output)
    assert status == 2
    assert err.startswith("pfl-lm: --output ")
    assert ("is a file, not a folder" if output[1:] else "is empty") in err
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_help_imports_nothing_heavy():
    code = (
        "import sys; from typer.testing import CliRunner; from pfl_lm.cli import app; "
        "CliRunner().invoke(app, ['simulate', '--help']); "
        "print(sorted({'torch', 'numpy', 'scipy', 'opacus'} & set(sys.modules)))"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout == "[]\n"


@pytest.mark.parametrize(
    ("about", "coloured"),
    [({}, True), ({"NO_COLOR": "1"}, False), ({"NO_COLOR": ""}, True), ({"TERM": "dumb"}, False)],
)
def test_errors_are_red_where_nobody_refused_colours(monkeypatch, about, coloured):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    for name, value in ({"NO_COLOR": "", "TERM": "xterm"} | about).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "stderr", Terminal())
    monkeypatch.setattr(sys, "argv", ["pfl-lm", "report", "no-such-run"])
    with pytest.raises(SystemExit):
        main()
    assert ("\033[31m" in sys.stderr.getvalue()) is coloured


def test_a_mistake_in_a_thread_is_one_line_and_a_fault_shows_its_traceback(capsys, monkeypatch):
    monkeypatch.setattr(threading, "excepthook", threading.__excepthook__)
    tell_of_threads()
    for raised in (OSError(28, "No space left on device", "figures"), KeyError("fault")):
        thread = threading.Thread(target=raiser(raised))
        thread.start()
        thread.join()
    told = capsys.readouterr().err.splitlines()
    assert told[0] == (
        "pfl-lm: figures: No space left on device; make room on that disk and try again"
    )
    assert told[1].startswith("Exception in thread")
    assert told[-1] == "KeyError: 'fault'"


def raiser(error: Exception):
    def fail():
        raise error

    return fail


def test_a_part_of_what_torchrun_states_is_no_launch(monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "x")
    for name in ("RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    project = ("new", "first"), ("simulate", "first/scenario.toml", "-o", "run")
    assert run_main(monkeypatch, capsys, *project[0])[0] == 0
    status, err = run_main(monkeypatch, capsys, *project[1])
    assert status == 2
    assert err.startswith("pfl-lm: TORCHELASTIC_RUN_ID is set, and RANK, WORLD_SIZE, ")
    assert err.count("\n") == 1
