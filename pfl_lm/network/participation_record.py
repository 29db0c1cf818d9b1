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
from contextlib import contextmanager, suppress
from dataclasses import asdict, astuple, fields
from pathlib import Path

from pfl_lm.dp.policy import Policy
from pfl_lm.dp.population_spent import Total
from pfl_lm.network.participation_rules import (
    Installation,
    InvitationRefused,
    Participation,
    Task,
    cost,
    event_of,
    other_task,
    refusal,
    total_cost,
)
from pfl_lm.numbers import format_epsilon

_VERSION = 2
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


class ParticipationRecord:
    """An open record; every method is one transaction, on the disk when it returns.

    Args:
        path: the file; it is made where it does not exist.
        first_install: vouch that this phone's user never took part before, so that a new record
            need not wait. Ignored where the record exists.
        clock: seconds since 1970.
        total: what all runs and questions together may cost. It is stated once; None: as it was
            stated before, or one run under one policy alone.

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
    ) -> None:
        self.path, self._clock = Path(path), clock
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with suppress(FileExistsError):
            os.close(os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
        try:
            self._database = sqlite3.connect(
                self.path, isolation_level=None, check_same_thread=False, timeout=30.0
            )
            # EXTRA also flushes the folder after the rollback journal is gone: the commit is kept.
            self._database.execute("PRAGMA synchronous = EXTRA")
            self._begin(first_install)
            self._check_content()
        except (sqlite3.Error, TypeError) as error:
            raise ValueError(
                f"{self.path} is no participation record ({error}); put the record back, or "
                "remove the file: the phone then waits as after a reinstall"
            ) from error
        if total is not None:
            self._state_total(total)

    def _begin(self, first_install: bool) -> None:
        """Write the tables where there are none.

        Raises:
            ValueError: a record of another version.
        """
        with self._transaction():
            (version,) = self._database.execute("PRAGMA user_version").fetchone()
            if not 0 <= version <= _VERSION:
                raise ValueError(f"{self.path} is a record of version {version}, not {_VERSION}")
            for statements in (_FIRST, _SECOND)[version:]:
                for statement in filter(str.strip, statements.split(";")):
                    self._database.execute(statement)
            if version == 0:
                row = (self._clock(), first_install)
                self._database.execute("INSERT INTO installation VALUES (?, ?)", row)
            self._database.execute(f"PRAGMA user_version = {_VERSION}")

    def _state_total(self, total: Total) -> None:
        """Write the total down, once, before anything that promised less.

        Raises:
            ValueError: another total is stated, or a round promised less.
        """
        with self._writing():
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
            sqlite3.Error, TypeError: the record is damaged.
        """
        (state,) = self._database.execute("PRAGMA quick_check").fetchone()
        if state != "ok":
            raise sqlite3.DatabaseError(state)
        began = self.installation.began
        if not isinstance(began, float):
            raise TypeError(f"it began at {began!r}")
        kinds = {"float": float, "int": int, "str": str}
        for entry in self.participations():
            for of in fields(Participation):
                if not isinstance(value := getattr(entry, of.name), kinds[str(of.type)]):
                    raise TypeError(f"{of.name} is {value!r}")

    @property
    def installation(self) -> Installation:
        began, is_first = self._database.execute("SELECT * FROM installation").fetchone()
        return Installation(began, bool(is_first))

    @property
    def total(self) -> Total | None:
        """What all runs and questions together may cost; None: one run alone."""
        row = self._database.execute("SELECT epsilon, delta FROM total").fetchone()
        return None if row is None else Total(*row)

    def participations(self) -> list[Participation]:
        """Return every round that this phone took part in, the oldest first."""
        names = ", ".join(field.name for field in fields(Participation))
        rows = self._database.execute(f"SELECT {names} FROM participations ORDER BY rowid")
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
        with self._writing():
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

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        """Write everything in the block, or nothing; no other process writes meanwhile."""
        self._database.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            if self._database.in_transaction:  # SQLite ends it itself where a disk is full
                self._database.execute("ROLLBACK")
            raise
        self._database.execute("COMMIT")

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """Do the same with a record that was sound when it was opened.

        Raises:
            OSError: it cannot be written: the disk is full, or another process holds it.
        """
        try:
            with self._transaction():
                yield
        except sqlite3.Error as error:
            raise OSError(f"{self.path} cannot be written: {error}") from error
