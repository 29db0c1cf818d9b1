"""Files plain or compressed, read as a stream; damage is a ValueError that names the file."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

COMPRESSED = (".gz", ".bz2", ".xz", ".zst")
LONGEST_LINE = 1 << 24  # bytes; a longer one is malformed and is skipped without being held
_DAMAGE = (EOFError, zlib.error, lzma.LZMAError, gzip.BadGzipFile)

Advance = Callable[[int], None]


def bare_suffix(path: Path) -> str:
    """Return the suffix in lower case, without that of the compression: .jsonl of a.jsonl.gz."""
    name = Path(path.stem) if path.suffix.lower() in COMPRESSED else path
    return name.suffix.lower()


def ignore(_: int) -> None:
    """Take a count of bytes read and do nothing with it."""


@contextmanager
def open_text(path: Path) -> Iterator[IO[str]]:
    """Open a plain or compressed UTF-8 text file for reading."""
    path = Path(path)
    with whole_file_errors(path), open_binary(path, ignore) as file:
        yield io.TextIOWrapper(file, encoding="utf-8", newline="")  # type: ignore[arg-type]


@contextmanager
def whole_file_errors(path: Path) -> Iterator[None]:
    """Turn what a damaged file raises into a ValueError that names it."""
    try:
        yield
    except _DAMAGE as error:
        raise ValueError(f"{path}: the compressed data is damaged or ends early") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 text") from error


class _Counting(io.RawIOBase):
    """A raw file that reports how far it has been read, for the progress bar."""

    def __init__(self, path: Path, advance: Advance) -> None:
        self._file = path.open("rb", buffering=0)
        self._advance = advance

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = 0) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()

    def readinto(self, buffer: Any) -> int:
        count = self._file.readinto(buffer)
        self._advance(count)
        return count

    def close(self) -> None:
        self._file.close()
        super().close()


@contextmanager
def open_binary(path: Path, advance: Advance) -> Iterator[IO[bytes]]:
    """Open a file, decompressing by its last suffix."""
    with io.BufferedReader(_Counting(path, advance), 1 << 20) as raw:
        suffix = path.suffix.lower()
        if suffix == ".gz":
            yield gzip.GzipFile(fileobj=raw)  # type: ignore[misc]
        elif suffix == ".bz2":
            yield bz2.BZ2File(raw)  # type: ignore[misc]
        elif suffix == ".xz":
            yield lzma.LZMAFile(raw)  # type: ignore[misc]  # noqa: SIM115
        elif suffix == ".zst":
            import pyarrow

            try:
                yield io.BufferedReader(pyarrow.CompressedInputStream(raw, "zstd"))  # type: ignore[arg-type]
            except OSError as error:
                raise EOFError(str(error)) from error
        else:
            yield raw


def lines(file: IO[bytes]) -> Iterator[tuple[int, bytes | None]]:
    """Yield (number from 1, line); None in place of a line longer than ``LONGEST_LINE``."""
    number = 0
    try:
        while line := file.readline(LONGEST_LINE):
            number += 1
            if number == 1:
                line = line.removeprefix(b"\xef\xbb\xbf")  # a byte order mark, as Excel writes
            if len(line) == LONGEST_LINE and not line.endswith(b"\n"):
                while (rest := file.readline(LONGEST_LINE)) and not rest.endswith(b"\n"):
                    pass
                yield number, None
            else:
                yield number, line
    except OSError as error:
        if isinstance(error, gzip.BadGzipFile) or error.errno is not None:
            raise
        raise EOFError(str(error)) from error  # how bz2 and zstd report damage
