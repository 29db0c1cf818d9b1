"""The participation record: what it allows, and that it survives."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
from contextlib import closing
from dataclasses import replace
from functools import partial

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len
from typer.testing import CliRunner

from pfl_lm.cli.device import app
from pfl_lm.dp.device_rules import DeviceRules
from pfl_lm.dp.policy import Noise, Participation, Policy
from pfl_lm.dp.population_spent import Total
from pfl_lm.network import participation_record
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
from pfl_lm.numbers import format_epsilon
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
    with pytest.raises(OSError, match=r"cannot be .* written: .* disk is full; make room"):
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
    assert (
        f"epsilon would be {format_epsilon(cost(POLICY, 5))} where the policy's is 2.000" in reason
    )
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


def test_a_clock_set_back_is_told_as_that():
    """Neither a reinstall nor the trust period has to do with it."""
    reason = refusal(Installation(NOW, True), [], TASK, POLICY, 0, NOW - 3_600)
    assert reason == (
        "this phone's clock says 2023-11-14 21:13, and its record began at 2023-11-14 22:13 (UTC); "
        "set the clock right"
    )


@pytest.mark.parametrize("now", [1e12, 1e300, float("inf"), float("nan"), -1.0, 0.0])
def test_a_clock_without_a_date_enters_nothing_that_cannot_be_read_again(tmp_path, now):
    clock = [NOW]
    kept = ParticipationRecord(tmp_path / "record", True, clock=lambda: clock[0])
    kept.enter(TASK, POLICY, 0)
    clock[0] = now
    with pytest.raises(InvitationRefused, match="tells no date between 2023 and 9999"):
        kept.enter(TASK, POLICY, 5)
    kept.close()
    again = ParticipationRecord(tmp_path / "record", clock=lambda: NOW)
    assert [entry.round for entry in again.participations()] == [0]
    with pytest.raises(ValueError, match="set the clock right"):
        ParticipationRecord(tmp_path / "new", clock=lambda: now)
    assert not (tmp_path / "new").exists()


def test_a_clock_that_was_never_set_begins_no_trust_period(tmp_path):
    """From 1970 to the day on which the clock is set, any trust period is over."""
    after_reinstall = tmp_path / "record"
    with pytest.raises(ValueError, match="tells no date"):
        ParticipationRecord(after_reinstall, clock=lambda: 3_600.0)
    kept = ParticipationRecord(after_reinstall, clock=lambda: NOW)
    with pytest.raises(InvitationRefused, match="it takes part from 2023-12-14 on"):
        kept.check(TASK, POLICY, 0)


def test_a_policy_may_set_its_trust_period():
    policy = policy_of(5, 20, devices=DeviceRules(trust_days=0))
    assert refusal(Installation(NOW, False), [], TASK, policy, 0, NOW) is None
    endless = replace(policy, devices=DeviceRules(trust_days=1e300))
    assert "from 9999-12-31 on" in refusal(Installation(NOW, False), [], TASK, endless, 0, NOW)


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


EMPTY, FOREIGN, FOREIGN_LOG = "empty", "foreign", "with a write-ahead log"


def write_no_record(path, kind: str) -> None:
    """Write what SQLite would open, or make a database of."""
    if kind == EMPTY:
        path.touch()
        return
    with closing(sqlite3.connect(path)) as database:
        if kind == FOREIGN_LOG:
            database.execute("PRAGMA journal_mode = WAL")
        database.execute("CREATE TABLE messages (text TEXT)")


@pytest.mark.parametrize("read_only", [False, True], ids=["to train", "to read"])
@pytest.mark.parametrize("kind", [EMPTY, FOREIGN, FOREIGN_LOG])
def test_a_file_that_lies_there_begins_no_record(tmp_path, kind, read_only):
    """A record cut off to nothing is no first install: its rounds would be forgotten."""
    path = tmp_path / "record"
    write_no_record(path, kind)
    before = path.read_bytes()
    with pytest.raises(ValueError, match="is no participation record"):
        ParticipationRecord(path, first_install=True, read_only=read_only)
    assert (path.read_bytes(), os.listdir(tmp_path)) == (before, ["record"])


def test_a_record_is_begun_whole(tmp_path, monkeypatch):
    """A start that is killed leaves no half of a record, and one that is too late changes none."""
    path = tmp_path / "record"
    with monkeypatch.context() as patch:
        patch.setattr(os, "link", lambda *paths: os.kill(os.getpid(), signal.SIGINT))
        with pytest.raises(KeyboardInterrupt):
            ParticipationRecord(path)
    assert os.listdir(tmp_path) == []
    with monkeypatch.context() as patch:
        patch.setattr(os.path, "lexists", lambda path: False)
        ParticipationRecord(path, first_install=False)
        assert not ParticipationRecord(path, first_install=True).installation.is_first


def test_the_journal_of_a_record_that_is_gone_is_not_taken_up(record):
    journal = record.path.with_name("record-journal")
    record.path.rename(journal)
    with pytest.raises(ValueError, match=r"record-journal is left of a record that is gone"):
        ParticipationRecord(record.path, first_install=True)
    assert not record.path.exists()


DAMAGES = {
    "a total in words": "INSERT INTO total VALUES ('much', 1e-6)",
    "a total above nothing": "INSERT INTO total VALUES (-1.0, 1e-6)",
    "two totals": "INSERT INTO total VALUES (2.0, 1e-6), (3.0, 1e-6)",
    "two beginnings": "INSERT INTO installation VALUES (1.0, 1)",
    "no beginning": "DELETE FROM installation",
    "a time without end": "UPDATE participations SET time = 9e999",
    "an event that is none": "UPDATE participations SET event = '[]'",
    "an event of other fields": "UPDATE participations SET event = '{}'",
    "an event too deep": f"UPDATE participations SET event = '{'[' * 100_000}'",
    "a round in words": "UPDATE participations SET round = 'two'",
    "no table": "DROP TABLE total",
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_record_is_refused_when_it_is_opened(record, damage):
    record.enter(TASK, POLICY, 2)
    with closing(sqlite3.connect(record.path)) as database, database:
        database.execute(damage)
    with pytest.raises(ValueError, match=r"is no participation record .* put the record back"):
        ParticipationRecord(record.path)


def test_a_record_that_another_process_holds_is_not_damaged(record, monkeypatch):
    """To open, to look and to enter: each says who holds it, and none says to remove the file."""
    monkeypatch.setattr(participation_record, "_PATIENCE", 0.0)
    waiting = ParticipationRecord(record.path)
    with closing(sqlite3.connect(record.path, isolation_level=None)) as holder:
        holder.execute("BEGIN EXCLUSIVE")
        for action in (
            lambda: ParticipationRecord(record.path),
            lambda: ParticipationRecord(record.path, read_only=True),
            lambda: waiting.check(TASK, POLICY, 2),
            lambda: waiting.enter(TASK, POLICY, 2),
        ):
            with pytest.raises(OSError, match=r"database is locked; end the process that holds"):
                action()
    waiting.enter(TASK, POLICY, 2)


def test_a_record_that_may_not_be_written_opens_and_says_so_when_it_must_write(record):
    record.enter(TASK, POLICY, 2)
    unwritten = ParticipationRecord(record.path)
    unwritten._database.execute("PRAGMA query_only = 1")  # as on a disk that is mounted so
    unwritten.check(TASK, POLICY, 9)
    with pytest.raises(OSError, match=r"readonly database; allow this user to write"):
        unwritten.enter(TASK, POLICY, 9)


def test_opening_a_record_writes_nothing(record, monkeypatch):
    """A record on a full or read-only disk can be looked at, and checked against."""
    record.enter(TASK, POLICY, 2)
    monkeypatch.setattr(participation_record, "_PATIENCE", 0.0)
    with closing(sqlite3.connect(record.path, isolation_level=None)) as writer:
        writer.execute("BEGIN IMMEDIATE")  # nobody else writes now
        for read_only in (False, True):
            assert len(ParticipationRecord(record.path, read_only=read_only).participations()) == 1


def test_a_record_cut_off_in_a_write_is_read_once_a_device_undid_that(record, tmp_path):
    record.enter(TASK, POLICY, 2)
    cut = tmp_path / "cut"
    with closing(sqlite3.connect(record.path, isolation_level=None)) as writer:
        writer.execute("PRAGMA cache_size = 1")
        writer.execute("BEGIN IMMEDIATE")
        writer.execute("DELETE FROM participations")
        writer.execute("CREATE TABLE more AS SELECT zeroblob(100000) AS much")
        for end in ("", "-journal"):
            shutil.copy(f"{record.path}{end}", f"{cut}{end}")
    with pytest.raises(OSError, match="its last write was cut off, and `pfl-lm device run` undoes"):
        ParticipationRecord(cut, read_only=True)
    ParticipationRecord(cut).close()
    assert len(ParticipationRecord(cut, read_only=True).participations()) == 1


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
        assert found["total"] is None

    def test_a_total_is_told_before_the_first_round(self, tmp_path):
        path = str(tmp_path / "record")
        ParticipationRecord(path, True, total=Total(2.5, 1e-6))
        assert "may cost ε = 2.500 at most (δ = 1e-06)" in self.printed(path)
        found = json.loads(self.printed(path, "--json"))
        assert found["total"] == {"epsilon": 2.5, "delta": 1e-6}

    def test_changes_nothing(self, record, tmp_path):
        """A record of an earlier version, and what is no record: neither is written to."""
        earlier = tmp_path / "earlier"
        with closing(sqlite3.connect(earlier)) as database, database:
            database.executescript(participation_record._FIRST)
            database.execute("INSERT INTO installation VALUES (?, 1)", (NOW,))
            database.execute("PRAGMA user_version = 1")
        write_no_record(tmp_path / FOREIGN, FOREIGN)
        write_no_record(tmp_path / EMPTY, EMPTY)
        before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
        assert "took part in no round" in self.printed(str(earlier))
        for name in (FOREIGN, EMPTY):
            assert CliRunner().invoke(app, ["record", str(tmp_path / name)]).exit_code != 0
        assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before

    def test_makes_no_record(self, tmp_path):
        found = CliRunner().invoke(app, ["record", str(tmp_path / "absent")])
        assert found.exit_code != 0
        assert "no such record" in str(found.exception)
        assert not (tmp_path / "absent").exists()
