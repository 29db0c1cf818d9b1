"""One budget per user: training and questions, in one phone's participation record."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from pfl_lm.dp.accounting.accountant import compose_all
from pfl_lm.dp.guarantee import guarantee
from pfl_lm.dp.policy import Policy
from pfl_lm.dp.population_spent import Total
from pfl_lm.network.participation_record import ParticipationRecord
from pfl_lm.network.participation_rules import InvitationRefused, Task
from pfl_lm.network.record_page import summary, table
from pfl_lm.translations import Language
from tests.network.test_participation_record import POLICY, policy_of

TRAINING = Task("a" * 32, "b" * 64, 3)
QUESTION = Task("c" * 32, "d" * 64, 9, "words")
ASKING = policy_of(1, 1, epsilon=1.0)
TOTAL = Total(2.5, 1e-6)


def open_record(path: Path, total: Total | None = TOTAL) -> ParticipationRecord:
    return ParticipationRecord(path / "record", True, total=total)


def events(policy: Policy, rounds: int):
    return {policy.event(guarantee(policy).noise_multiplier): rounds}


def test_a_phone_trains_and_answers_within_one_total(tmp_path: Path) -> None:
    record = open_record(tmp_path)
    for number in (0, 5):
        record.enter(TRAINING, POLICY, number)
    answered = record.enter(QUESTION, ASKING, 0)
    together = compose_all([events(POLICY, 2), events(ASKING, 1)], 1e-6).epsilon_unamplified
    assert answered.epsilon == pytest.approx(together)
    assert answered.epsilon_limit == 2.5
    with pytest.raises(InvitationRefused, match="took part in round 0 already"):
        record.check(QUESTION, ASKING, 0)
    text = " ".join(summary(record, Language.of("en")))
    assert "3 rounds of 2 runs and questions" in text
    assert "its total of 2.500" in text
    assert [row[1] for row in table(record, Language.of("en"))] == [
        "what for",
        "training",
        "training",
        "words",
    ]


def test_nothing_exceeds_the_total_in_whatever_order(tmp_path: Path) -> None:
    """Each question fits its own policy; a third one of ε = 1 does not fit the rest."""
    record = open_record(tmp_path, Total(1.5, 1e-6))
    for run in ("c" * 32, "e" * 32):  # about √2 together
        record.enter(Task(run, "d" * 64, 4, "words"), ASKING, 0)
    third = Task("f" * 32, "d" * 64, 4, "words")
    with pytest.raises(
        InvitationRefused, match=r"total of ε = 1\.500 at δ = 1e-06 would be"
    ) as why:
        record.enter(third, ASKING, 0)
    assert "spent by words" in str(why.value)
    record.close()
    spent = open_record(tmp_path, None).participations()
    assert [entry.run[0] for entry in spent] == ["c", "e"]
    assert spent[-1].epsilon <= 1.5


def test_a_run_keeps_its_policy_and_seed_under_a_total(tmp_path: Path) -> None:
    record = open_record(tmp_path)
    record.enter(TRAINING, POLICY, 0)
    with pytest.raises(InvitationRefused, match="under another policy"):
        record.check(Task(TRAINING.run, "0" * 64, 3), POLICY, 5)
    with pytest.raises(InvitationRefused, match="under another seed"):
        record.check_task(Task(TRAINING.run, TRAINING.policy, 4))


def test_a_total_is_stated_once_and_breaks_no_promise(tmp_path: Path) -> None:
    open_record(tmp_path, None).enter(QUESTION, ASKING, 0)
    with pytest.raises(ValueError, match=r"promised ε = 1\.000 in all; a total of 2\.500"):
        open_record(tmp_path)
    open_record(tmp_path, Total(1.0, 1e-6)).close()
    with pytest.raises(ValueError, match="it is stated once"):
        open_record(tmp_path, Total(0.5, 1e-6))
    assert open_record(tmp_path, None).total == Total(1.0, 1e-6)


def test_without_a_total_a_question_after_training_is_refused(tmp_path: Path) -> None:
    record = open_record(tmp_path, None)
    record.enter(TRAINING, POLICY, 0)
    with pytest.raises(InvitationRefused, match="under another policy"):
        record.check(QUESTION, ASKING, 0)


def test_a_record_of_the_first_version_goes_on_and_its_rounds_cost_all(tmp_path: Path) -> None:
    """It did not keep the noise of a round, so no total covers it."""
    open_record(tmp_path, None).enter(TRAINING, POLICY, 0)
    with sqlite3.connect(tmp_path / "record") as database:
        for column in ("purpose", "event"):
            database.execute(f"ALTER TABLE participations DROP COLUMN {column}")
        database.execute("DROP TABLE total")
        database.execute("PRAGMA user_version = 1")
    database.close()
    record = open_record(tmp_path, None)
    (entry,) = record.participations()
    assert (entry.round, entry.purpose, entry.event) == (0, "training", "")
    record.enter(TRAINING, POLICY, 5)
    record.close()
    stated = open_record(tmp_path, Total(POLICY.epsilon, 1e-6))
    with pytest.raises(InvitationRefused, match="would be exceeded"):
        stated.check(QUESTION, ASKING, 0)
