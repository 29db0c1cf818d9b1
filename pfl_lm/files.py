"""Files that are either whole or absent."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_TEMPORARY = re.compile(r"\..+\.[a-z0-9_]{8}")  # as tempfile names them


@contextmanager
def write_atomically(path: Path) -> Iterator[Path]:
    """Yield a temporary sibling of ``path`` to write; it becomes ``path`` when the block succeeds.

    A crash or an exception leaves the old file, or none: never half of the new one.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        _flush_to_disk(temporary)
        temporary.chmod(0o644)
        os.replace(temporary, path)
        _flush_to_disk(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def sweep(folder: Path, names: str = "*") -> None:
    """Remove what ``write_atomically`` left in a folder when its process was killed.

    Only for whoever alone writes these files: another's unfinished file looks the same.

    Args:
        names: a glob of the files that were to be written.
    """
    for path in Path(folder).glob(f".{names}.*"):
        if path.is_file() and _TEMPORARY.fullmatch(path.name):
            path.unlink(missing_ok=True)


@contextmanager
def folder_atomically(path: Path) -> Iterator[Path]:
    """Yield a temporary sibling folder of ``path``; it becomes ``path`` when the block succeeds.

    Raises:
        ValueError: ``path`` exists already; nothing is overwritten.
    """
    path = Path(path)
    if path.exists():
        raise ValueError(f"{path} exists already; remove it or choose another destination")
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}."))
    try:
        yield temporary
        for file in temporary.rglob("*"):
            _flush_to_disk(file)
        temporary.chmod(0o755)
        os.replace(temporary, path)
        _flush_to_disk(path.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


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
