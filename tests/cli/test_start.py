"""The first minutes: `new`, `explain`, `schema`, `suggest`, `--set`, completion by the shell."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from pfl_lm.cli import app
from pfl_lm.run.folder import RunFolder

pytestmark = pytest.mark.usefixtures("quick")


def test_a_new_project_runs_at_once(pfl_lm, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    status, out, _ = pfl_lm("new", "first")
    assert status == 0
    assert "Wrote first: README.md policy.toml scenario.toml schemas" in out
    assert "  pfl-lm simulate scenario.toml -o runs/first" in out
    monkeypatch.chdir("first")
    small = ["rounds=2", "cohort=4", "population.users=60", "population.tokens_per_user=20",
             "evaluation={every=0, users=2, final_users=3}"]  # fmt: skip
    options = [word for setting in small for word in ("--set", setting)]
    status, _, err = pfl_lm("simulate", "scenario.toml", "-o", "runs/first", *options)
    assert status == 0, err
    stated = RunFolder.open(tmp_path / "first/runs/first").manifest()["scenario"]
    assert (stated["rounds"], stated["population"]["users"]) == (2, 60)

    status, out, _ = pfl_lm("suggest", "runs/first", "how are", "--count", 5)
    assert status == 0
    line = out.strip().split()
    assert line[:3] == ["how", "are", "…"]
    assert len(line) == 8
    assert all(word.isalpha() for word in line[3:])
    status, out, _ = pfl_lm("suggest", "runs/first")
    assert len(out.strip().splitlines()) == 12
    page = (tmp_path / "first/runs/first/report.html").read_text(encoding="utf-8")
    assert "<h2>Suggestions</h2>" in page
    assert page.count(" …</th>") == 12


def test_commands_with_a_space_can_be_pasted(pfl_lm, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    status, out, _ = pfl_lm("new", "my project")
    assert status == 0
    assert "  cd 'my project'" in out


def test_a_folder_that_holds_something_is_refused(pfl_lm, tmp_path):
    (tmp_path / "cat.jpg").write_text("cat")
    status, out, err = pfl_lm("new", tmp_path)
    assert (status, out) == (2, "")
    assert err == f"pfl-lm: {tmp_path} is not empty; choose a new folder\n"
    assert [path.name for path in tmp_path.iterdir()] == ["cat.jpg"]


def test_every_mistake_of_a_file_is_a_line(pfl_lm, tmp_path):
    path = tmp_path / "scenario.toml"
    path.write_text("rounds = 0\ncohorts = 3\n[training]\nlearning_rat = 1\n")
    status, out, err = pfl_lm("simulate", path, "-o", tmp_path / "run")
    assert (status, out) == (2, "")
    lines = err.splitlines()
    assert all(line.startswith(f"pfl-lm: {path}: ") for line in lines)
    told = " | ".join(lines)
    for part in ("cohorts is not a key of this recipe; did you mean 'cohort'?", "rounds = 0 must",
                 "did you mean 'learning_rate'?", "model is missing",
                 "population is missing"):  # fmt: skip
        assert part in told
    assert "learning_rate is missing" not in told  # it is there, under a wrong name
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("key", "told"),
    [
        ("clip_norm", ["clip_norm", "ℓ2 norm of an update", "must be stated", "ℓ2 bound"]),
        ("server.kind", ['"sgd" or "momentum" or "adam" or "yogi"', 'default "sgd"']),
        (
            "epochs",
            ["training.epochs", "passes; default none", "1 where neither these nor steps are"],
        ),
        ("server", ["[server]", "server.learning_rate", "server.average.decay"]),
    ],
)
def test_a_key_is_explained(pfl_lm, key, told):
    status, out, _ = pfl_lm("explain", "scenario", key)
    assert status == 0
    for part in told:
        assert part in out


def test_without_a_key_all_are_explained(pfl_lm):
    _, out, _ = pfl_lm("explain", "policy")
    assert "participation.min_separation  rounds; default none" in out
    assert "[noise]" in out


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["explain", "scenaro"], "did you mean 'scenario'?"),
        (["explain", "scenario", "clip_nrm"], "did you mean 'clip_norm'?"),
        (["schema", "polcy"], "did you mean 'policy'?"),
        (["new", "p", "--template", "chatt"], "did you mean 'chat'?"),
        (["suggest", "absent"], "absent is not a run folder"),
        (
            ["simulate", "chat_partial", "-o", "r", "--set", "clip_nrm=1"],
            "did you mean 'clip_norm'?",
        ),
        (["audit", "r", "--set", "seed=1"], "name it"),
    ],
)
def test_a_mistake_is_one_line_with_the_remedy(pfl_lm, tmp_path, monkeypatch, words, told):
    monkeypatch.chdir(tmp_path)
    status, out, err = pfl_lm(*words)
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert told in err
    assert list(tmp_path.iterdir()) == []


def test_a_schema_is_json(pfl_lm):
    status, out, _ = pfl_lm("schema", "fleet")
    assert status == 0
    assert json.loads(out)["title"] == "pfl-lm fleet"


def complete(*words: str) -> list[str]:
    """Return what bash would offer for the last word of a command line."""
    environment = os.environ | {
        "_PFL_LM_COMPLETE": "complete_bash",
        "COMP_WORDS": " ".join(("pfl-lm", *words)),
        "COMP_CWORD": str(len(words)),
    }
    code = "import sys; sys.argv = ['pfl-lm']; from pfl_lm.cli import app; app(prog_name='pfl-lm')"
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False
    )
    return done.stdout.split()


def test_the_shell_completes_verbs_kinds_keys_and_recipes():
    assert complete("sim") == ["simulate"]
    assert complete("explain", "po") == ["policy"]
    assert complete("explain", "scenario", "clip") == ["clip_norm"]
    assert "simulations/chat_partial" in complete("simulate", "simulations/chat_p")
    assert complete("sweep", "x", "--range", "training.learning") == ["training.learning_rate="]
    assert complete("pretrain", "x", "--set", "window") == ["window="]
    assert complete("simulate", "x", "--track", "ml") == ["mlflow"]
    shown = CliRunner().invoke(app, ["--help"])
    assert "--install-completion" in shown.output


@pytest.fixture
def shell(tmp_path):
    """A folder with a command pfl-lm, and an environment whose PATH begins there."""
    command = tmp_path / "bin" / "pfl-lm"
    command.parent.mkdir()
    code = "import sys; sys.argv[0] = 'pfl-lm'; from pfl_lm.cli import main; main()"
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -c "{code}" "$@"\n')
    command.chmod(0o755)
    path = f"{command.parent}{os.pathsep}{os.environ['PATH']}"
    return os.environ | {"PATH": path, "PYTHONPATH": os.pathsep.join(sys.path)}


def asked(command: list[str], environment: dict[str, str]) -> str:
    return subprocess.run(
        command, env=environment, capture_output=True, text=True, check=True
    ).stdout


def test_bash_completes_by_the_script_that_is_installed(shell):
    if shutil.which("bash") is None:
        pytest.skip("needs bash, which is not installed")
    script = """
        eval "$(_PFL_LM_COMPLETE=source_bash pfl-lm)"
        complete -p pfl-lm
        COMP_WORDS=(pfl-lm simulate --set training.epo) COMP_CWORD=3
        _pfl_lm_completion pfl-lm
        echo "${COMPREPLY[@]}"
    """
    declared, offered = asked(["bash", "-c", script], shell).splitlines()
    assert declared.endswith("_pfl_lm_completion pfl-lm")
    assert offered == "training.epochs="


@pytest.mark.parametrize("name", ["zsh", "fish"])
def test_zsh_and_fish_are_answered(shell, name):
    """By the protocol of their scripts; by fish itself where it is installed."""
    words = {"_TYPER_COMPLETE_ARGS": "pfl-lm swe", "_TYPER_COMPLETE_FISH_ACTION": "get-args"}
    answer = asked(["pfl-lm"], shell | words | {"_PFL_LM_COMPLETE": f"complete_{name}"})
    assert "sweep" in answer
    script = asked(["pfl-lm"], shell | {"_PFL_LM_COMPLETE": f"source_{name}"})
    assert f"complete_{name}" in script
    if name == "fish" and shutil.which("fish"):
        assert "sweep" in asked(["fish", "-c", f"{script}\ncomplete -C 'pfl-lm swe'"], shell)


def test_no_file_takes_the_number_of_a_closed_stream(tmp_path):
    """What a library complains of goes to number 2, and would stand in the file."""
    code = (
        "import os, sys; from pfl_lm.cli import main; from pfl_lm.dp.ledger import Ledger\n"
        "sys.argv = ['pfl-lm', 'recipes']\n"
        "main_ended = False\n"
        "try: main()\n"
        "except SystemExit as ended: main_ended = not ended.code\n"
        f"ledger = Ledger.create({str(tmp_path / 'ledger')!r}, dict(run='a', policy_digest='b'))\n"
        "for number in (1, 2): os.write(number, b'a complaint')\n"
        "os._exit(0 if main_ended and ledger._descriptor > 2 else 1)\n"
    )
    command = 'exec "$0" -c "$1" <&- >&- 2>&-'
    assert subprocess.run(["sh", "-c", command, sys.executable, code]).returncode == 0
    assert b"complaint" not in (tmp_path / "ledger").read_bytes()
