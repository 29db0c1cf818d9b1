"""The machine's C compiler: which one is used, and the cache of what it compiled.

A compiler is used if it is clang or GCC from version 12 on: older ones lack
``__builtin_shufflevector``. A compiler that does not finish is not called again in this process.
"""

from __future__ import annotations

import functools
import grp
import hashlib
import logging
import os
import platform
import pwd
import re
import shlex
import shutil
import signal
import stat
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

LEAST_GCC = 12
ASK_SECONDS, COMPILE_SECONDS = 30, 180
# Products may be fused and sums reordered, as any library of products does; NaN and infinity keep
# their meaning, because clipping must see them.
FLAGS = (
    "-O3",
    "-ffp-contract=fast",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-Wno-psabi",
    "-shared",
    "-fPIC",
)
_NATIVE = {
    "x86_64": "-march=native",
    "AMD64": "-march=native",
    "aarch64": "-mcpu=native",
    "arm64": "-mcpu=native",
}

SLOWER = "torch and numpy do the work of the C kernels, more slowly"

_hung: set[str] = set()  # paths of compilers that did not finish


class Compiler(NamedTuple):
    """A usable C compiler.

    Attributes:
        command: the words to call it by.
        name: for people and manifests, such as "gcc 12.2.0".
        about: its whole ``--version``.
    """

    command: tuple[str, ...]
    name: str
    about: str


class Unusable(Exception):
    """Why a compiler cannot be used."""


@functools.cache
def find(instead: str = SLOWER) -> Compiler | None:
    """Return the compiler to use: ``CC`` if that is set, else the first usable of cc, gcc, clang.

    Where there is none the log says why, once. ``CC`` may hold options: ``CC="clang -m64"``.

    Args:
        instead: what happens without a compiler, for the log.
    """
    wanted = _words_of("CC")
    reasons: list[str] = []
    for words in [wanted] if wanted else [["cc"], ["gcc"], ["clang"]]:
        try:
            return _identify(tuple(words))
        except Unusable as reason:
            if str(reason) not in reasons:
                reasons.append(str(reason))
    missing = not wanted and all("not installed" in reason for reason in reasons)
    logging.getLogger(__name__).log(
        logging.INFO if missing else logging.WARNING,
        "%s, because GCC %d or clang is needed (PFL_LM_NATIVE=0 silences this): %s",
        instead,
        LEAST_GCC,
        "; ".join(reasons),
    )
    return None


def build(source: Path, compiler: Compiler, headers: Path) -> Path:
    """Compile a source file unless the cache holds it; return the library's path.

    ``PFL_LM_CFLAGS`` holds more options, which follow and so override ours. Safe with many
    processes at once: each compiles into a file of its own and moves it into place.

    Raises:
        OSError: the cache folder cannot be used.
        Unusable: the compiler failed or did not finish.
    """
    flags = (*FLAGS, *_for_this_machine(), *_words_of("PFL_LM_CFLAGS"))
    depends = hashlib.sha256()
    for read in [source, *sorted(headers.glob("*.h"))]:
        depends.update(read.read_bytes())
    depends.update(repr((compiler.command, compiler.about, flags, _processor())).encode())
    folder = cache_folder()
    path = folder / f"{source.stem}-{depends.hexdigest()[:24]}.so"
    if not path.exists():
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            fresh = Path(scratch) / path.name
            compile_into(fresh, source, compiler, flags, headers)
            fresh.replace(path)
    return path


def compile_into(
    library: Path, source: Path, compiler: Compiler, flags: Sequence[str], headers: Path
) -> None:
    """Compile a source file into a library.

    Raises:
        Unusable: the compiler failed or did not finish.
    """
    command = [*compiler.command, *flags, f"-I{headers}", str(source), "-o", str(library)]
    _run([*command, "-lm"], COMPILE_SECONDS)


def cache_folder() -> Path:
    """Return the user's own cache folder, made if it is missing; what lies there is executed.

    Raises:
        OSError: somebody else may write it, or may put another folder in its place: a folder
            above it belongs to another user than root, or is writable by others and not sticky.
    """
    base = os.environ.get("XDG_CACHE_HOME")
    try:
        folder = (Path(base) if base else Path.home() / ".cache") / "pfl_lm" / "native"
    except RuntimeError as error:
        raise OSError("the user has no home folder; set XDG_CACHE_HOME") from error
    folder.parent.mkdir(parents=True, exist_ok=True)
    folder.mkdir(exist_ok=True, mode=0o700)
    folder = folder.resolve()
    about = folder.stat()
    if about.st_uid != os.getuid() or about.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise OSError(f"{folder} may be written by others; compiled code is not kept there")
    for parent in folder.parents:
        if _may_be_changed_by_others(parent.stat()):
            raise OSError(f"{parent} may be changed by others; compiled code is not kept below it")
    return folder


def _may_be_changed_by_others(about: os.stat_result) -> bool:
    """Whether another user than root may replace what lies in a folder of ours."""
    if about.st_uid not in (0, os.getuid()):
        return True
    if about.st_mode & stat.S_ISVTX:
        return False
    group = about.st_mode & stat.S_IWGRP and not _only_ours(about.st_gid)
    return bool(about.st_mode & stat.S_IWOTH or group)


def _only_ours(gid: int) -> bool:
    """Whether a group is the user's private one, as many systems make for each user, or root's."""
    if gid == 0:
        return True
    try:
        group, user = grp.getgrgid(gid), pwd.getpwuid(os.getuid())
    except KeyError:
        return False
    return group.gr_name == user.pw_name and set(group.gr_mem) <= {user.pw_name}


def _identify(command: tuple[str, ...]) -> Compiler:
    """Ask a compiler what it is.

    Raises:
        Unusable: it is missing, too old or unknown, does not run, or did not finish before.
    """
    path = shutil.which(command[0])
    if path is None:
        raise Unusable(f"{command[0]} is not installed")
    if os.path.realpath(path) in _hung:
        raise Unusable(f"{command[0]} did not finish")
    try:
        macros = _run([*command, "-dM", "-E", "-x", "c", os.devnull], ASK_SECONDS)
        about = _run([*command, "--version"], ASK_SECONDS)
    except OSError as error:
        raise Unusable(f"{command[0]} does not run ({error.strerror})") from error
    defined = dict(re.findall(r"^#define (\w+) (.*)$", macros, re.MULTILINE))
    if "__clang__" in defined:
        parts = (defined.get(f"__clang_{part}__", "0") for part in ("major", "minor", "patchlevel"))
        return Compiler(command, f"clang {'.'.join(parts)}", about)
    version = defined.get("__VERSION__", "").strip('"').split(" ")[0]
    major = int(defined.get("__GNUC__", "0"))
    if major == 0:
        raise Unusable(f"{command[0]} is neither GCC nor clang")
    if major < LEAST_GCC:
        raise Unusable(f"{command[0]} is GCC {version}, which lacks __builtin_shufflevector")
    return Compiler(command, f"gcc {version}", about)


def _run(command: list[str], seconds: float) -> str:
    """Run a compiler and return what it printed.

    Raises:
        OSError: it cannot be started.
        Unusable: it failed; or it did not finish, and was ended with the processes it started.
    """
    with subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        encoding="utf-8",
        errors="replace",
        env={**os.environ, "LC_ALL": "C"},
        process_group=0,
    ) as process:
        try:
            printed, complaint = process.communicate(timeout=seconds)
        except BaseException as error:
            os.killpg(process.pid, signal.SIGKILL)
            if not isinstance(error, subprocess.TimeoutExpired):
                raise
            _hung.add(os.path.realpath(shutil.which(command[0]) or command[0]))
            find.cache_clear()
            raise Unusable(f"{command[0]} did not finish within {seconds:g} s") from error
    if process.returncode:
        reason = complaint.strip() or f"it returned {process.returncode}"
        raise Unusable(f"{command[0]} failed: {reason[:500]}")
    return printed


def _words_of(variable: str) -> list[str]:
    """Return the words that a variable of the environment holds, as a shell reads them.

    Raises:
        ValueError: a quotation in it does not end.
    """
    try:
        return shlex.split(os.environ.get(variable, ""))
    except ValueError as error:
        raise ValueError(
            f"{variable}={os.environ[variable]!r} is no list of words ({error}): mend or unset it"
        ) from error


def _for_this_machine() -> tuple[str, ...]:
    option = _NATIVE.get(platform.machine())
    return () if option is None else (option,)


def _processor() -> str:
    """What native code depends on: a cache may be shared by several machines."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="ascii", errors="ignore").splitlines()
    except OSError:
        return platform.platform()
    kept = ("vendor_id", "cpu family", "model", "stepping", "flags", "Features", "CPU part")
    return "\n".join(sorted({line for line in lines if line.split("\t")[0].strip() in kept}))
