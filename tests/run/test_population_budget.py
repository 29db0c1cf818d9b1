"""Whose budget? Rounds at full scale over people's text add up, whatever the folder."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from pfl_lm.audit.accounting.check import audit_accounting
from pfl_lm.audit.accounting.stated import StatedGuarantee
from pfl_lm.audit.accounting.tuning import tuning
from pfl_lm.audit.artifacts import RunArtifacts
from pfl_lm.audit.chain import read_chain
from pfl_lm.audit.ledger.check import audit_ledger
from pfl_lm.audit.ledger.population import (
    COSTS,
    DEBITED,
    ONE_BUDGET,
    TOLD,
    TOTAL,
    population_budget,
)
from pfl_lm.audit.ledger.replay import replayed_groups
from pfl_lm.cli import app
from pfl_lm.dp.ledger import Ledger, LedgerError, line_text, verify
from pfl_lm.dp.population_ledger import BudgetSpent, PopulationLedger
from pfl_lm.dp.population_spent import population_spent
from pfl_lm.report.page import write_report
from pfl_lm.run.folder import RunFolder
from pfl_lm.run.progress import ProgressListener
from pfl_lm.run.recorder import RunRecorder
from pfl_lm.run.resume import check_free
from pfl_lm.run.scenario import PopulationConfig
from pfl_lm.run.setup import account_of, open_run
from pfl_lm.run.simulate import simulate
from pfl_lm.text.population import PopulationStore
from pfl_lm.text.population_write import USER_DIGEST_BYTES, StoreWriter, UserText
from pfl_lm.text.synthetic.population import SyntheticPopulation, synthetic_tokenizer
from tests.audit.doctoring import rewrite_ledger

pytestmark = pytest.mark.usefixtures("quick")

POLICY = """
unit = "user"
neighboring = "zero_out"
epsilon = 2.0
delta = 0.01
population = 12
report_goal = 6
rounds = 4
participation = { kind = "rotation", min_separation = 2 }
noise = { at = "device", kind = "skellam", min_dim = 64 }
"""


class Interrupted(BaseException):
    """What no handler of errors expects."""


class Stopper(ProgressListener):
    def __init__(self, after: int) -> None:
        self.after = after

    def round_done(self, entry, rounds):
        if entry["round"] + 1 == self.after:
            raise Interrupted


@pytest.fixture
def scenario(tiny_scenario, tmp_path):
    """A function that returns four rounds at the policy's own scale, over a store's users."""
    people = SyntheticPopulation({"train": 12, "validation": 3, "test": 3}, 300, 40, seed=1)
    synthetic_tokenizer(300).save(tmp_path / "tokenizer")
    (tmp_path / "store").mkdir()
    with StoreWriter(tmp_path / "store", synthetic_tokenizer(300)) as writer:
        for split, name in enumerate(("train", "validation", "test")):
            for user in range(people.users(name)):
                digest = (100 * split + user).to_bytes(USER_DIGEST_BYTES, "big")
                words = people.tokens(name, user).astype(np.uint16).tobytes()
                writer.add(UserText(digest, split, b"", [words]))
    writer.finish("people", {"inputs": []})
    (tmp_path / "policy.toml").write_text(POLICY)

    def build(**changes):
        fields = {
            "population": PopulationConfig("store", path=tmp_path / "store"),
            "tokenizer": tmp_path / "tokenizer",
            "policy": tmp_path / "policy.toml",
            "rounds": 4,
        }
        return tiny_scenario(**{**fields, **changes})

    return build


def run(scenario, path: Path, listener=None, **how) -> RunFolder:
    return simulate(scenario, path, listener or ProgressListener(), **how)


def ledger_of(scenario) -> Path:
    account = account_of(open_run(scenario))
    assert account is not None
    return account.path


def test_a_second_run_on_the_same_people_is_refused_and_leaves_nothing(scenario, tmp_path):
    run(scenario(rounds=2), tmp_path / "one")
    with pytest.raises(BudgetSpent, match="4 rounds more"):
        run(scenario(seed=8), tmp_path / "two")
    assert not (tmp_path / "two").exists()
    run(scenario(seed=9, rounds=2), tmp_path / "three")  # as many as were promised together
    assert ledger_of(scenario()).parent == tmp_path / "ledgers"
    part = audit_ledger(RunArtifacts.open(tmp_path / "one"), tmp_path / "ledgers")
    assert [f.text for f in part.findings if f.holds is False] == []
    assert {ONE_BUDGET, DEBITED, TOTAL} <= {f.name for f in part.findings if f.holds}
    with pytest.raises(BudgetSpent, match="the budget of these people ends here"):
        run(scenario(seed=8, rounds=1), tmp_path / "two")
    spent = population_spent(ledger_of(scenario()))
    assert [(entry.name, entry.rounds) for entry in spent.spent_by] == [("one", 2), ("three", 2)]


def test_people_who_were_charged_in_another_store_are_said_to_be(scenario, tmp_path):
    """A store with one user more is another population, whose ledger begins with nothing spent."""

    class Heard(ProgressListener):
        lines: list[str] = []  # noqa: RUF012

        def say(self, line: str) -> None:
            self.lines.append(line)

    def told() -> list[str]:
        return [line for line in Heard.lines if "neither ledger counts it" in line]

    run(scenario(rounds=2), tmp_path / "one", Heard())
    assert not told()
    before = PopulationStore.open(tmp_path / "store")
    (tmp_path / "again").mkdir()
    with StoreWriter(tmp_path / "again", synthetic_tokenizer(300)) as writer:
        for split, name in enumerate(("train", "validation", "test")):
            for user in range(before.users(name) + (name == "train")):
                digest = (100 * split + user).to_bytes(USER_DIGEST_BYTES, "big")
                words = before.tokens(name, user % before.users(name)).astype(np.uint16).tobytes()
                writer.add(UserText(digest, split, b"", [words]))
    writer.finish("people", {"inputs": []})
    again = PopulationConfig("store", path=tmp_path / "again")
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / "population.json").write_text("{")
    run(scenario(rounds=2, population=again), tmp_path / "two", Heard())
    assert len(told()) == 1
    assert told()[0].startswith("12 of these 13 people are train users of ")
    run(scenario(rounds=2, population=again, reproducible=True), tmp_path / "three", Heard())
    assert len(told()) == 1, "a simulation that charges nobody"


def test_a_run_that_was_begun_and_spent_no_round_accuses_nobody(scenario, tmp_path):
    context, folder = open_run(scenario()), RunFolder(tmp_path / "one")
    recorder = RunRecorder(context, folder, ProgressListener(), account_of(context))
    recorder.open(resume=False, overwrite=False)
    recorder.close()
    artifacts, ledgers = RunArtifacts.open(folder.path), tmp_path / "ledgers"
    part = audit_ledger(artifacts, ledgers)
    assert [f.text for f in part.findings if f.holds is False] == []
    assert {ONE_BUDGET, DEBITED, TOTAL, TOLD} <= {f.name for f in part.findings if f.holds}
    assert tuning(StatedGuarantee.of(artifacts), artifacts, None, ledgers).holds is True


def test_a_run_over_peoples_text_that_leaves_their_ledger_unnamed(scenario, tmp_path):
    one = run(scenario(rounds=2), tmp_path / "one")

    def unnamed(entries):
        del entries[0]["population"], entries[0]["population_head"]

    rewrite_ledger(one.path, unnamed)
    for ledgers in (None, tmp_path / "ledgers"):
        part = audit_ledger(RunArtifacts.open(one.path), ledgers)
        told = next(f for f in part.findings if f.name == ONE_BUDGET)
        assert told.holds is False
        assert "names no ledger of their budget" in told.text


def test_debits_that_cost_less_than_the_records_are_found(scenario, tmp_path):
    one = run(scenario(rounds=2), tmp_path / "one")
    artifacts, chain = RunArtifacts.open(one.path), read_chain(one.ledger_path)
    groups = replayed_groups(StatedGuarantee.of(artifacts), chain)
    fainter = [replace(group, noise_multiplier=group.noise_multiplier / 2) for group in groups]

    def costs(replayed):
        found = population_budget(one.path, chain, tmp_path / "ledgers", "", replayed)
        return {finding.name: finding.holds for finding in found}[COSTS]

    assert costs(groups) is True
    assert costs(fainter) is False


def test_what_choosing_cost_is_counted_by_the_ledger_and_not_stated(scenario, tmp_path):
    """Two trainings and a comparison: with --ledgers nobody has to say how many there were."""
    first = run(scenario(rounds=1), tmp_path / "runs" / "first")
    asked(scenario, tmp_path, "seed 9", "training")
    choices = tmp_path / "ledgers"

    def told(ledgers=choices, trials=None):
        artifacts = RunArtifacts.open(first.path)
        return tuning(StatedGuarantee.of(artifacts), artifacts, trials, ledgers)

    alone = told()
    assert alone.holds is True
    assert "1 other training (seed 9) and no comparisons" in alone.text
    asked(scenario, tmp_path, "launched", "comparison")
    asked(scenario, tmp_path, "new words", "words")  # chose no recipe
    both = told()
    assert "1 other training (seed 9) and 1 comparison (launched)" in both.text
    assert 0 < figure(alone.text) < figure(both.text) < 2.0
    assert "does not know of figures without noise" in both.text
    assert told(trials=2).text == both.text
    assert figure(told(trials=4).text) > figure(both.text)
    assert "Beyond these 8 were stated" in told(trials=10).text
    assert told(trials=10).holds is False
    assert "name its folder with --ledgers" in told(ledgers=None).text

    run(scenario(seed=7, rounds=1), tmp_path / "runs" / "beside", ledgers=tmp_path / "others")
    assert told().holds is None
    assert "It lacks trainings that lie beside this one (beside)" in told().text
    assert figure(told().text) > figure(both.text)
    path = ledger_of(scenario())
    path.write_text(path.read_text().replace('"rotation"', '"poisson"', 1))
    assert told().holds is False
    assert "the chain breaks" in told().text


def test_a_simulation_that_names_no_ledger_says_so(scenario, tmp_path):
    folder = run(scenario(rounds=1, cohort=5), tmp_path / "one")
    part = audit_accounting(RunArtifacts.open(folder.path), None, tmp_path)
    told = next(f for f in part.findings if f.name == "hyperparameter tuning")
    assert told.holds is None
    assert "names no ledger of its people" in told.text


def asked(scenario, tmp_path, name, purpose):
    """Debit these people one round of a question, or of a training elsewhere."""
    context = open_run(scenario())
    policy = replace(context.privacy.policy, rounds=1)
    event = policy.event(20.0, round=0)
    with PopulationLedger.open(account_of(context)) as people:
        genesis = {"run": name, "policy_digest": "ab", **people.reference()}
        with Ledger.create(tmp_path / f"{name}.jsonl", genesis) as ledger:
            people.take_up(ledger, policy, purpose)
            ledger.record_round(0, {"event": asdict(event)})


def figure(text: str) -> float:
    """Return the ε that a finding says all of it cost."""
    return float(re.search(r"they cost ε = ([\d.]+)", text)[1])


def test_deleting_the_first_run_or_copying_the_store_elsewhere(scenario, tmp_path):
    run(scenario(), tmp_path / "one", ledgers=tmp_path / "officer")
    shutil.rmtree(tmp_path / "one")
    shutil.move(tmp_path / "store", tmp_path / "renamed")
    moved = scenario(population=PopulationConfig("store", path=tmp_path / "renamed"))
    with pytest.raises(BudgetSpent):
        run(moved, tmp_path / "one", ledgers=tmp_path / "officer")


def test_overwriting_rounds_of_people_is_refused(scenario, tmp_path):
    folder = run(scenario(), tmp_path / "one")
    before = folder.ledger_path.read_bytes()
    with pytest.raises(ValueError, match="4 rounds that were opened over people's text"):
        check_free(folder, overwrite=True)
    with pytest.raises(ValueError, match="people"):
        run(scenario(), tmp_path / "one", overwrite=True)
    assert folder.ledger_path.read_bytes() == before


def test_a_damaged_ledger_of_people_is_not_overwritten_either(scenario, tmp_path):
    folder = run(scenario(), tmp_path / "one")
    folder.ledger_path.write_text("{}\n")
    with pytest.raises(ValueError, match="not overwritten"):
        check_free(folder, overwrite=True)


@pytest.mark.parametrize("change", [{"cohort": 5}, {"reproducible": True}, {"policy": None}])
def test_simulations_stand_alone(scenario, tmp_path, change):
    for name in ("one", "two"):
        folder = run(scenario(rounds=1, **change), tmp_path / name)
    run(scenario(rounds=1, **change), tmp_path / "two", overwrite=True)
    assert not (tmp_path / "ledgers").exists()
    told = folder.manifest()["statements"]
    assert "rounds of real devices add up" in told["simulated"] or change == {"policy": None}
    assert told["guaranteed"].startswith("Nothing")


def test_invented_users_are_nobody(scenario, tmp_path):
    invented = PopulationConfig("synthetic", users=12, tokens_per_user=40)
    for _ in range(2):
        run(scenario(population=invented, tokenizer=None), tmp_path / "one", overwrite=True)
    assert not (tmp_path / "ledgers").exists()


def test_an_interrupted_run_goes_on_and_spends_each_round_once(scenario, tmp_path):
    with pytest.raises(Interrupted):
        run(scenario(), tmp_path / "one", Stopper(after=2))
    shutil.copytree(tmp_path / "one", tmp_path / "copy")
    run(scenario(), tmp_path / "one", resume=True)
    debits = [e["round"] for e in verify(ledger_of(scenario())) if e["kind"] == "debit"]
    assert debits == [0, 1, 2, 3]
    with pytest.raises(ValueError, match="is an older copy: round 3"):
        (tmp_path / "one").rename(tmp_path / "away")
        (tmp_path / "copy").rename(tmp_path / "one")
        run(scenario(), tmp_path / "one", resume=True)


@pytest.mark.parametrize("torn", [0, 80])
@pytest.mark.parametrize("last", [0, 3])
def test_a_run_whose_disk_was_full_between_the_two_debits_ends(
    scenario, tmp_path, monkeypatch, last, torn
):
    """It debited the round again, and what its policy had planned for the last one was gone."""
    append = Ledger._append

    def full(ledger: Ledger, line: dict) -> None:
        entry = line["entry"]
        if entry["kind"] == "round" and entry["round"] == last:
            ledger.before_append(line)
            os.write(ledger._descriptor, line_text(line)[:torn])
            raise OSError(errno.ENOSPC, "no space", str(ledger.path))
        append(ledger, line)

    with monkeypatch.context() as patched:
        patched.setattr(Ledger, "_append", full)
        with pytest.raises(OSError, match="no space"):
            run(scenario(), tmp_path / "one")
    assert (tmp_path / "one" / "ledger.debited").is_file()
    kept = sorted((tmp_path / "one" / "means").iterdir())[-1]
    released = hashlib.sha256(np.load(kept).tobytes()).hexdigest()
    folder = run(scenario(), tmp_path / "one", resume=True)
    recorded = [e for e in verify(folder.ledger_path) if e["kind"] == "round"]
    assert [entry["round"] for entry in recorded] == [0, 1, 2, 3]
    assert recorded[last]["released"] == released, "the model takes the step that was paid for"
    debits = [e["round"] for e in verify(ledger_of(scenario())) if e["kind"] == "debit"]
    assert debits == [0, 1, 2, 3]
    assert not (tmp_path / "one" / "ledger.debited").exists()
    part = audit_ledger(RunArtifacts.open(tmp_path / "one"), tmp_path / "ledgers")
    assert [f.text for f in part.findings if f.holds is False] == []


def test_another_run_waits_while_one_is_going(scenario, tmp_path):
    account = account_of(open_run(scenario()))
    held = PopulationLedger.open(account)
    try:
        with pytest.raises(LedgerError, match="another process"):
            run(scenario(), tmp_path / "one")
    finally:
        held.close()
    assert not (tmp_path / "one").exists()


def test_the_page_tells_whose_budget_is_left_and_who_spent_it(scenario, tmp_path):
    folder = run(scenario(rounds=2), tmp_path / "one")
    page = write_report(folder.path).read_text(encoding="utf-8")
    assert "left; training and questions share it" in page
    assert "one (training, 2 rounds)" in page
    folder.budget_path.write_text('{"epsilon": "much", "spent_by": [7]}')
    assert "share it" not in write_report(folder.path).read_text(encoding="utf-8")


def test_the_verb_shows_what_a_population_has_spent(scenario, tmp_path):
    run(scenario(rounds=2), tmp_path / "one")
    path = str(ledger_of(scenario()))
    shown = CliRunner().invoke(app, ["privacy", "population", path])
    assert shown.exit_code == 0, shown.output
    assert "one" in shown.output
    assert "2.000" in shown.output  # promised
    asked = CliRunner().invoke(app, ["privacy", "population", str(tmp_path / "ledgers"), "--json"])
    (told,) = json.loads(asked.output)
    spender = {"name": "one", "purpose": "training", "rounds": 2, "epsilon": told["epsilon"]}
    assert told["spent_by"] == [spender]
    assert 0 < told["epsilon"] <= told["total_epsilon"] == 2.0
    assert told["left"] == pytest.approx(2.0 - told["epsilon"])
    missing = CliRunner().invoke(app, ["privacy", "population", str(tmp_path / "nowhere")])
    assert missing.exit_code != 0
