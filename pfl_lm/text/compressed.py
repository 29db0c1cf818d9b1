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
# What a file is by its first bytes, where that is no text, and the suffix that says so.
_SIGNATURES = {
    b"\x1f\x8b": ("gzip data", ".gz"),
    b"BZh": ("bzip2 data", ".bz2"),
    b"\xfd7zXZ\0": ("xz data", ".xz"),
    b"\x28\xb5\x2f\xfd": ("zstd data", ".zst"),
    b"PK\x03\x04": ("a zip archive", ".zip"),
    b"PAR1": ("a Parquet file", ".parquet"),
    b"\xff\xfe": ("UTF-16 text", ""),
    b"\xfe\xff": ("UTF-16 text", ""),
}

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
        yield io.TextIOWrapper(file, encoding="utf-8-sig", newline="")  # type: ignore[arg-type]


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
    """Open a file, decompressing by its last suffix.

    Raises:
        ValueError: the first bytes are not those of what the name says: text named .gz, gzip data
            named .jsonl, an empty archive, UTF-16.
    """
    with io.BufferedReader(_Counting(path, advance), 1 << 20) as raw:
        suffix = path.suffix.lower()
        _check_signature(path, raw.peek(8), suffix if suffix in COMPRESSED else bare_suffix(path))
        if suffix == ".gz":
            opened: Any = gzip.GzipFile(fileobj=raw)
        elif suffix == ".bz2":
            opened = bz2.BZ2File(raw)
        elif suffix == ".xz":
            opened = lzma.LZMAFile(raw)  # noqa: SIM115
        elif suffix == ".zst":
            import pyarrow

            opened = io.BufferedReader(pyarrow.CompressedInputStream(raw, "zstd"))  # type: ignore[arg-type]
        else:
            yield raw
            return
        try:
            _check_signature(path, opened.peek(8), bare_suffix(path))
            yield opened
        except OSError as error:
            if isinstance(error, gzip.BadGzipFile) or error.errno is not None:
                raise
            raise EOFError(str(error)) from error  # how bz2 and zstd report damage


def _check_signature(path: Path, head: bytes, suffix: str) -> None:
    """Refuse a file whose first bytes are not those that ``suffix`` promises."""
    what, usual = next(
        (name for start, name in _SIGNATURES.items() if head.startswith(start)), ("", "")
    )
    if not what and len(head) >= 8 and (not any(head[0:8:2]) or not any(head[1:8:2])):
        what = "UTF-16 text, or binary data"  # every other byte is 0, and no mark says so
    if suffix in COMPRESSED and usual != suffix:
        raise ValueError(
            f"{path}: not {suffix} data: it is {what or ('text' if head else 'empty')}"
            "; the download may have failed, or the name may be wrong"
        )
    if what and usual != suffix:
        remedy = f"end its name with {usual}" if usual else "convert it to UTF-8"
        raise ValueError(f"{path}: it is {what}, not plain UTF-8 text; {remedy}")


def lines(file: IO[bytes]) -> Iterator[tuple[int, bytes | None]]:
    """Yield (number from 1, line); None in place of a line longer than ``LONGEST_LINE``."""
    number = 0
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
