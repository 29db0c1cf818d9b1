"""The durable state of rounds: SQLite beside the ledger, and the order in which both are written.

The ledger stays the record of what was spent. For every round the writes come in this order, each
on the disk before the next begins:

    1. store   ``invited``    before any device hears of the round
    2. store   ``asking``     before any device is asked for what removes the masks
    3. store   ``opened``     the noisy mean, as soon as there is one
    4. ledger  the debit      before the model moves
    5. store   ``closed``     the model moves: it is the start and the means of the closed rounds

A round that nobody was asked to open ends, from 1, with an entry "abandoned" in the ledger and then
``abandoned`` in the store. From 2 on every end is a debit: if the sum cannot be opened, the ledger
gets the debit without a release, and the store ``lost``. A server killed at any point finds, of its
last round:

    ==============================  ===================================================
    last write before it was killed  what ``recover`` does
    ==============================  ===================================================
    none                            the round was never opened: it is opened now
    1 ``invited``                   nobody answered: abandoned, the next round follows
    1, ledger has "abandoned"       the same, without a second entry
    2 ``asking``                    devices may have answered, so a curious server may know
                                    the sum: debited, without a release; model stays: ``lost``
    2, ledger has that debit        the same, without a second debit
    3 ``opened``                    debited, and the model moves: nothing is lost
    3, 4 ledger has the debit       the model moves, without a second debit
    5 ``closed``                    the next round follows
    ==============================  ===================================================

Where store and ledger differ in any other way, one of them is an older copy: ``open_store`` refuses
both. A device that spoiled a round is written down first of all that ends the round (``expel``).

So no spent budget is forgotten (from 2 on it is charged whatever happens), none is charged twice
(a debit repeats itself to the byte), and no round is opened twice (1 is unique).
"""

from __future__ import annotations

import functools
import os
import sqlite3
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pfl_lm.network.sqlite_errors import code_of, remedy

_SCHEMA = """
CREATE TABLE run (id TEXT NOT NULL);
CREATE TABLE devices (
    number   INTEGER PRIMARY KEY,
    identity BLOB NOT NULL UNIQUE
);
CREATE TABLE rounds (
    round   INTEGER PRIMARY KEY,
    state   TEXT NOT NULL
            CHECK (state IN ('invited', 'asking', 'opened', 'closed', 'abandoned', 'lost')),
    context BLOB NOT NULL,
    reports INTEGER,
    mean    BLOB
);
CREATE TABLE expelled (
    number INTEGER PRIMARY KEY,
    round  INTEGER NOT NULL,
    reason TEXT NOT NULL
);
PRAGMA user_version = 3;
"""
_VERSION = 3
OVER = ("closed", "abandoned", "lost")


def _telling(method: Callable[..., Any]) -> Callable[..., Any]:
    """Let a method of a cursor name the store's file and the remedy in its errors.

    Raises:
        OSError: the file cannot be read or written now: the disk is full, say.
        ValueError: the file is damaged.
    """

    @functools.wraps(method)
    def told(cursor: _Cursor, *arguments: Any) -> Any:
        try:
            return method(cursor, *arguments)
        except sqlite3.Error as error:
            path = cursor.connection.path
            if helps := remedy(code_of(error)):
                raise OSError(
                    f"{path} cannot be read or written: {error}; {helps}, then --resume"
                ) from error
            raise ValueError(
                f"{path} is no sound store of rounds ({error}); put the store back: without it "
                "nobody knows which rounds were opened"
            ) from error

    return told


class _Cursor(sqlite3.Cursor):
    """A cursor that tells what its errors mean for the store."""

    connection: _Database
    execute = _telling(sqlite3.Cursor.execute)
    executemany = _telling(sqlite3.Cursor.executemany)
    fetchone = _telling(sqlite3.Cursor.fetchone)
    __next__ = _telling(sqlite3.Cursor.__next__)


class _Database(sqlite3.Connection):
    """A connection that knows its file, and whose cursors are of that kind."""

    path = Path()

    def execute(self, *arguments: Any) -> sqlite3.Cursor:
        return self.cursor(_Cursor).execute(*arguments)

    def executemany(self, *arguments: Any) -> sqlite3.Cursor:
        return self.cursor(_Cursor).executemany(*arguments)


@dataclass(frozen=True)
class RoundRow:
    """A round as the store knows it: ``mean`` float32[d] from ``opened`` on."""

    round: int
    state: str
    reports: int | None
    mean: np.ndarray | None


class Store:
    """An open store; every method is one transaction, on the disk when it returns."""

    def __init__(self, path: Path) -> None:
        """Use :meth:`create` or :meth:`open`."""
        self.path = Path(path)
        self._database = sqlite3.connect(
            path, isolation_level=None, check_same_thread=False, factory=_Database
        )
        self._database.path = self.path
        self._database.execute("PRAGMA journal_mode = WAL")
        self._database.execute("PRAGMA synchronous = FULL")

    @classmethod
    def create(cls, path: Path, devices: Mapping[int, bytes]) -> Store:
        """Start a store for a run with these devices; a file that is there already is replaced.

        Only the beginning of a run calls this: a store that holds a round is never started over.

        Raises:
            ValueError: the store holds rounds.
        """
        store = cls(path)
        database = store._database
        database.execute("BEGIN IMMEDIATE")
        version = database.execute("PRAGMA user_version").fetchone()[0]
        if version not in (0, _VERSION):
            raise ValueError(f"{path} is a store of version {version}, not {_VERSION}; remove it")
        if version == 0:
            for statement in _SCHEMA.split(";"):
                database.execute(statement)
            database.execute("INSERT INTO run VALUES (?)", (os.urandom(16).hex(),))
        if store.rounds():
            raise ValueError(f"{path} holds rounds; a store is never started over")
        database.execute("DELETE FROM devices")
        database.executemany("INSERT INTO devices VALUES (?, ?)", devices.items())
        database.execute("COMMIT")
        return store

    @classmethod
    def open(cls, path: Path) -> Store:
        """Open the store of a run that has begun.

        Raises:
            ValueError: there is none, or one of another version.
        """
        if not Path(path).is_file():
            raise ValueError(f"there is no {path}: no server has begun this run")
        store = cls(path)
        version = store._database.execute("PRAGMA user_version").fetchone()[0]
        if version != _VERSION:
            raise ValueError(f"{path} is a store of version {version}, not {_VERSION}")
        (state,) = store._database.execute("PRAGMA quick_check").fetchone()
        if state != "ok":
            raise ValueError(f"{path} is damaged ({state}); put the store back")
        return store

    @property
    def run(self) -> str:
        """The run's id, drawn when it began: devices know their rounds by it."""
        (run_id,) = self._database.execute("SELECT id FROM run").fetchone()
        return str(run_id)

    def devices(self) -> dict[int, bytes]:
        """Return the public key of every device that was enrolled when the run began."""
        return dict(self._database.execute("SELECT number, identity FROM devices"))

    def expelled(self) -> dict[int, str]:
        """Return why each expelled device is left out, by its number."""
        return dict(self._database.execute("SELECT number, reason FROM expelled"))

    def expel(self, number: int, round: int, reason: str) -> None:
        """Leave a device out of the run from here on; the first reason stays."""
        self._database.execute(
            "INSERT OR IGNORE INTO expelled VALUES (?, ?, ?)", (number, round, reason)
        )

    def rounds(self) -> list[RoundRow]:
        """Return every round, in order."""
        rows = self._database.execute(
            "SELECT round, state, reports, mean FROM rounds ORDER BY round"
        )
        return [
            RoundRow(r, s, n, None if mean is None else np.frombuffer(mean, dtype="<f4"))
            for r, s, n, mean in rows
        ]

    def invited(self, round: int, context: bytes) -> None:
        """Open a round, once in the life of the run.

        Raises:
            ValueError: the round was opened before, or an earlier one is not over.
        """
        database = self._database
        database.execute("BEGIN IMMEDIATE")
        try:
            pending = "SELECT round FROM rounds WHERE round >= ? OR state NOT IN (?, ?, ?)"
            if row := database.execute(pending, (round, *OVER)).fetchone():
                raise ValueError(
                    f"round {round} cannot be opened: round {row[0]} was, or is not over"
                )
            database.execute(
                "INSERT INTO rounds (round, state, context) VALUES (?, 'invited', ?)",
                (round, context),
            )
            database.execute("COMMIT")
        except BaseException:
            if database.in_transaction:  # SQLite ends it itself where a disk is full
                database.execute("ROLLBACK")
            raise

    def asking(self, round: int, reports: int) -> None:
        """Note that the survivors are about to be asked: from here on the round is paid for."""
        self._move(round, ("invited",), "asking", reports=reports)

    def opened(self, round: int, mean: np.ndarray) -> None:
        """Keep the noisy mean, float32[d]: the round's release, so it may be kept."""
        self._move(round, ("asking",), "opened", mean=mean.astype("<f4").tobytes())

    def closed(self, round: int) -> None:
        """Move the model: the mean of this round belongs to it."""
        self._move(round, ("opened",), "closed")

    def abandoned(self, round: int) -> None:
        """End a round that no device was asked to open."""
        self._move(round, ("invited",), "abandoned")

    def lost(self, round: int) -> None:
        """End a round that was paid for, and whose sum was not opened or died with a server."""
        self._move(round, ("asking",), "lost")

    def forget_means_before(self, round: int) -> None:
        """Drop the means that a checkpoint made superfluous."""
        self._database.execute(
            "UPDATE rounds SET mean = NULL WHERE round < ? AND state = 'closed'", (round,)
        )

    def close(self) -> None:
        self._database.close()

    def _move(self, round: int, before: tuple[str, ...], after: str, **values: object) -> None:
        """Take a round from one state to the next; anything else is a bug, and is refused."""
        fields = "".join(f", {name} = ?" for name in values)
        places = ", ".join("?" * len(before))
        changed = self._database.execute(
            f"UPDATE rounds SET state = ?{fields} WHERE round = ? AND state IN ({places})",
            (after, *values.values(), round, *before),
        ).rowcount
        if changed != 1:
            raise ValueError(f"round {round} is not {' or '.join(before)}: it cannot be {after}")
