"""The participation record of a phone: which rounds it took part in, kept by the phone itself.

One SQLite file, readable by its owner alone. A round is on the disk before the device's report
leaves, so a crash can make the record too long, never too short. A device refuses invitations by
this record (``participation_rules``), whatever the server states; deleting the record (a reinstall)
makes the device wait.
"""

from __future__ import annotations

import json
import os
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import asdict, astuple, fields
from pathlib import Path

from pfl_lm.dp.policy import Policy
from pfl_lm.dp.population_spent import Total
from pfl_lm.files import scratch_beside
from pfl_lm.network.participation_rules import (
    NO_DATE,
    Installation,
    InvitationRefused,
    Participation,
    Task,
    cost,
    event_in,
    event_of,
    is_date,
    other_task,
    refusal,
    total_cost,
)
from pfl_lm.network.sqlite_errors import code_of, remedy
from pfl_lm.numbers import format_epsilon

_VERSION = 2
_PATIENCE = 30.0  # seconds, with another process that holds the record
_FIRST = """
CREATE TABLE installation (began REAL NOT NULL, is_first INTEGER NOT NULL);
CREATE TABLE participations (
    time REAL NOT NULL, run TEXT NOT NULL, policy TEXT NOT NULL, seed TEXT NOT NULL,
    round INTEGER NOT NULL, epsilon REAL NOT NULL,
    min_separation INTEGER NOT NULL, most_rounds INTEGER NOT NULL, epsilon_limit REAL NOT NULL,
    UNIQUE (run, round)
);
"""
_SECOND = """
ALTER TABLE participations ADD COLUMN purpose TEXT NOT NULL DEFAULT 'training';
ALTER TABLE participations ADD COLUMN event TEXT NOT NULL DEFAULT '';
CREATE TABLE total (epsilon REAL NOT NULL, delta REAL NOT NULL)
"""


# A rollback journal, not a log: what SQLite writes into bytes 18 and 19 of the file.
_MAGIC, _ROLLBACK_JOURNAL = b"SQLite format 3\0", b"\1\1"


class ParticipationRecord:
    """An open record; every method is one transaction, on the disk when it returns.

    Every method raises OSError where the file cannot be read or written now: the disk is full, or
    another process holds it.

    Args:
        path: the file; it is made where it does not exist.
        first_install: vouch that this phone's user never took part before, so that a new record
            need not wait. Ignored where the record exists.
        clock: seconds since 1970.
        total: what all runs and questions together may cost. It is stated once; None: as it was
            stated before, or one run under one policy alone.
        read_only: open a copy in memory; the file must exist and stays as it is.

    Raises:
        ValueError: the file is no record, or one of a later version; it holds another total, or
            rounds that promised less.
    """

    def __init__(
        self,
        path: Path,
        first_install: bool = False,
        clock: Callable[[], float] = time.time,
        total: Total | None = None,
        read_only: bool = False,
    ) -> None:
        self.path, self._clock = Path(path), clock
        if not read_only and not os.path.lexists(self.path):
            _begin(self.path, clock(), first_install)
        with self._access():
            _require_database(self.path)
            self._database = _copy(self.path) if read_only else _connect(self.path, "rw")
            self._bring_up()
            self._database.execute(f"PRAGMA query_only = {read_only:d}")
            try:
                self._check_content()
            except (TypeError, ValueError, RecursionError) as error:
                raise sqlite3.DatabaseError(str(error)) from error
        if total is not None:
            self._state_total(total)

    def _bring_up(self) -> None:
        """Add what a record of an earlier version lacks.

        Raises:
            ValueError: a record of another version.
        """
        (version,) = self._database.execute("PRAGMA user_version").fetchone()
        if version == 0:
            raise sqlite3.DatabaseError("it has no version")
        if not 0 < version <= _VERSION:
            raise ValueError(f"{self.path} is a record of version {version}, not {_VERSION}")
        if version < _VERSION:
            with self._transaction():
                _write_tables(self._database, version)

    def _state_total(self, total: Total) -> None:
        """Write the total down, once, before anything that promised less.

        Raises:
            ValueError: another total is stated, or a round promised less.
        """
        with self._transaction():
            if (now := self.total) is not None:
                if now != total:
                    raise ValueError(f"{self.path}: the total is {now}; it is stated once")
                return
            promised = [entry.epsilon_limit for entry in self.participations()]
            if promised and total.epsilon > min(promised):
                raise ValueError(
                    f"{self.path}: the rounds in it promised ε = {format_epsilon(min(promised))} "
                    f"in all; a total of {format_epsilon(total.epsilon)} would break that promise"
                )
            row = (total.epsilon, total.delta)
            self._database.execute("INSERT INTO total VALUES (?, ?)", row)

    def _check_content(self) -> None:
        """Read everything once: a damaged record is refused here and not in the middle of a round.

        Raises:
            sqlite3.Error, TypeError, ValueError, RecursionError: the record is damaged.
        """
        (state,) = self._database.execute("PRAGMA quick_check").fetchone()
        if state != "ok":
            raise sqlite3.DatabaseError(state)
        if len(self._rows("SELECT * FROM installation")) != 1:
            raise TypeError("it did not begin once")
        if len(self._rows("SELECT * FROM total")) > 1:
            raise TypeError("it states two totals")
        _ = self.total  # a Total checks its numbers
        for when in (self.installation.began, *(entry.time for entry in self.participations())):
            if not (isinstance(when, float) and is_date(when)):
                raise TypeError(f"it holds the time {when!r}")
        kinds = {"float": float, "int": int, "str": str}
        for entry in self.participations():
            for of in fields(Participation):
                if not isinstance(value := getattr(entry, of.name), kinds[str(of.type)]):
                    raise TypeError(f"{of.name} is {value!r}")
            event_in(entry)

    @property
    def installation(self) -> Installation:
        ((began, is_first),) = self._rows("SELECT began, is_first FROM installation")
        return Installation(began, bool(is_first))

    @property
    def total(self) -> Total | None:
        """What all runs and questions together may cost; None: one run alone."""
        rows = self._rows("SELECT epsilon, delta FROM total")
        return Total(*rows[0]) if rows else None

    def participations(self) -> list[Participation]:
        """Return every round that this phone took part in, the oldest first."""
        names = ", ".join(field.name for field in fields(Participation))
        rows = self._rows(f"SELECT {names} FROM participations ORDER BY rowid")
        return [Participation(*row) for row in rows]

    def check(self, task: Task, policy: Policy, round: int) -> None:
        """Raise unless this phone may take part in a round.

        Raises:
            InvitationRefused: naming the rule.
        """
        past, now = self.participations(), self._clock()
        if reason := refusal(self.installation, past, task, policy, round, now, self.total):
            raise InvitationRefused(reason)

    def check_task(self, task: Task) -> None:
        """Raise where the record is about another run, policy or seed and states no total.

        Raises:
            InvitationRefused: naming which.
        """
        if reason := other_task(self.participations(), task, self.total):
            raise InvitationRefused(reason)

    def enter(self, task: Task, policy: Policy, round: int) -> Participation:
        """Write a participation down, durably, and only if ``check`` allows it.

        Two processes with one record cannot both enter a round: check and entry are one
        transaction.

        Raises:
            InvitationRefused: as ``check``; nothing is written.
        """
        with self._transaction():
            self.check(task, policy, round)
            past, total, event = self.participations(), self.total, event_of(policy)
            if total is None:
                epsilon, limit = cost(policy, len(past) + 1), policy.epsilon
            else:
                epsilon, limit = total_cost(past, total, (task.run, event)).epsilon, total.epsilon
            entry = Participation(
                time=self._clock(),
                run=task.run,
                policy=task.policy,
                seed=str(task.seed),
                round=round,
                epsilon=epsilon,
                min_separation=policy.participation.min_separation or 1,
                most_rounds=policy.participations,
                epsilon_limit=limit,
                purpose=task.purpose,
                event=json.dumps(asdict(event)),
            )
            names, marks = ", ".join(asdict(entry)), ", ".join("?" * len(fields(entry)))
            self._database.execute(
                f"INSERT INTO participations ({names}) VALUES ({marks})", astuple(entry)
            )
        return entry

    def close(self) -> None:
        self._database.close()

    def _rows(self, query: str) -> list[tuple]:
        with self._access():
            return self._database.execute(query).fetchall()

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        """Write everything in the block, or nothing; no other process writes meanwhile."""
        with self._access():
            self._database.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._database.execute("COMMIT")
            except BaseException:
                if self._database.in_transaction:  # SQLite ends it itself where a disk is full
                    self._database.execute("ROLLBACK")
                raise

    @contextmanager
    def _access(self) -> Iterator[None]:
        """Tell a damaged record from one that cannot be read or written now.

        Raises:
            OSError: it cannot be.
            ValueError: it is damaged.
        """
        try:
            yield
        except sqlite3.Error as error:
            if helps := _remedy(code_of(error)):
                message = f"{self.path} cannot be read or written: {error}; {helps}"
                raise OSError(message) from error
            raise ValueError(
                f"{self.path} is no participation record ({error}); put the record back, or "
                "remove the file: the phone then waits as after a reinstall"
            ) from error


def _remedy(code: int) -> str | None:
    """Return what helps where a sound record cannot be reached; None where it is damaged."""
    if code == sqlite3.SQLITE_READONLY_ROLLBACK:
        return "its last write was cut off, and `pfl-lm device run` undoes that"
    return remedy(code)


def _begin(path: Path, began: float, first_install: bool) -> None:
    """Write a new record, whole or not at all; one that another process began meanwhile stays.

    Raises:
        ValueError: the clock tells no date; or the journal of a record that is gone lies there:
            SQLite would undo its last write in the new one.
    """
    if not is_date(began):
        raise ValueError(NO_DATE)
    journal = path.with_name(f"{path.name}-journal")
    if journal.exists():
        raise ValueError(
            f"{journal} is left of a record that is gone; put {path} back, or remove {journal} "
            "too: the phone then waits as after a reinstall"
        )
    with scratch_beside(path) as scratch:
        new = scratch / path.name
        with closing(_connect(new, "rwc")) as database:
            database.execute("BEGIN")
            _write_tables(database, 0)
            database.execute("INSERT INTO installation VALUES (?, ?)", (began, first_install))
            database.execute("COMMIT")
        new.chmod(0o600)
        with suppress(FileExistsError):
            os.link(new, path)


def _write_tables(database: sqlite3.Connection, version: int) -> None:
    """Write what a record of an earlier version, or of none (0), lacks."""
    for statements in (_FIRST, _SECOND)[version:]:
        for statement in filter(str.strip, statements.split(";")):
            database.execute(statement)
    database.execute(f"PRAGMA user_version = {_VERSION}")


def _require_database(path: Path) -> None:
    """Refuse what SQLite would make a database of, or would lay further files beside.

    Raises:
        sqlite3.Error: the file is empty, or none that a record can be.
    """
    with path.open("rb") as file:
        header = file.read(20)
    if not (header.startswith(_MAGIC) and header.endswith(_ROLLBACK_JOURNAL)):
        raise sqlite3.DatabaseError("it is empty" if not header else "it is no database of ours")


def _connect(path: Path, mode: str) -> sqlite3.Connection:
    """Open a file with one of SQLite's modes: ``ro``, ``rw``, or ``rwc``, which makes it."""
    database = sqlite3.connect(
        f"{path.absolute().as_uri()}?mode={mode}",
        uri=True,
        isolation_level=None,
        check_same_thread=False,
        timeout=_PATIENCE,
    )
    # EXTRA also flushes the folder after the rollback journal is gone: the commit is kept.
    database.execute("PRAGMA synchronous = EXTRA")
    return database


def _copy(path: Path) -> sqlite3.Connection:
    """Return a copy of a file's database, in memory."""
    copy = sqlite3.connect(":memory:", isolation_level=None)
    with closing(_connect(path, "ro")) as database:
        database.backup(copy)
    return copy
