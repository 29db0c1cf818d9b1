"""The record of what was spent: an append-only file in which every line vouches for the last.

One JSON object a line: ``index``, ``previous`` (the hash of the line before), ``entry`` (what
happened) and ``hash`` (SHA-256 of the canonical JSON of the other three). The first entry, the
genesis, names the run, the policy's digest and what is promised. No heavy import: an auditor reads
a ledger in milliseconds.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pfl_lm.files import naming

Entry = dict[str, Any]

_BEFORE_GENESIS = "0" * 64
_OWN_KINDS = ("genesis", "round", "recovery")


class LedgerError(ValueError):
    """A ledger that cannot be believed, or a record that it must refuse."""


class Ledger:
    """An open ledger, held under an exclusive lock until closed (or used in a ``with``).

    Guarantees:
        * A debit is on the disk before :meth:`record` returns, so before the model moves: a crash
          at any moment can only leave more recorded than was released, never less. Spent stays
          spent.
        * Any edit, removal (but of last lines), reordering, duplication or insertion of a line is
          refused by :meth:`open`; removal of last lines, and replacement of the whole file, is
          detected by a reader who holds a later ``head`` (the manifest, each checkpoint and a
          published report carry it): see :func:`verify`.
        * One writer at a time, over all processes of the machine.

    It detects tampering, it does not prevent it: a writer of the file may rewrite all of it,
    and only a head kept elsewhere tells.
    """

    def __init__(self, path: Path, descriptor: int) -> None:
        """Use :meth:`create` or :meth:`open`."""
        self.path = path
        self.dropped = ""  # what a crash left of the last line and opening cut off
        self.before_append: Callable[[Entry], None] = lambda line: None
        """Called with each new line before it is written; an exception keeps it out."""
        self._descriptor = descriptor
        self._lines: list[Entry] = []
        self._rounds: dict[int, list[Entry]] = {}  # lines by the round they debit

    @classmethod
    def create(cls, path: Path, genesis: Entry, mode: int = 0o644) -> Ledger:
        """Start a ledger with its first entry: what is promised, by which policy, for which run.

        Args:
            mode: of the file; 0o600 where its counts of reports are secret.

        Raises:
            LedgerError: the file exists; a genesis without ``run`` and ``policy_digest``.
        """
        for name in ("run", "policy_digest"):
            if not genesis.get(name):
                raise LedgerError(f"a genesis must name its {name}")
        line = _line(0, _BEFORE_GENESIS, {**genesis, "kind": "genesis"})
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_EXCL, mode)
        except FileExistsError:
            raise LedgerError(f"{path} exists; a ledger is never started over") from None
        ledger = cls(Path(path), descriptor)
        try:
            _lock(descriptor, path)
        except BaseException:  # another process has it now
            ledger.close()
            raise
        try:
            ledger._append(line)
            _sync_folder(Path(path))
        except BaseException:  # a full disk: nothing was promised yet
            os.unlink(path)
            ledger.close()
            raise
        return ledger

    @classmethod
    def open(cls, path: Path) -> Ledger:
        """Open a ledger to append to it, verifying every line first.

        A last line without its newline was never acknowledged: :meth:`record` had not returned,
        nothing was released. If it is nevertheless whole it counts (spent stays spent), and so
        does one whose whole text was kept beside the ledger (:func:`debited_path`). Any other is
        cut off, kept in ``dropped``, and an entry of kind "recovery" states it.

        Raises:
            LedgerError: no such file, another writer, or a broken chain (with the line's number).
        """
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_APPEND)
        except FileNotFoundError:
            raise LedgerError(f"there is no ledger at {path}") from None
        ledger = cls(Path(path), descriptor)
        try:
            _lock(descriptor, path)
            whole, torn = _read(Path(path))
            for line in _chain(whole, path):
                ledger._remember(line)
            if torn:
                ledger._recover(torn, sum(len(line) + 1 for line in whole))
        except BaseException:
            ledger.close()
            raise
        return ledger

    def record(self, entry: Entry) -> str:
        """Append one entry and return its hash once it is on the disk.

        Args:
            entry: JSON values only; no nan or inf.

        Raises:
            LedgerError: an entry that JSON cannot hold, or of a kind that the ledger itself writes
                ("genesis", "round", "recovery").
        """
        if entry.get("kind") in _OWN_KINDS:
            raise LedgerError(f'kind = "{entry["kind"]}" is written by the ledger itself')
        return self._write(entry)

    def record_round(self, round: int, entry: Entry, again: bool = False) -> str:
        """Debit one round, once: the entry is stored as {"kind": "round", "round": round, …}.

        A run killed between debit and release, or resumed from an older checkpoint, comes back
        with rounds that are debited already. With the same content it is the same debit: nothing
        is added and its hash returns. So that "same content" means "same release", ``entry`` must
        hold a digest of the released sum and no clock time: reproducible noise then repeats it to
        the byte, fresh noise cannot, and is refused.

        Args:
            round: from 0, rising.
            entry: JSON values only.
            again: debit a repeated round a second time, for a run that repeats it with fresh
                noise. Every entry of kind "round" counts, whatever its number.

        Raises:
            LedgerError: a round at or below the last one whose content differs, unless ``again``.
        """
        proposed: Entry = {**entry, "kind": "round", "round": round}
        for line in self._rounds.get(round, []):
            if _canonical(line["entry"]) == _canonical(proposed):
                return str(line["hash"])
        last = max(self._rounds, default=-1)
        if round <= last and not again:
            raise LedgerError(
                f"round {round} cannot be recorded: the ledger is at round {last}, and what is "
                "spent stays spent; continue with the next round, or debit this one again"
            )
        return self._write(proposed)

    def complete(self, text: bytes) -> bool:
        """Append a line that was about to be written when a process ended, if it comes next.

        Args:
            text: the line, as :func:`line_text` gave it.

        Returns:
            Whether it is, to the byte, the line that its entry gives after the last one; nothing
            is written otherwise.
        """
        if (line := _genuine(text, len(self._lines), self.head)) is None:
            return False
        self._append(line)
        return True

    def entries(self) -> list[Entry]:
        """Return every entry from the genesis on, in order."""
        return [line["entry"] for line in self._lines]

    @property
    def head(self) -> str:
        """The hash of the last line: kept elsewhere, it tells if anything before it changed."""
        return str(self._lines[-1]["hash"]) if self._lines else _BEFORE_GENESIS

    @property
    def hashes(self) -> list[str]:
        """The hash of every line, in order."""
        return [line["hash"] for line in self._lines]

    def close(self) -> None:
        """Release the lock. Closing twice is harmless."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def __enter__(self) -> Ledger:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _write(self, entry: Entry) -> str:
        line = _line(len(self._lines), self.head, entry)
        self._append(line)
        return str(line["hash"])

    def _append(self, line: Entry) -> None:
        if self._descriptor < 0:
            raise LedgerError(f"{self.path} is closed")
        self.before_append(line)
        data = _canonical(line) + b"\n"
        start = os.fstat(self._descriptor).st_size
        try:
            with naming(self.path):
                if os.write(self._descriptor, data) != len(data):
                    raise OSError(f"{self.path}: the disk took only a part of an entry")
                os.fsync(self._descriptor)
        except BaseException:
            os.ftruncate(self._descriptor, start)
            raise
        self._remember(line)

    def _remember(self, line: Entry) -> None:
        self._lines.append(line)
        if line["entry"].get("kind") == "round":
            self._rounds.setdefault(line["entry"]["round"], []).append(line)

    def _recover(self, torn: bytes, end: int) -> None:
        """Finish a last line that lacks only its newline; cut off and state any other."""
        if (whole := _genuine(torn, len(self._lines), self.head)) is not None:
            os.write(self._descriptor, b"\n")
            os.fsync(self._descriptor)
            self._remember(whole)
            return
        os.ftruncate(self._descriptor, end)
        kept = read_debited(self.path)
        if kept is not None and kept.startswith(torn) and self.complete(kept):
            return
        self.dropped = torn.decode("utf-8", "replace")
        self._write({"kind": "recovery", "dropped": self.dropped})


def verify(path: Path, head: str | None = None) -> list[Entry]:
    """Read a ledger without a lock and return its entries, if every line vouches for the last.

    Args:
        head: a hash kept elsewhere; some line must bear it, so what was there is there still.

    Raises:
        LedgerError: a broken chain, an unfinished last line, or no line with that head.
    """
    if not Path(path).is_file():
        raise LedgerError(f"there is no ledger at {path}")
    whole, torn = _read(Path(path))
    lines = _chain(whole, path)
    if torn:
        raise LedgerError(f"{path}:{len(whole) + 1}: unfinished line; open it to recover")
    if head is not None and all(line["hash"] != head for line in lines):
        raise LedgerError(f"{path} has no line with hash {head}: it was cut short or replaced")
    return [line["entry"] for line in lines]


def debited_path(path: Path) -> Path:
    """Return where a ledger keeps the line of a round that is debited elsewhere first."""
    return Path(path).with_name("ledger.debited")


def read_debited(path: Path) -> bytes | None:
    """Return the line that is kept beside a ledger; None where there is none."""
    try:
        return debited_path(path).read_bytes()
    except FileNotFoundError:
        return None


def line_text(line: Entry) -> bytes:
    """Return a line of a ledger as its file holds it, without the newline."""
    return _canonical(line)


def _canonical(value: Entry) -> bytes:
    """Return the one JSON text of a value: sorted keys, no spaces, no nan (RFC 8785 in spirit)."""
    try:
        text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    except (TypeError, ValueError) as error:
        raise LedgerError(f"an entry must be plain JSON: {error}") from None
    return text.encode()


def _line(index: int, previous: str, entry: Entry) -> Entry:
    # Through JSON and back, so that what is hashed and kept is what a reader will find.
    body: Entry = json.loads(_canonical({"index": index, "previous": previous, "entry": entry}))
    return {**body, "hash": hashlib.sha256(_canonical(body)).hexdigest()}


def _read(path: Path) -> tuple[list[bytes], bytes]:
    """Return the finished lines, and what follows the last newline."""
    *whole, torn = path.read_bytes().split(b"\n")
    return whole, torn


def _genuine(text: bytes, index: int, previous: str) -> Entry | None:
    """Parse a line if it is, to the byte, the line that its entry gives at this place."""
    try:
        line: Entry = json.loads(text)
        if not isinstance(line["entry"], dict):
            return None
        return line if _canonical(_line(index, previous, line["entry"])) == text else None
    except (ValueError, KeyError, TypeError, RecursionError):
        return None


def _chain(raw: list[bytes], path: Path) -> list[Entry]:
    """Parse the finished lines and check that each vouches for the one before."""
    lines: list[Entry] = []
    previous = _BEFORE_GENESIS
    for text in raw:
        line = _genuine(text, len(lines), previous)
        if line is None:
            raise LedgerError(f"{path}:{len(lines) + 1}: the chain breaks here; do not trust it")
        previous = line["hash"]
        lines.append(line)
    if not lines or lines[0]["entry"].get("kind") != "genesis":
        raise LedgerError(
            f"{path} has no genesis entry; if a run was killed as it began, remove the file"
        )
    return lines


def _lock(descriptor: int, path: Path) -> None:
    """Lock a ledger that is still there: what is written to a removed file is lost."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise LedgerError(f"{path} is open in another process; one run writes a ledger") from None
    if not os.fstat(descriptor).st_nlink:
        raise LedgerError(f"another process removed {path} this very moment; try again")


def _sync_folder(path: Path) -> None:
    descriptor = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
