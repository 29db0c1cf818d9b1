"""What an error of SQLite says of its file: unreachable now, with the remedy, or damaged."""

from __future__ import annotations

import sqlite3

_UNREACHED = {
    sqlite3.SQLITE_BUSY: "end the process that holds it, or try again",
    sqlite3.SQLITE_LOCKED: "end the process that holds it, or try again",
    sqlite3.SQLITE_FULL: "make room on the disk",
    sqlite3.SQLITE_READONLY: "allow this user to write the file and its folder",
    sqlite3.SQLITE_CANTOPEN: "allow this user to open the file and its folder",
    sqlite3.SQLITE_PERM: "allow this user to open the file and its folder",
    sqlite3.SQLITE_IOERR: "check the disk",
    sqlite3.SQLITE_NOMEM: "end other processes",
}
"""What keeps a sound file from being read or written, by SQLite's primary code: the remedy."""


def code_of(error: sqlite3.Error) -> int:
    """Return SQLite's extended code of an error; an error without one is taken for damage."""
    return int(getattr(error, "sqlite_errorcode", sqlite3.SQLITE_CORRUPT))


def remedy(code: int) -> str | None:
    """Return what helps where a sound file cannot be reached; None where it is damaged.

    Args:
        code: extended, as of ``code_of``.
    """
    return _UNREACHED.get(code & 0xFF)
