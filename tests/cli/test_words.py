"""`pfl-lm words discover`, the vocabulary that takes the words, and `pfl-lm grow`."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from typer.testing import CliRunner

from pfl_lm.cli import app
from pfl_lm.models.file import Model, load_model, save_model
from pfl_lm.models.models import ModelSpec, initialise
from pfl_lm.text.synthetic.population import synthetic_tokenizer
from pfl_lm.text.tokenizer import Tokenizer

USERS = 60
POLICY = """
unit = "user"
neighboring = "zero_out"
epsilon = 8.0
delta = 1e-3
population = 60
report_goal = 60
rounds = 1
participation = { kind = "rotation", min_separation = 1 }
noise = { at = "device", kind = "skellam", min_dim = 64 }
"""
RECIPE = """
locale = "art"
size = 10_000
numbers = "keep"
placeholders = []
[source]
kind = "discovered"
path = "found"
base = "words"
provenance = "asked of invented users"
licence = "CC0-1.0"
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A vocabulary, users' text, a public list, a policy, a recipe and a model."""
    words = synthetic_tokenizer(300)
    words.save(tmp_path / "words")
    rows = ({"user": f"u{user}", "text": f"{words.words[9]} rakudo"} for user in range(USERS))
    (tmp_path / "text.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "list.tsv").write_text("word\tcount\nrakudo\t9\nnobody\t8\n")
    (tmp_path / "policy.toml").write_text(POLICY)
    (tmp_path / "grown.toml").write_text(RECIPE)
    spec = ModelSpec("cifg_lstm", 300, 8, hidden_dim=8)
    origin = {"kind": "public", "text": "none", "tokenizer_digest": words.digest}
    save_model(tmp_path / "old.pt", Model(spec, initialise(spec, 1, words.unigram), origin))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(line: str, expected: int = 0) -> str:
    done = CliRunner().invoke(app, line.split())
    assert done.exit_code == expected, (done.output, done.exception)
    return done.output


BUILD = "population build text.jsonl --tokenizer words -o store --split 1,0,0 --keep-unknown-words"
DISCOVER = (
    "words discover store --tokenizer words --policy policy.toml -o found "
    "--candidates-from list.tsv"
)


def test_from_users_to_a_grown_model(folder: Path) -> None:
    run(BUILD)
    shown = run(DISCOVER)
    assert "1 words; words and ledger are in found" in shown
    assert "Guaranteed  Nothing against the process that simulated all devices" in shown
    assert "Simulated   A deployment under the policy, of which this holds:" in shown
    assert "asking 60 users" in shown
    run("tokenizer build grown.toml -o larger")
    larger = Tokenizer.open(folder / "larger")
    assert larger.words[-1] == "rakudo"
    assert "-differentially private" in run("tokenizer describe larger")
    assert "1 words have rows" in run("grow old.pt --tokenizer words --to larger -o new.pt")
    grown = load_model(folder / "new.pt")
    assert grown.spec.vocabulary_size == 301
    assert grown.origin["tokenizer_digest"] == larger.digest


def test_no_line_claims_an_epsilon_for_a_seed_that_anybody_knows(folder: Path) -> None:
    run(BUILD)
    shown = run(f"{DISCOVER} --seed 3")
    assert "Guaranteed  Nothing" in shown
    assert "which the stated seed gives again." in shown
    claims = [line for line in shown.splitlines() if "ε" in line]
    assert all(line.startswith("Simulated ") for line in claims)


def test_words_without_their_ledger_build_no_vocabulary(folder: Path) -> None:
    run(BUILD)
    run(DISCOVER)
    (folder / "found" / "ledger.jsonl").unlink()
    done = CliRunner().invoke(app, ["tokenizer", "build", "grown.toml", "-o", "larger"])
    assert "ledger.jsonl is missing" in str(done.exception)
    assert not (folder / "larger").exists()


def test_a_denied_word_is_read_as_a_phone_reads_its_text(folder: Path) -> None:
    run(BUILD)
    (folder / "deny.txt").write_bytes("\ufeffRaKuDo \n\n".encode())
    assert "0 words; words and ledger are in found" in run(f"{DISCOVER} --deny deny.txt")


@pytest.mark.parametrize("line", ["rakudo perl", "?!"])
def test_a_line_that_would_deny_nothing_is_refused(folder: Path, line: str) -> None:
    run(BUILD)
    (folder / "deny.txt").write_text(f"moarvm\n{line}\n")
    done = CliRunner().invoke(app, [*DISCOVER.split(), "--deny", "deny.txt"])
    assert "deny.txt:2" in str(done.exception)
    assert "no single word" in str(done.exception)
    assert not (folder / "found").exists()


def test_a_model_of_another_vocabulary_is_not_grown(folder: Path) -> None:
    synthetic_tokenizer(200).save(folder / "other")
    done = CliRunner().invoke(
        app, ["grow", "old.pt", "--tokenizer", "other", "--to", "words", "-o", "new.pt"]
    )
    assert "another vocabulary" in str(done.exception)
    assert not (folder / "new.pt").exists()


def test_help_says_what_the_verb_does_and_what_it_costs(folder: Path) -> None:
    assert "ledger" in run("words discover --help")
    assert "old word" in " ".join(run("grow --help").split())


SERVE = "words serve --tokenizer words --policy policy.toml -o asked --keys keys"
LAUNCH = "launch old.pt --against old.pt --tokenizer words --policy policy.toml -o asked"
RUN = "device run keys/devices/00000.json --server localhost:8443 --ca keys/server/tls.pem"
REFUSED = {
    "noise from a seed": (f"{SERVE} --seed 3", "--seed makes noise that anybody can repeat"),
    "neither people nor devices": (LAUNCH, "state --population, or --keys"),
    "people and devices": (f"{LAUNCH} --population store --keys keys", "one of them"),
    "devices and a split": (f"{LAUNCH} --keys keys --split train", "leave out --split"),
    **{
        f"people and {option}": (f"{LAUNCH} --population store {option}", "belong to --keys")
        for option in ("--trial", "--revoked list.tsv", "--present 3", "--front-ends 2")
    },
    "devices and a fleet": (f"{LAUNCH} --keys keys --fleet fleets/mixed", "leave out --fleet"),
    "a total without its delta": (f"{RUN} --total 4", "--total and --delta belong together"),
    "a trial with a total": (f"{RUN} --trial store --total 4 --delta 1e-6", "keeps no record"),
    "a trial of a population alone": (f"{RUN} --trial store", "state --tokenizer and --policy"),
    "too few devices": (SERVE, "population: 3 devices are enrolled, the policy needs 60"),
    "words by front ends": (f"{SERVE} --front-ends 2", "--front-ends 2: only Linux"),
    "models by front ends": (f"{LAUNCH} --keys keys --front-ends 2", "--front-ends 2: only Linux"),
}


@pytest.mark.parametrize(("line", "message"), REFUSED.values(), ids=REFUSED)
def test_what_a_served_question_must_not_be(
    folder: Path, line: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("grpc_tools", reason="needs gRPC: pip install pfl-lm[network]")
    from pfl_lm.network.front_ends import port

    monkeypatch.setattr(port, "sys", SimpleNamespace(platform="darwin"))
    run("enrol -o keys --devices 3")
    if "--trial" in line:
        run(BUILD)
    listed = " --candidates-from list.tsv" if line.startswith("words") else ""
    done = CliRunner().invoke(app, (line + listed).split())
    assert message in str(done.exception)
    assert not (folder / "asked").exists()
