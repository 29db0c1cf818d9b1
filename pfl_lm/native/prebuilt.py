"""The kernels that a binary wheel brings, for machines without a C compiler.

Such a wheel holds every kernel compiled for a few levels of one kind of processor. A machine takes
the highest level of which it has every instruction. A kernel that is compiled on the machine itself
comes first, because it is made for exactly that processor.

``python -m pfl_lm.native.prebuilt FOLDER MACHINE`` compiles them (``make wheels``); this module
needs nothing but Python, so that a wheel can be built without the package's dependencies.
"""

from __future__ import annotations

import functools
import hashlib
import json
import platform
import re
import sys
from pathlib import Path
from typing import NamedTuple

from pfl_lm.native import compiler

FOLDER = "prebuilt"
ABOUT = "about.json"


class Level(NamedTuple):
    """A set of instructions that a library may use.

    Attributes:
        name: what ``-march`` calls it.
        machine: what ``platform.machine`` calls the kind of processor.
        flags: the words of /proc/cpuinfo that a processor of this level has.
    """

    name: str
    machine: str
    flags: frozenset[str]


# Source: the x86-64 psABI, "micro-architecture levels"; `pni` is the kernel's word for SSE3 and
# `abm` for LZCNT.
_V2 = frozenset(["cx16", "lahf_lm", "popcnt", "pni", "sse4_1", "sse4_2", "ssse3"])
_V3 = _V2 | frozenset(["abm", "avx", "avx2", "bmi1", "bmi2", "f16c", "fma", "movbe", "xsave"])
_V4 = _V3 | frozenset(["avx512bw", "avx512cd", "avx512dq", "avx512f", "avx512vl"])
LEVELS = (  # of a kind of processor the highest first
    Level("x86-64-v4", "x86_64", _V4),
    Level("x86-64-v3", "x86_64", _V3),
    Level("x86-64-v2", "x86_64", _V2),
    Level("armv8-a", "aarch64", frozenset()),
)


def find(sources: Path, name: str, flags: set[str]) -> tuple[Path, str] | None:
    """Return the library of ``name``.c that fits this machine and what a manifest says of it.

    Args:
        sources: the folder of the C files; what the wheel brings lies in ``prebuilt`` there.
        flags: of the processor, as /proc/cpuinfo lists them.

    Returns:
        None if there is none for this processor, or the C files are not those that it was compiled
        from.
    """
    for level in LEVELS:
        library = sources / FOLDER / level.name / f"{name}.so"
        if level.machine == platform.machine() and level.flags <= flags and library.is_file():
            about = json.loads((library.parent / ABOUT).read_text(encoding="utf-8"))
            if about["sources"] == _digest(sources):
                return library, f"in the wheel: {about['compiler']}, {level.name}"
    return None


def build(sources: Path, folder: Path, machine: str) -> None:
    """Compile every kernel for each level of a kind of processor into ``folder``.

    The compiler is ``CC``, or this machine's own; for another kind of processor, a cross compiler.

    Raises:
        ValueError: no level is known for ``machine``.
        Unusable: there is no usable compiler, or it failed.
    """
    levels = [level for level in LEVELS if level.machine == machine]
    if not levels:
        known = ", ".join(sorted({level.machine for level in LEVELS}))
        raise ValueError(f"no kernels are compiled for {machine}; known: {known}")
    chosen = compiler.find()
    if chosen is None:
        raise compiler.Unusable(f"GCC {compiler.LEAST_GCC} or clang is needed to compile kernels")
    for level in levels:
        target = folder / level.name
        target.mkdir(parents=True, exist_ok=True)
        options = (*compiler.FLAGS, f"-march={level.name}", "-mtune=generic")
        for source in sorted(sources.glob("*.c")):
            compiler.compile_into(target / f"{source.stem}.so", source, chosen, options, sources)
        about = {"compiler": chosen.name, "sources": _digest(sources)}
        (target / ABOUT).write_text(json.dumps(about) + "\n", encoding="utf-8")


def least_glibc(folder: Path) -> tuple[int, int]:
    """Return the oldest version of glibc with which every library below ``folder`` loads."""
    versions = {
        (int(major), int(minor))
        for library in folder.rglob("*.so")
        for major, minor in re.findall(rb"GLIBC_(\d+)\.(\d+)", library.read_bytes())
    }
    return max(versions)


@functools.cache
def _digest(sources: Path) -> str:
    """Return the SHA-256 of the C files: a library belongs to those that it was compiled from."""
    digest = hashlib.sha256()
    for path in sorted([*sources.glob("*.c"), *sources.glob("*.h")]):
        digest.update(f"{path.name} {hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode())
    return digest.hexdigest()


if __name__ == "__main__":
    build(Path(__file__).resolve().parent, Path(sys.argv[1]), sys.argv[2])
