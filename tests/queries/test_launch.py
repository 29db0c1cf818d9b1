"""Two models, invented users, one verdict: the whole verb."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from pfl_lm.cli import app
from pfl_lm.models.file import Model, save_model
from pfl_lm.models.models import ModelSpec, initialise
from pfl_lm.text.population_build import BuildOptions, Input, build_population
from pfl_lm.text.synthetic.population import SyntheticPopulation, synthetic_tokenizer

USERS = 120
POLICY = """
unit = "user"
neighboring = "zero_out"
epsilon = 20.0
delta = 1e-3
population = 1_000
report_goal = 1_000
rounds = 1
participation = { kind = "rotation", min_separation = 1 }
noise = { at = "device", kind = "skellam", min_dim = 64 }
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Users, and two models: one that predicts the public unigram, one that guesses."""
    folder = tmp_path_factory.mktemp("launch")
    tokenizer = synthetic_tokenizer(200)
    tokenizer.save(folder / "words")
    people = SyntheticPopulation({"train": USERS}, 200, 60, 1)
    rows = (
        {"user": f"u{user}", "text": tokenizer.decode(people.tokens("train", user).tolist())}
        for user in range(USERS)
    )
    (folder / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = BuildOptions(fractions=(0.0, 0.0, 1.0))
    build_population([Input(folder / "a.jsonl")], tokenizer, folder / "store", options)
    spec = ModelSpec("cifg_lstm", 200, 8, hidden_dim=8)
    origin = {"kind": "public", "text": "none", "tokenizer_digest": tokenizer.digest}
    for name, unigram in (("guess", None), ("unigram", tokenizer.unigram)):
        save_model(folder / f"{name}.pt", Model(spec, initialise(spec, 1, unigram), origin))
    (folder / "policy.toml").write_text(POLICY)
    return folder


def launch(folder: Path, candidate: str, against: str, *more: str, output: str = "") -> tuple:
    words = [
        "launch", f"{candidate}.pt", "--against", f"{against}.pt", "--population", "store",
        "--tokenizer", "words", "--policy", "policy.toml", "-o", output or f"{candidate}-{against}",
        *more,
    ]  # fmt: skip
    with pytest.MonkeyPatch.context() as patched:
        patched.chdir(folder)
        done = CliRunner().invoke(app, words)
    return done.exit_code, done.output, done.exception


def test_a_better_model_is_launched_and_the_audit_agrees(folder: Path) -> None:
    status, shown, _ = launch(folder, "unigram", "guess")
    assert status == 0, shown
    assert "launch: The candidate gains at least" in shown
    assert shown.index("no better is launched") < shown.index("score the current model")
    audited = CliRunner().invoke(app, ["audit", str(folder / "unigram-guess")])
    assert audited.exit_code == 0, audited.output
    assert "the budget of these people: nothing" in shown
    command = ["privacy", "population", str(folder / "store"), "--split", "test", "--json"]
    (told,) = json.loads(CliRunner().invoke(app, command).output)
    assert [s["purpose"] for s in told["spent_by"]] == ["comparison"]
    assert 0 < told["epsilon"] <= told["total_epsilon"] == 20.0
    result = json.loads((folder / "unigram-guess" / "comparison.json").read_text())
    assert result["measures"]["log-loss"]["value"] > 0
    assert not (folder / "unigram-guess" / "noise.secret").exists()


def test_an_interrupted_comparison_goes_on_with_the_same_noise(folder: Path) -> None:
    again = ("--ledgers", "others")
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("pfl_lm.queries.launch.decide", _die)
        killed = launch(folder, "unigram", "guess", *again, output="killed")
        assert isinstance(killed[2], SystemExit)
    before = (folder / "killed" / "ledger.jsonl").read_bytes()
    status, _, _ = launch(folder, "unigram", "guess", "--resume", *again, output="killed")
    assert status == 0
    after = (folder / "killed" / "ledger.jsonl").read_bytes()
    assert after.startswith(before)
    assert after.count(b"\n") == before.count(b"\n") + 1


def _die(*_: object) -> None:
    raise KeyboardInterrupt


def test_a_worse_model_is_not(folder: Path) -> None:
    assert launch(folder, "guess", "unigram", "--ledgers", "third")[0] == 1


def test_equal_models_are_not_launched(folder: Path) -> None:
    assert launch(folder, "guess", "guess", "--seed", "3")[0] in (1, 3)


def test_the_protocol_runs_the_verb(folder: Path) -> None:
    small = ("--cohort", "30", "--seed", "5", "--secure-aggregation", "protocol")
    status, shown, _ = launch(folder, "unigram", "guess", *small, output="by-protocol")
    assert status in (0, 3), shown
    manifest = json.loads((folder / "by-protocol" / "manifest.json").read_text())
    assert manifest["asked"]["aggregation"] == "protocol"


def test_a_fleet_scores_both_models(folder: Path) -> None:
    """Twelve times as many phones check in as answer: ten of 120 are summed."""
    options = "--fleet", "fleets/mixed", "--seed", "5"
    status, shown, _ = launch(folder, "unigram", "guess", *options, output="by-a-fleet")
    assert status in (0, 3), shown
    assert "120 phones checked in" in shown
    assert "13 phones score the candidate" in shown


def test_figures_by_group_survive_a_crash_and_the_audit_knows_them(folder: Path) -> None:
    """Users of even numbers are "odd" or have no row: a stated group takes these."""
    permits = POLICY.replace("noise =", 'public_labels = ["odd", "even", "other"]\nnoise =')
    (folder / "groups.toml").write_text(permits)
    rows = (f"u{user}\t{('even', 'odd')[user % 2]}\n" for user in range(USERS - 40))
    (folder / "groups.tsv").write_text("user\tgroup\n" + "".join(rows))
    more = "--groups", "groups.tsv", "--no-group-worse", "--ledgers", "fourth"
    by_group = (*more, "--policy", "groups.toml")
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("pfl_lm.queries.launch.decide", _die)
        launch(folder, "unigram", "guess", *by_group, output="by-group")
    status, shown, _ = launch(folder, "unigram", "guess", *by_group, "--resume", output="by-group")
    assert status == 0, shown
    assert "lose log-loss in one of them is not launched" in shown
    assert all(group in shown for group in ("odd", "even", "other", "95%, all groups at once"))
    path = folder / "by-group"
    result = json.loads((path / "comparison.json").read_text())
    assert list(result["groups"]) == ["odd", "even", "other"]
    low, high = result["groups"]["odd"]["log-loss"]["interval_95_of_all_groups"]
    assert low < result["groups"]["odd"]["log-loss"]["value"] < high
    asked = json.loads((path / "manifest.json").read_text())["asked"]
    assert (asked["groups"], asked["labels"]["file"]) == (["odd", "even", "other"], "groups.tsv")
    assert json.loads((path / "ledger.jsonl").read_text().split("\n")[0])["entry"]["groups"]
    audited = CliRunner().invoke(app, ["audit", str(path)])
    assert audited.exit_code == 0, audited.output
    assert "no device fills cells of two groups" in audited.output


def test_classes_of_phones_are_groups(folder: Path) -> None:
    permits = POLICY.replace("noise =", 'public_labels = ["low", "middle", "high"]\nnoise =')
    (folder / "phones.toml").write_text(permits)
    options = "--fleet", "fleets/mixed", "--seed", "5", "--policy", "phones.toml"
    by_phone = (*options, "--groups", "phones")
    status, shown, _ = launch(folder, "unigram", "guess", *by_phone, output="by-phone")
    assert status in (0, 1, 3), shown
    assert json.loads((folder / "by-phone" / "manifest.json").read_text())["asked"]["labels"] == {
        "fleet": ["high", "middle", "low"]
    }


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--groups", "groups.tsv"), "the policy has no public_labels"),
        (("--groups", "devices"), "--groups devices and --keys belong together"),
        (("--no-group-worse",), "state whose groups"),
    ],
)
def test_groups_that_nothing_permits_are_refused(
    folder: Path, options: tuple[str, ...], message: str
) -> None:
    _, _, error = launch(folder, "unigram", "guess", *options, output="refused")
    assert message in str(error)
    assert not (folder / "refused").exists()


def test_a_model_of_another_vocabulary_is_refused(folder: Path) -> None:
    other = synthetic_tokenizer(210)
    spec = ModelSpec("cifg_lstm", 210, 8, hidden_dim=8)
    origin = {"kind": "public", "text": "none", "tokenizer_digest": other.digest}
    save_model(folder / "other.pt", Model(spec, initialise(spec, 1), origin))
    _, _, error = launch(folder, "other", "guess")
    assert "another vocabulary" in str(error)
    assert not (folder / "other-guess").exists()
