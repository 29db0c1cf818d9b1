"""Files that are either whole or absent."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import re
import shutil
import stat
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

_TEMPORARY = re.compile(r"\..+\.[a-z0-9_]{8}")  # as tempfile names them
_MARKER = "unfinished"  # a file in each scratch folder, locked while its process lives
_MARK = b"pfl-lm writes here; once no process does, the next one to write it removes this folder\n"
_OF_THE_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EFBIG, errno.EROFS}


@contextmanager
def naming(path: Path, temporary: Path | None = None) -> Iterator[None]:
    """Let an error of the disk in a block name ``path``: Python's writes name no file.

    Args:
        temporary: what is written in place of ``path``; an error that names it names ``path``.

    Raises:
        OSError: of the same kind as the block's.
    """
    try:
        yield
    except OSError as error:
        if error.filename is None:
            ours = error.errno in _OF_THE_DISK
        else:
            named = os.fsdecode(error.filename) if isinstance(error.filename, str | bytes) else ""
            ours = temporary is not None and Path(named).is_relative_to(temporary)
        if not ours:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error


@contextmanager
def write_atomically(path: Path, mode: int = 0o644) -> Iterator[Path]:
    """Yield a temporary sibling of ``path`` to write; it becomes ``path`` when the block succeeds.

    Until then only its owner may read it; then ``mode`` applies.

    A crash or an exception leaves the old file, or none: never half of the new one.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _temporary(path, tempfile.mkstemp)
    try:
        with naming(path, temporary):
            yield temporary
            _flush_to_disk(temporary)
            temporary.chmod(mode)
            os.replace(temporary, path)
            _flush_to_disk(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def _temporary(path: Path, make: Callable[..., Any]) -> Path:
    """Make a temporary sibling of ``path``, by one of tempfile's functions.

    Raises:
        OSError: naming ``path``.
    """
    try:
        made = make(dir=path.parent, prefix=f".{path.name}.")
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error
    if isinstance(made, tuple):  # of mkstemp, with an open descriptor
        os.close(made[0])
        made = made[1]
    return Path(made)


def sweep(folder: Path, names: str = "*") -> None:
    """Remove what ``write_atomically`` left in a folder when its process was killed.

    Call it only where no other process writes these files: an unfinished file looks the same.

    Args:
        names: a glob of the files that were to be written.
    """
    for path in Path(folder).glob(f".{names}.*"):
        if path.is_file() and _TEMPORARY.fullmatch(path.name):
            path.unlink(missing_ok=True)


@contextmanager
def folder_atomically(path: Path) -> Iterator[Path]:
    """Yield a temporary folder on the disk of ``path``; it becomes ``path`` if the block succeeds.

    Raises:
        ValueError: ``path`` exists already, or does once the block has ended; nothing is
            overwritten.
    """
    path = Path(path)
    if path.exists():
        raise ValueError(f"{path} exists already; remove it or choose another destination")
    with scratch_beside(path) as scratch:
        whole = scratch / "whole"
        whole.mkdir(mode=0o700)
        yield whole
        for file in whole.rglob("*"):
            _flush_to_disk(file)
        whole.chmod(0o755)
        try:
            os.replace(whole, path)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
                raise
            raise ValueError(f"{path} was made meanwhile, by another process; it stays") from error
        _flush_to_disk(path.parent)


@contextmanager
def scratch_beside(path: Path) -> Iterator[Path]:
    """Yield a folder beside ``path``, which only its owner may read, and remove it afterwards.

    First remove the scratch folders of ``path`` whose processes were killed. A scratch folder holds
    a marker, and its process a lock on it, so other folders and those of living processes stay.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    _sweep_scratch(path)
    scratch = _temporary(path, tempfile.mkdtemp)
    marker = -1
    try:
        with naming(path, scratch):
            marker = os.open(scratch / _MARKER, os.O_RDWR | os.O_CREAT, 0o600)
            if _locked(marker):
                os.write(marker, _MARK)
            yield scratch
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
        if marker >= 0:
            os.close(marker)


def _sweep_scratch(path: Path) -> None:
    """Remove the scratch folders beside a path that no process holds any more."""
    name = re.compile(re.escape(f".{path.name}.") + "[a-z0-9_]{8}")
    for entry in list(os.scandir(path.parent)):
        if name.fullmatch(entry.name) and entry.is_dir(follow_symlinks=False):
            _remove_if_left(Path(entry.path))


def _remove_if_left(scratch: Path) -> None:
    """Remove a scratch folder if its marker is whole and nobody holds the lock on it."""
    try:
        marker = os.open(scratch / _MARKER, os.O_RDWR | os.O_NOFOLLOW)
    except OSError:
        return  # no marker: another's folder
    try:
        # A process marks its folder once it has the lock, so a marked folder without one is left.
        if _locked(marker) and os.read(marker, len(_MARK) + 1) == _MARK:
            shutil.rmtree(scratch, ignore_errors=True)
    finally:
        os.close(marker)


def _locked(descriptor: int) -> bool:
    """Lock a file; say whether it went well: another may hold it, or the disk has no locks."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def inside(folder: Path, name: str) -> Path:
    """Return the path of a name that a file states, if it lies in the folder.

    Args:
        name: relative, with slashes.

    Raises:
        ValueError: the name is empty, absolute, climbs out by ``..``, holds a backslash, a drive, a
            colon or a control character, or leads out over a symbolic link.
    """
    if problem := leads_out(name):
        raise ValueError(f"{name!r} {problem}")
    path = Path(folder) / name
    if not path.resolve().is_relative_to(Path(folder).resolve()):
        raise ValueError(f"{name!r} leads out of {folder} over a symbolic link")
    return path


def leads_out(name: str) -> str:
    """Say how a relative name leads out of its folder on any system, or nothing."""
    posix, windows = PurePosixPath(name), PureWindowsPath(name)
    if not posix.parts or any(ord(character) < 32 for character in name):
        return "is no name of a file"
    if posix.is_absolute() or windows.is_absolute() or ".." in posix.parts:
        return "leads out of its folder"
    if "\\" in name or ":" in name:
        return "holds a backslash or a colon, which some systems read as a folder or a drive"
    return ""


def check_zip(archive: zipfile.ZipFile, path: Path, expansion: float) -> None:
    """Refuse a zip that is not what it seems, before anything of it is unpacked.

    Python unpacks no more of a member than it states here, so the sizes that are stated bound what
    comes out.

    Args:
        path: of the archive.
        expansion: how many times its own size it may hold, beside a megabyte.

    Raises:
        ValueError: a name that leads out of the folder or occurs twice, a symbolic link, members
            that overlap, or more bytes than that.
    """
    size, names = Path(path).stat().st_size, set()
    for member in archive.infolist():
        if problem := leads_out(member.filename):
            raise ValueError(f"names a file outside itself ({member.filename!r} {problem})")
        if stat.S_ISLNK(member.external_attr >> 16):
            raise ValueError(f"holds a symbolic link ({member.filename!r})")
        if (folded := member.filename.rstrip("/").casefold()) in names:
            raise ValueError(f"holds {member.filename!r} twice")
        names.add(folded)
    if sum(member.compress_size for member in archive.infolist()) > size:
        raise ValueError("states more bytes than it has: members overlap")
    unpacked = sum(member.file_size for member in archive.infolist())
    if unpacked > (most := int(expansion * size) + (1 << 20)):
        raise ValueError(f"would unpack to {unpacked:,} bytes, {most:,} are allowed")


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file's bytes, in hexadecimal."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _flush_to_disk(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
