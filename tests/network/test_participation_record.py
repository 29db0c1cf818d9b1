"""The participation record: what it allows, and that it survives."""

from __future__ import annotations

import itertools
import json
import os
import signal
import sqlite3
import subprocess
import sys
from functools import partial

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len
from typer.testing import CliRunner

from pfl_lm.cli.device import app
from pfl_lm.dp.device_rules import DeviceRules
from pfl_lm.dp.policy import Noise, Participation, Policy
from pfl_lm.network.participation_record import ParticipationRecord
from pfl_lm.network.participation_rules import (
    Installation,
    InvitationRefused,
    Task,
    cost,
    from_published_separation,
    refusal,
)
from pfl_lm.network.participation_rules import Participation as Entry
from pfl_lm.translations import Language

pytestmark = pytest.mark.filterwarnings("error")

TASK = Task("a" * 32, "b" * 64, 3)
NOW = 1_700_000_000.0


def policy_of(min_separation: int, rounds: int, **changes) -> Policy:
    fields = {
        "unit": "user",
        "neighboring": "zero_out",
        "epsilon": 2.0,
        "delta": 1e-6,
        "population": 1_000_000,
        "report_goal": 100,
        "rounds": rounds,
        "participation": Participation("rotation", min_separation),
        "noise": Noise("device", "skellam"),
    }
    return Policy(**{**fields, **changes})


POLICY = policy_of(5, 20)  # 4 participations


@pytest.fixture
def record(tmp_path) -> ParticipationRecord:
    return ParticipationRecord(tmp_path / "record", True, clock=lambda: NOW)


def test_what_is_entered_is_there_after_a_restart(record):
    for number in (2, 7, 19):
        record.enter(TASK, POLICY, number)
    record.close()
    entries = ParticipationRecord(record.path).participations()
    assert [entry.round for entry in entries] == [2, 7, 19]
    assert {(e.run, e.policy, e.seed, e.time) for e in entries} == {("a" * 32, "b" * 64, "3", NOW)}
    assert [entry.epsilon for entry in entries] == [cost(POLICY, n) for n in (1, 2, 3)]
    assert entries[-1].epsilon < 2.0


def test_the_last_participation_costs_the_policys_epsilon():
    assert 1.999 < cost(POLICY, POLICY.participations) <= 2.0


def test_a_record_is_its_owners_alone_and_flushed(record):
    assert record.path.stat().st_mode & 0o777 == 0o600
    assert record._database.execute("PRAGMA synchronous").fetchone() == (3,)  # EXTRA


def test_seeds_beyond_64_bits_are_told_apart(record):
    record.enter(Task("a" * 32, "b" * 64, 1 << 200), POLICY, 0)
    with pytest.raises(InvitationRefused, match="another seed"):
        record.check(Task("a" * 32, "b" * 64, (1 << 200) + 1), POLICY, 10)


def test_two_processes_with_one_record_do_not_enter_a_round_twice(record):
    other = ParticipationRecord(record.path)
    for one in (record, other):
        one.check(TASK, POLICY, 3)
    record.enter(TASK, POLICY, 3)
    with pytest.raises(InvitationRefused, match="round 3 already"):
        other.enter(TASK, POLICY, 3)


def test_a_process_killed_after_entering_has_entered(tmp_path):
    """The last statement that runs is ``enter``: no close, no flush of Python's own."""
    code = (
        "import os, signal, sys; from pathlib import Path; sys.path.insert(0, '.');"
        "from tests.network.test_participation_record import *;"
        "ParticipationRecord(Path(sys.argv[1]), True).enter(TASK, POLICY, 4);"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    path = tmp_path / "record"
    done = subprocess.run([sys.executable, "-c", code, str(path)], check=False)
    assert done.returncode == -signal.SIGKILL
    with pytest.raises(InvitationRefused, match="round 4 already"):
        ParticipationRecord(path).check(TASK, POLICY, 4)


def test_a_full_disk_is_told_as_that(record):
    """SQLite has rolled back by then; a second rollback would hide why."""
    (pages,) = record._database.execute("PRAGMA page_count").fetchone()
    record._database.execute(f"PRAGMA max_page_count = {pages}")
    with pytest.raises(OSError, match=r"record cannot be written: database or disk is full"):
        for round in range(100):
            record.enter(TASK, policy_of(1, 100), round)


def test_a_failed_entry_leaves_nothing(record):
    record.enter(TASK, POLICY, 3)
    with pytest.raises(InvitationRefused):
        record.enter(TASK, POLICY, 7)
    record.enter(TASK, POLICY, 8)
    assert [entry.round for entry in record.participations()] == [3, 8]


@pytest.mark.parametrize("published", [313, 341, 484, 1])
def test_the_published_convention_counts_the_rounds_between(published):
    """Gboard states r2 − r1 − 1: with 484 a phone of round 10 comes again in round 495."""
    separation = from_published_separation(published)
    policy = policy_of(separation, 2_000)
    accepted = partial(refusal, Installation(NOW, True), [_entry(10)], TASK, policy, now=NOW)
    between = {second: second - 10 - 1 for second in range(11, 10 + published + 3)}
    for second, rounds in between.items():
        assert (accepted(second) is None) == (rounds >= published)


def _entry(round: int) -> Entry:
    return Entry(NOW, TASK.run, TASK.policy, str(TASK.seed), round, 1.0, 5, 4, 2.0)


@given(st.lists(st.integers(-2, 24), max_size=30))
def test_no_sequence_of_invitations_gets_past_the_policy(rounds):
    past: list[Entry] = []
    for number in rounds:
        if refusal(Installation(NOW, True), past, TASK, POLICY, number, NOW) is None:
            past.append(_entry(number))
    taken = [entry.round for entry in past]
    assert all(b - a >= 5 for a, b in itertools.pairwise(taken))
    assert len(taken) <= POLICY.participations
    assert all(0 <= number < 20 for number in taken)


def test_participations_beyond_k_and_epsilon_are_refused_by_name():
    """Entries count even where their rounds lie outside the policy: no record is too long."""
    check = partial(refusal, Installation(NOW, True), task=TASK, policy=POLICY, round=0, now=NOW)
    past = [_entry(number) for number in (-20, -15, -10, -5)]
    reason = str(check(past))
    assert "took part in 4 of the policy's 4 rounds" in reason
    assert f"epsilon would be {cost(POLICY, 5):.4g} where the policy's is 2" in reason
    assert cost(POLICY, 5) > 2.0
    assert check(past[1:]) is None


@pytest.mark.parametrize(
    ("now", "allowed"),
    [(NOW, False), (NOW + 29.99 * 86_400, False), (NOW + 30 * 86_400, True), (NOW - 1, False)],
    ids=["at once", "a day early", "after the trust period", "a clock set back"],
)
def test_a_new_record_waits_for_the_trust_period(now, allowed):
    installation = Installation(NOW, is_first=False)
    assert (refusal(installation, [], TASK, POLICY, 0, now) is None) == allowed


def test_a_policy_may_set_its_trust_period():
    policy = policy_of(5, 20, devices=DeviceRules(trust_days=0))
    assert refusal(Installation(NOW, False), [], TASK, policy, 0, NOW) is None


def test_vouching_changes_no_record_that_exists(tmp_path):
    ParticipationRecord(tmp_path / "record", first_install=False).close()
    assert not ParticipationRecord(tmp_path / "record", first_install=True).installation.is_first


def test_what_is_no_record_is_refused_with_a_remedy(tmp_path):
    path = tmp_path / "record"
    path.write_bytes(os.urandom(5_000))
    with pytest.raises(ValueError, match="is no participation record"):
        ParticipationRecord(path)
    path.unlink()
    database = sqlite3.connect(path)
    database.execute("PRAGMA user_version = 9")
    database.close()
    with pytest.raises(ValueError, match="version 9, not 2"):
        ParticipationRecord(path)


class TestVerb:
    def printed(self, *arguments: str) -> str:
        found = CliRunner().invoke(app, ["record", *arguments])
        assert found.exit_code == 0, found.output
        return found.output

    def test_lists_rounds_and_epsilon(self, record):
        record.enter(TASK, POLICY, 2)
        record.enter(TASK, POLICY, 9)
        text = self.printed(str(record.path))
        assert "took part in 2 of at most 4 rounds" in text
        assert "refuses rounds before 14" in text
        lines = [line.split() for line in text.splitlines() if line.startswith("2023-11-14 22:13")]
        assert [line[4] for line in lines] == ["2", "9"]
        assert all(line[3] == "a" * 16 and line[5] == "b" * 16 for line in lines)

    def test_says_when_nothing_was_done_and_when_nothing_is_left(self, record):
        assert "took part in no round" in self.printed(str(record.path))
        for number in (0, 5, 10, 15):
            record.enter(TASK, POLICY, number)
        assert "refuses every further round" in self.printed(str(record.path))

    def test_writes_a_page_that_needs_nothing_else(self, record, tmp_path):
        record.enter(Task("<b>" * 8, "b" * 64, 3), POLICY, 2)
        self.printed(str(record.path), "-o", str(tmp_path / "page.html"))
        page = (tmp_path / "page.html").read_text(encoding="utf-8")
        assert "&lt;b&gt;" in page
        assert "<b>" not in page
        assert "http" not in page
        assert "1 of at most 4 rounds" in page

    @pytest.mark.parametrize("code", ["es", "ar"])
    def test_speaks_other_languages_in_columns(self, record, code, tmp_path):
        """A terminal shows some letters twice as wide as others, and some not at all."""
        for number in (2, 9):
            record.enter(Task("日é" * 16, "b" * 64, 3), POLICY, number)
        page = tmp_path / "page.html"
        text = self.printed(str(record.path), "--language", code, "-o", str(page))
        language = Language.of(code)
        assert language.text("record.firstInstall", day="x").split("x")[0] in text
        header, *rows = [line for line in text.splitlines() if "  " in line]
        place = cell_len(header.split(language.text("record.round"))[0])
        ends = [row.index(f"  {number} ") + 2 for row, number in zip(rows, (2, 9), strict=True)]
        assert [cell_len(row[:end]) for row, end in zip(rows, ends, strict=True)] == [place] * 2
        assert f'lang="{code}" dir="{language.direction}"' in page.read_text(encoding="utf-8")

    def test_json_has_every_field(self, record):
        record.enter(TASK, POLICY, 2)
        found = json.loads(self.printed(str(record.path), "--json"))
        assert found["participations"][0]["round"] == 2
        assert found["installation"] == {"began": NOW, "is_first": True}

    def test_makes_no_record(self, tmp_path):
        found = CliRunner().invoke(app, ["record", str(tmp_path / "absent")])
        assert found.exit_code != 0
        assert "no such record" in str(found.exception)
        assert not (tmp_path / "absent").exists()
