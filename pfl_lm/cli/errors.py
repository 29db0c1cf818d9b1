"""How a verb ends: every exception becomes one line on standard error, and an exit status.

===================================  =========================================================
exception                            line, status
===================================  =========================================================
ValueError                           its message, 2: a user's mistake
OSError                              what is wrong with which file, 2
MemoryError                          what could not be allocated, 2
any other                            its type and place, 1: a fault of this package
===================================  =========================================================

PFL_LM_TRACEBACK=1 lets a fault's traceback through.
"""

from __future__ import annotations

import errno
import os
import sys
import threading
import traceback
from typing import TextIO

TRACEBACK = "PFL_LM_TRACEBACK"

_OS_ERRORS = {
    FileNotFoundError: "{}: no such file or folder",
    FileExistsError: "{} exists already; remove it or choose another name",
    NotADirectoryError: "{}: a part of this path is a file, not a folder",
    IsADirectoryError: "{} is a folder; a file is needed here",
    PermissionError: "{}: permission denied",
}
_REMEDIES = {
    errno.ENOSPC: "make room on that disk and try again",
    errno.EDQUOT: "remove files of yours on that disk, or have the quota raised, and try again",
    errno.EROFS: "choose a folder on a disk that can be written",
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.EMFILE: "raise the limit on open files (ulimit -n)",
}


def status_of(error: Exception) -> int:
    """Return the exit status: 2 for what a person can mend, 1 for a fault of this package."""
    return 2 if isinstance(error, ValueError | OSError) or _is_memory(error) else 1


def lines_of(error: Exception) -> list[str]:
    """Say an exception in lines of plain text; mostly one."""
    if _is_memory(error):
        said = [str(error) or "not enough memory"]
    elif isinstance(error, OSError):
        said = [_os_error(error)]
    elif isinstance(error, ValueError):
        said = list(getattr(error, "problems", [str(error)]))  # a recipe may have several
    else:
        said = [_fault(error)]
    return [" ".join(line.split()) for line in said]


def hold_streams() -> None:
    """Open what was closed of standard input, output and error, on nothing.

    A file that is written would take their number, and what a library complains of, which goes to
    number 2, would stand in a ledger. Source: SQLite keeps its files from these numbers too
    (SQLITE_MINIMUM_FILE_DESCRIPTOR).
    """
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(descriptor)


def write_anything() -> None:
    """Let both streams write what their encoding lacks as ?, in place of an exception."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")


def is_coloured(stream: TextIO | None) -> bool:
    """Whether a stream shows colours: a terminal whose owner did not refuse them.

    Source: https://no-color.org.
    """
    refused = os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb"
    return stream is not None and stream.isatty() and not refused


def tell_of_threads() -> None:
    """Let a thread that a mistake ends say it in lines too; of a fault all is told as before."""
    before = threading.excepthook

    def tell(ended: threading.ExceptHookArgs) -> None:
        error = ended.exc_value
        if not isinstance(error, Exception) or status_of(error) == 1:
            before(ended)
            return
        for line in lines_of(error):
            print(f"pfl-lm: {line}", file=sys.stderr)

    threading.excepthook = tell


def lets_through(error: Exception) -> bool:
    """Whether the person who runs the verb asked for the traceback of a fault."""
    return status_of(error) == 1 and os.environ.get(TRACEBACK, "") not in ("", "0")


def _is_memory(error: Exception) -> bool:
    """Whether memory ran out; torch says so by a RuntimeError."""
    told = isinstance(error, RuntimeError) and "not enough memory" in str(error)
    return isinstance(error, MemoryError) or told


def _os_error(error: OSError) -> str:
    remedy = "".join(f"; {text}" for number, text in _REMEDIES.items() if number == error.errno)
    if error.filename is None:
        return (error.strerror or str(error)) + remedy
    for kind, text in _OS_ERRORS.items():
        if isinstance(error, kind):
            return text.format(error.filename)
    return f"{error.filename}: {error.strerror}{remedy}"


def _fault(error: Exception) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    place = next((f for f in reversed(frames) if "pfl_lm" in f.filename), None)
    where = "" if place is None else f", at {os.path.basename(place.filename)}:{place.lineno}"
    return (
        f"a fault of pfl-lm: {type(error).__name__}: {error}{where}; {TRACEBACK}=1 shows all of "
        "it, and a damaged input file may be the cause"
    )
