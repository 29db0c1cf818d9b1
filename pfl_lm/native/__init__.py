"""C kernels for what no library does fast, compiled on the user's machine at first use.

A C file in this folder is a handful of plain functions over pointers. :func:`load` compiles it with
the machine's C compiler for exactly its processor and keeps the result in the user's cache folder,
under a name made of everything that it depends on. Where that fails it takes the library that a
binary wheel brings (``prebuilt``). Where there is none it returns None, and the caller computes the
same with torch or numpy: slower, and in floating point not to the last bit. A failure of one
library says nothing of the others.

``PFL_LM_NATIVE`` is ``1`` if it is not set; ``0`` uses no kernel; with ``required`` a kernel that
cannot be had is an error, so that a test or a deployment cannot fall back unseen.
"""

from __future__ import annotations

import ctypes
import functools
import logging
import os
from pathlib import Path
from typing import NamedTuple

from pfl_lm.native import compiler, prebuilt
from pfl_lm.native.bindings import BINDINGS, bind
from pfl_lm.native.tuning import cpu_flags

SOURCES = Path(__file__).resolve().parent
SETTINGS = ("1", "0", "required")
_BROUGHT = "what the wheel brings, compiled for many processors, does the work"
_NOT_COMPILED = "%s.c is not compiled; %s (PFL_LM_NATIVE=0 silences this): %s"


class Attempt(NamedTuple):
    """A library, or None, and what a manifest says of it."""

    library: ctypes.CDLL | None
    outcome: str


def load(name: str) -> ctypes.CDLL | None:
    """Return the compiled ``name``.c of this folder, its functions typed; None without it.

    The log says once why it cannot be had.

    Raises:
        ValueError: ``PFL_LM_NATIVE`` has no such setting.
        RuntimeError: it cannot be had and ``PFL_LM_NATIVE=required``.
    """
    return attempt(name).library


def backend() -> dict[str, str]:
    """Say for a manifest what runs each kernel: the compiler's name, or why none was used."""
    return {name: attempt(name).outcome for name in BINDINGS}


@functools.cache
def attempt(name: str) -> Attempt:
    """:func:`load` with its outcome; the same for the life of a process."""
    setting = os.environ.get("PFL_LM_NATIVE", "1")
    if setting not in SETTINGS:
        raise ValueError(f"PFL_LM_NATIVE must be one of {', '.join(SETTINGS)}: {setting!r}")
    if setting == "0":
        return Attempt(None, "not compiled: PFL_LM_NATIVE=0")
    brought = prebuilt.find(SOURCES, name, cpu_flags())
    instead = compiler.SLOWER if brought is None else _BROUGHT
    chosen, reason = compiler.find(instead), "no usable C compiler"
    if chosen is not None:
        try:
            path = compiler.build(SOURCES / f"{name}.c", chosen, SOURCES)
            return Attempt(_open(path, name), chosen.name)
        except (OSError, compiler.Unusable) as error:
            reason = str(error)
            logging.getLogger(__name__).warning(_NOT_COMPILED, name, instead, reason)
    if brought is not None:
        try:
            return Attempt(_open(brought[0], name), brought[1])
        except OSError as error:
            reason = str(error)
    if setting == "required":
        raise RuntimeError(f"PFL_LM_NATIVE=required, but {name}.c cannot be used: {reason}")
    return Attempt(None, f"not compiled: {reason.splitlines()[0]}")


def _open(path: Path, name: str) -> ctypes.CDLL:
    """Load a library and type its functions.

    Raises:
        OSError: it does not load, or its structs have other sizes.
    """
    library = ctypes.CDLL(str(path))
    bind(library, BINDINGS[name])
    return library
