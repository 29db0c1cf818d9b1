"""Calls of C kernels, recorded here, and made again by a program for another processor."""

from __future__ import annotations

import ctypes
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

from pfl_lm import native
from pfl_lm.native import bindings, compiler
from pfl_lm.native.bindings import BINDINGS, Binding

GCC, QEMU = "aarch64-linux-gnu-gcc", "qemu-aarch64"
FLAGS = ("-O3", "-ffp-contract=fast", "-fno-math-errno", "-fno-trapping-math", "-static")
C_TYPES = {
    None: "void",
    ctypes.c_int: "int",
    ctypes.c_uint32: "unsigned",
    ctypes.c_long: "long",
    ctypes.c_int64: "long",
    ctypes.c_float: "float",
    ctypes.c_double: "double",
}
ELEMENTWISE = Binding(
    {
        f"{name}_each": (None, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p)
        for name in ("exp2", "exp", "sigmoid", "tanh", "erf")
    }
)


# ── recording ────────────────────────────────────────────────────────────────────────────────────


class Region(NamedTuple):
    """Memory that a call may reach: where it begins, and how to see it."""

    address: int
    view: np.ndarray
    owner: Any  # keeps it alive


class Call(NamedTuple):
    function: str
    types: tuple[Any, ...]
    arguments: list[str]  # as C writes them
    pointers: list[tuple[int, int, int, int]]  # region, offset: there is written region, offset
    before: list[bytes]
    after: list[np.ndarray]
    result: bytes


class Recorder:
    """Stands for one library: makes its calls here and records them."""

    def __init__(self, name: str) -> None:
        self.binding = ELEMENTWISE if name == "elementwise" else BINDINGS[name]
        if name == "elementwise":
            source = Path(__file__).with_name("elementwise.c")
            chosen = compiler.find()
            self.library = ctypes.CDLL(str(compiler.build(source, chosen, native.SOURCES)))
            bindings.bind(self.library, ELEMENTWISE)
        else:
            self.library = native.attempt(name).library
        self.known: list[Region] = []
        self.calls: list[Call] = []

    def see(self, owner: Any) -> int:
        """Remember an array's or a tensor's memory; return where it begins."""
        if isinstance(owner, torch.Tensor):
            storage, dtype = owner.untyped_storage(), owner.dtype
            if not storage.nbytes():
                return 0
            view = torch.empty(0, dtype=dtype).set_(storage).numpy()
            self.known.append(Region(storage.data_ptr(), view, storage))
            return storage.data_ptr()
        self.known.append(Region(owner.ctypes.data, owner.reshape(-1), owner))
        return owner.ctypes.data

    def __getattr__(self, function: str) -> Callable[..., Any]:
        return lambda *arguments: self._call(function, arguments)

    def _call(self, function: str, arguments: tuple[Any, ...]) -> Any:
        types = self.binding.functions[function]
        reached: list[Region] = []
        pointers: list[tuple[int, int, int, int]] = []
        written = [
            self._written(kind, argument, reached, pointers)
            for kind, argument in zip(types[1:], arguments, strict=True)
        ]
        before = [region.view.tobytes() for region in reached]
        passed = [self.see(a) if isinstance(a, np.ndarray) else a for a in arguments]
        result = getattr(self.library, function)(*passed)
        after = [region.view.copy() for region in reached]
        raw = b"" if types[0] is None else bytes(types[0](result))
        self.calls.append(Call(function, types, written, pointers, before, after, raw))
        return result

    def _written(self, kind: Any, argument: Any, reached: list, pointers: list) -> str:
        if isinstance(argument, np.ndarray):
            argument = self.see(argument)
        if isinstance(argument, bytes):
            view = np.frombuffer(argument, np.uint8)
            reached.append(Region(view.ctypes.data, view, argument))
            return f"r[{len(reached) - 1}]"
        argument = getattr(argument, "_obj", argument)  # of ctypes.byref
        if isinstance(argument, ctypes.Structure | ctypes.Array):
            number = len(reached)
            view = np.frombuffer(argument, np.uint8)
            reached.append(Region(ctypes.addressof(argument), view, argument))
            for at in pointer_places(type(argument)):
                (value,) = np.frombuffer(argument, np.uint64, 1, at)
                if value:
                    pointers.append((number, at, *self._place(int(value), reached)))
            return f"r[{number}]"
        if kind is ctypes.c_void_p:
            if not argument:
                return "0"
            value = getattr(argument, "value", argument)
            number, offset = self._place(value, reached)
            return f"r[{number}] + {offset}"
        floating = kind in (ctypes.c_float, ctypes.c_double)
        return float(argument).hex() if floating else str(int(argument))

    def _place(self, value: int, reached: list[Region]) -> tuple[int, int]:
        """The region that holds an address, among those reached by this call, and its offset."""
        for region in reversed(self.known):  # memory may have been used before by another
            if region.address <= value < region.address + region.view.nbytes:
                if not any(other.address == region.address for other in reached):
                    reached.append(region)
                number = [other.address for other in reached].index(region.address)
                return number, value - region.address
        raise AssertionError(f"nothing is known to lie at {value:#x}")


def pointer_places(struct: type[Any], at: int = 0) -> Iterator[int]:
    """Offsets of all pointers in a struct or array."""
    if struct is ctypes.c_void_p:
        yield at
    elif issubclass(struct, ctypes.Structure):
        for name, kind in struct._fields_:
            yield from pointer_places(kind, at + getattr(struct, name).offset)
    elif issubclass(struct, ctypes.Array):
        for i in range(struct._length_):
            yield from pointer_places(struct._type_, at + i * ctypes.sizeof(struct._type_))


# ── replaying ────────────────────────────────────────────────────────────────────────────────────


def program(calls: list[Call]) -> str:
    """The C program that reads each call's memory, makes the call, and writes what became of it."""
    lines = [
        "#include <stdio.h>",
        "#include <stdlib.h>",
        "static char *region(FILE *in, long size) {",
        "  char *r = aligned_alloc(64, (size + 127) / 64 * 64);",
        "  if (!r || fread(r, 1, size, in) != (size_t)size) exit(3);",
        "  return r;",
        "}",
    ]
    for name, types in {call.function: call.types for call in calls}.items():
        arguments = ", ".join(C_TYPES.get(kind, "void *") for kind in types[1:])
        lines.append(f"{C_TYPES[types[0]]} {name}({arguments});")
    lines += ["int main(int count, char **names) {", "  (void)count;"]
    lines.append('  FILE *in = fopen(names[1], "rb"), *out = fopen(names[2], "wb");')
    for call in calls:
        sizes = [len(raw) for raw in call.before]
        regions = ", ".join(f"region(in, {size})" for size in sizes)
        lines += ["  {", f"    char *r[] = {{{regions}}};"]
        lines += [f"    *(char **)(r[{a}] + {b}) = r[{c}] + {d};" for a, b, c, d in call.pointers]
        made = f"{call.function}({', '.join(call.arguments)});"
        if call.result:
            made = (
                f"{C_TYPES[call.types[0]]} result = {made} fwrite(&result, sizeof result, 1, out);"
            )
        lines.append(f"    {made}")
        lines += [f"    fwrite(r[{i}], 1, {size}, out);" for i, size in enumerate(sizes)]
        lines.append("  }")
    return "\n".join([*lines, "  return fclose(out);", "}", ""])


def make_again(name: str, calls: list[Call], folder: Path) -> bytes:
    """What the emulated program wrote."""
    main, executable = folder / "main.c", folder / "main"
    main.write_text(program(calls), encoding="utf-8")
    (folder / "in").write_bytes(b"".join(raw for call in calls for raw in call.before))
    here = Path(__file__).parent if name == "elementwise" else native.SOURCES
    sources = [str(main), str(here / f"{name}.c"), f"-I{native.SOURCES}"]
    build = [GCC, *FLAGS, *sources, "-o", str(executable), "-lm"]
    subprocess.run(build, check=True, timeout=600)
    run = [QEMU, str(executable), str(folder / "in"), str(folder / "out")]
    subprocess.run(run, check=True, timeout=600)
    return (folder / "out").read_bytes()


@pytest.fixture
def recorder() -> type[Recorder]:
    return Recorder


@pytest.fixture
def emulate() -> Callable[[str, list[Call], Path], bytes]:
    return make_again
