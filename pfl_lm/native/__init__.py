"""Loops in C for what no library does fast, compiled on the user's machine at first use.

A source file in this folder is a handful of plain functions over pointers. :func:`library` compiles
it with the machine's C compiler for exactly its processor and keeps the result in the user's cache
folder, under a name made of everything that it depends on. Where there is no compiler, or where
``PFL_LM_NATIVE=0``, it returns None, and the caller computes the same with torch or numpy: slower,
and in floating point not to the last bit.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import logging
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

SOURCES = Path(__file__).resolve().parent
# Products may be fused and sums reordered, as any library of products does; NaN and infinity keep
# their meaning, because clipping must see them.
FLAGS = (
    "-O3",
    "-march=native",
    "-ffp-contract=fast",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-shared",
    "-fPIC",
)


def enabled() -> bool:
    """Whether compiled loops are wanted: ``PFL_LM_NATIVE`` is not 0."""
    return os.environ.get("PFL_LM_NATIVE", "1") != "0"


@functools.cache
def library(name: str) -> ctypes.CDLL | None:
    """Return the compiled ``name``.c of this folder, or None where it cannot be had.

    Says once in the log why not. Safe with many processes at once: each compiles into a file of
    its own and moves it into place.
    """
    if not enabled():
        return None
    compiler = _compiler()
    if compiler is None:
        logging.getLogger(__name__).info("no C compiler found: slower loops are used")
        return None
    try:
        return ctypes.CDLL(str(_compiled(SOURCES / f"{name}.c", compiler)))
    except (OSError, subprocess.CalledProcessError) as error:
        said = getattr(error, "stderr", None) or str(error)
        logging.getLogger(__name__).warning(
            "%s.c was not compiled, slower loops are used (PFL_LM_NATIVE=0 says so at once): %s",
            name,
            said.strip()[:500],
        )
        return None


def functions(name: str, **types: tuple[Any, ...]) -> ctypes.CDLL | None:
    """Return :func:`library`, its functions told once what they return and take.

    Args:
        types: by function, its result and then its arguments, as ctypes names them.
    """
    found = library(name)
    if found is not None and not getattr(found, "told", False):
        for function, (result, *arguments) in types.items():
            told = getattr(found, function)
            told.restype, told.argtypes = result, arguments
        found.told = True  # type: ignore[attr-defined]
    return found


def loops() -> str:
    """Say for a manifest which loops train here: "compiled", or "torch"."""
    return "torch" if library("products") is None else "compiled"


def _compiler() -> list[str] | None:
    """The machine's C compiler: ``CC``, else cc, gcc or clang."""
    for words in (shlex.split(os.environ.get("CC", "")), ["cc"], ["gcc"], ["clang"]):
        if words and shutil.which(words[0]):
            return words
    return None


def _compiled(source: Path, compiler: list[str]) -> Path:
    """Compile a source file unless the cache holds it; return the library's path."""
    depends = hashlib.sha256()
    for shared in [source, *sorted(SOURCES.glob("*.h"))]:
        depends.update(shared.read_bytes())
    depends.update(repr((compiler, _version(compiler), FLAGS, _processor())).encode())
    folder = _cache()
    path = folder / f"{source.stem}-{depends.hexdigest()[:24]}.so"
    if not path.exists():
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            fresh = Path(scratch) / path.name
            command = [*compiler, *FLAGS, str(source), "-o", str(fresh), "-lm"]
            subprocess.run(command, check=True, capture_output=True, text=True, timeout=300)
            fresh.replace(path)
    return path


def _cache() -> Path:
    """The user's own cache folder, which nobody else may write: what lies there is executed."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    folder = Path(base) / "pfl_lm" / "native"
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    about = folder.stat()
    if about.st_uid != os.getuid() or about.st_mode & 0o022:
        raise OSError(f"{folder} may be written by others; compiled code is not kept there")
    return folder


def _version(compiler: list[str]) -> str:
    found = subprocess.run(
        [*compiler, "--version"], check=True, capture_output=True, text=True, timeout=60
    )
    return found.stdout


def _processor() -> str:
    """What ``-march=native`` depends on: a cache may be shared by several machines."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="ascii", errors="ignore").splitlines()
    except OSError:
        return platform.platform()
    kept = ("vendor_id", "cpu family", "model", "stepping", "flags", "Features", "CPU part")
    return "\n".join(sorted({line for line in lines if line.split("\t")[0].strip() in kept}))
