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
from contextlib import contextmanager, suppress
from enum import Enum
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

# Begins the suffix of a file that is being written. It is no suffix of its own: torch writes a name
# less its last suffix into a file, and equal models shall be equal bytes.
_BEGUN = "unfinished_"
_TEMPORARY = re.compile(rf"\..+\.({_BEGUN})?[a-z0-9_]{{8}}")  # earlier versions: without
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
def write_atomically(path: Path, mode: int = 0o644, new: bool = False) -> Iterator[Path]:
    """Yield a temporary sibling of ``path`` to write; it becomes ``path`` when the block succeeds.

    Until then only its owner may read it; then ``mode`` applies.

    A crash or an exception leaves the old file, or none: never half of the new one. What a process
    that was killed left beside ``path`` is removed by the next one to write it.

    Args:
        new: ``path`` must not exist once the block has ended.

    Raises:
        ValueError: with ``new``: another process has made ``path`` meanwhile.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    _sweep_beside(path)
    temporary, held = _temporary_file(path)
    try:
        with naming(path, temporary):
            yield temporary
            temporary.chmod(mode)
            if new:
                move_new(temporary, path)
            else:
                _flush_to_disk(temporary)
                os.replace(temporary, path)
                _flush_to_disk(path.parent)
    finally:
        os.close(held)
        temporary.unlink(missing_ok=True)


@contextmanager
def sole_writer(path: Path) -> Iterator[None]:
    """Keep other processes that ask for the same from writing ``path``, for the length of a block.

    The lock is on a file beside ``path``, which is gone afterwards. The lock of a process that was
    killed holds nobody up. A disk without locks holds nobody up either.

    Raises:
        ValueError: another process writes it.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = path.with_name(f".{path.name}.lock")
    while True:
        try:
            held = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(path)) from error
        if _lock(held) is _Lock.another:
            os.close(held)
            raise ValueError(
                f"another process is writing {path}: wait for its end or stop it, or choose "
                "another name"
            )
        if _is_at(held, lock):
            break
        os.close(held)  # its holder has ended, and removed it
    try:
        yield
    finally:
        try:
            lock.unlink(missing_ok=True)
        finally:
            os.close(held)


def _temporary_file(path: Path) -> tuple[Path, int]:
    """Make a temporary sibling of a file; return it and a descriptor that holds its lock."""
    while True:
        held, name = _temporary(path, tempfile.mkstemp, _BEGUN)
        if _is_held(held, Path(name)):
            return Path(name), held
        os.close(held)


def _temporary(path: Path, make: Callable[..., Any], begun: str = "") -> Any:
    """Make a temporary sibling of ``path``, by one of tempfile's functions; return what it returns.

    Raises:
        OSError: naming ``path``.
    """
    try:
        return make(dir=path.parent, prefix=f".{path.name}.{begun}")
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error


def sweep(folder: Path, names: str = "*") -> None:
    """Remove what ``write_atomically`` left in a folder when its process was killed.

    Call it only where no other process writes these files: locks are not asked.

    Args:
        names: a glob of the files that were to be written.
    """
    for path in Path(folder).glob(f".{names}.*"):
        if path.is_file() and _TEMPORARY.fullmatch(path.name):
            path.unlink(missing_ok=True)


def _sweep_beside(path: Path) -> None:
    """Remove the temporary siblings of a file that no process holds any more."""
    name = re.compile(re.escape(f".{path.name}.{_BEGUN}") + "[a-z0-9_]{8}")
    try:
        entries = list(os.scandir(path.parent))
    except PermissionError:  # a folder that takes files and does not show them
        return
    for entry in entries:
        if name.fullmatch(entry.name) and entry.is_file(follow_symlinks=False):
            _unlink_if_left(Path(entry.path))


def _unlink_if_left(path: Path) -> None:
    """Remove a file that nobody holds the lock of."""
    try:
        held = os.open(path, os.O_RDWR | os.O_NOFOLLOW)
    except OSError:
        return  # it is gone, or another user's
    try:
        if _lock(held) is _Lock.ours and _is_at(held, path):
            path.unlink(missing_ok=True)
    except OSError:
        pass  # it stays: it is in nobody's way
    finally:
        os.close(held)


@contextmanager
def folder_atomically(path: Path) -> Iterator[Path]:
    """Yield a temporary folder on the disk of ``path``; it becomes ``path`` if the block succeeds.

    Raises:
        ValueError: ``path`` exists already, or does once the block has ended; nothing is
            overwritten.
    """
    path = Path(path)
    if os.path.lexists(path):
        _sweep_scratch(path)
        raise ValueError(f"{path} exists already; remove it or choose another destination")
    with scratch_beside(path) as scratch:
        whole = scratch / "whole"
        whole.mkdir(mode=0o700)
        yield whole
        whole.chmod(0o755)
        move_new(whole, path)


def move_new(whole: Path, path: Path) -> None:
    """Give a finished file or folder its name, on the same disk, if nothing else has that name.

    Raises:
        ValueError: another process has made ``path`` meanwhile.
        OSError: it could not be made to last; ``path`` is not there then.
    """
    for file in (*whole.rglob("*"), whole):
        _flush_to_disk(file)
    refused = ValueError(f"{path} was made meanwhile, by another process; it stays")
    if whole.is_file() and os.path.lexists(path):  # os.replace would replace a file
        raise refused
    try:
        os.replace(whole, path)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR, errno.EISDIR):
            raise
        raise refused from error
    try:
        _flush_to_disk(path.parent)
    except OSError:
        os.replace(path, whole)
        raise


@contextmanager
def scratch_beside(path: Path) -> Iterator[Path]:
    """Yield a folder beside ``path``, which only its owner may read, and remove it afterwards.

    First remove the scratch folders of ``path`` whose processes were killed. A scratch folder holds
    a marker, and its process a lock on it, so other folders and those of living processes stay.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    _sweep_scratch(path)
    while True:
        scratch, marker = Path(_temporary(path, tempfile.mkdtemp)), -1
        try:
            with naming(path, scratch):
                if (marker := _marked(scratch)) < 0:
                    continue
                yield scratch
                return
        finally:
            try:
                _remove_scratch(scratch)
            except BaseException:  # a signal that ends the process; it ignores a second one
                _remove_scratch(scratch)
                raise
            finally:
                if marker >= 0:
                    os.close(marker)


def _marked(scratch: Path) -> int:
    """Mark a scratch folder as this process's; return a descriptor that holds its lock.

    Returns:
        -1 where another process has just removed the folder, taking it for one that was left.
    """
    try:
        marker = os.open(scratch / _MARKER, os.O_RDWR | os.O_CREAT, 0o600)
    except FileNotFoundError:
        return -1
    try:
        if _is_held(marker, scratch / _MARKER):
            os.write(marker, _MARK)
            return marker
    except BaseException:
        os.close(marker)
        raise
    os.close(marker)
    return -1


def _sweep_scratch(path: Path) -> None:
    """Remove the scratch folders beside a path that no process holds any more."""
    name = re.compile(re.escape(f".{path.name}.") + "[a-z0-9_]{8}")
    for entry in list(os.scandir(path.parent)):
        if name.fullmatch(entry.name) and entry.is_dir(follow_symlinks=False):
            _remove_if_left(Path(entry.path))


def _remove_if_left(scratch: Path) -> None:
    """Remove a scratch folder if it holds nothing, or if nobody holds the lock on its marker."""
    try:
        marker = os.open(scratch / _MARKER, os.O_RDWR | os.O_NOFOLLOW)
    except FileNotFoundError:
        with suppress(OSError):  # it holds something, and no marker: another's folder
            scratch.rmdir()  # its process was killed before it had marked it
        return
    except OSError:
        return
    try:
        # A process marks its folder once it has the lock; it may be killed in between.
        if _lock(marker) is _Lock.ours and _is_at(marker, scratch / _MARKER):
            mark = os.read(marker, len(_MARK) + 1)
            is_bare = _MARK.startswith(mark) and os.listdir(scratch) == [_MARKER]
            if mark == _MARK or is_bare:
                _remove_scratch(scratch)
    finally:
        os.close(marker)


def _remove_scratch(scratch: Path) -> None:
    """Remove a scratch folder, its marker last: who is killed meanwhile leaves a marked folder."""
    with suppress(OSError):  # what cannot be removed is left to the next process
        for entry in list(os.scandir(scratch)):
            if entry.is_dir(follow_symlinks=False):
                shutil.rmtree(entry.path, ignore_errors=True)
            elif entry.name != _MARKER:
                with suppress(OSError):
                    os.unlink(entry.path)
        if os.listdir(scratch) in ([], [_MARKER]):
            (scratch / _MARKER).unlink(missing_ok=True)
            scratch.rmdir()


class _Lock(Enum):
    """What came of asking for a lock."""

    ours = "ours"
    another = "another process holds it"
    none = "this disk has no locks"


def _lock(descriptor: int) -> _Lock:
    """Lock a file, or say why not."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return _Lock.another
    except OSError:
        return _Lock.none
    return _Lock.ours


def _is_held(descriptor: int, path: Path) -> bool:
    """Lock a file that this process has just made.

    Returns:
        False if another process takes it for one that was left. On a disk without locks none does.
    """
    return _lock(descriptor) is not _Lock.another and _is_at(descriptor, path)


def _is_at(descriptor: int, path: Path) -> bool:
    """Whether a path still leads to an open file."""
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path, follow_symlinks=False))
    except FileNotFoundError:
        return False


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
