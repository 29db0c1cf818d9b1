"""C kernels: built once, kept per machine, refused where they do not fit, and never needed."""

from __future__ import annotations

import ctypes
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pfl_lm import native
from pfl_lm.native import bindings, compiler
from pfl_lm.native.bindings import BINDINGS, Binding

TWICE = """
#include "size.h"
typedef struct { long many; const float *where, *there; int list[3]; } pair;
EXPORT_SIZE(pair)
double twice(double x) { return 2 * x; }
"""
SIZE = "#define EXPORT_SIZE(type) long size_of_##type(void) { return sizeof(type); }"
GCC_11 = """
case "$1" in -dM)
    echo '#define __GNUC__ 11'
    echo '#define __VERSION__ "11.4.0"' ;;
esac
"""

needs_compiler = pytest.mark.skipif(
    not any(map(shutil.which, ("cc", "gcc", "clang"))), reason="this machine has no C compiler"
)


class Pair(ctypes.Structure):
    _fields_ = (
        ("many", ctypes.c_long),
        ("where", ctypes.c_void_p),
        ("there", ctypes.c_void_p),
        ("list", ctypes.c_int * 3),
    )


class Shorter(ctypes.Structure):
    _fields_ = Pair._fields_[:-2]


def twice_with(struct: type[ctypes.Structure]) -> Binding:
    return Binding({"twice": (ctypes.c_double, ctypes.c_double)}, {"pair": struct})


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder of sources and a cache of the test's own."""
    sources, cache = tmp_path / "sources", tmp_path / "cache"
    sources.mkdir()
    (sources / "twice.c").write_text(TWICE, encoding="utf-8")
    (sources / "other.c").write_text(TWICE, encoding="utf-8")
    (sources / "size.h").write_text(SIZE, encoding="utf-8")
    monkeypatch.setattr(native, "SOURCES", sources)
    for name in ("twice", "other"):
        monkeypatch.setitem(BINDINGS, name, twice_with(Pair))
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    for name in ("PFL_LM_NATIVE", "CC", "PFL_LM_CFLAGS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(compiler, "_hung", set())
    forget()
    yield sources
    forget()


def forget() -> None:
    """As in a new process."""
    native.attempt.cache_clear()
    compiler.find.cache_clear()


def compiled(place) -> list[Path]:
    return sorted((place.parent / "cache").rglob("*.so"))


@pytest.fixture
def fake(tmp_path, monkeypatch):
    """Write a shell script and make it the only compiler."""

    def use(script: str) -> None:
        path = tmp_path / "fake-cc"
        path.write_text(f"#!/bin/sh\n{script}\n", encoding="utf-8")
        path.chmod(0o755)
        monkeypatch.setenv("CC", str(path))
        forget()

    return use


@pytest.mark.parametrize("variable", ["CC", "PFL_LM_CFLAGS"])
def test_a_variable_that_is_no_list_of_words_is_named(place, monkeypatch, variable) -> None:
    monkeypatch.setattr(compiler, "_identify", lambda words: compiler.Compiler(words, "cc", "cc"))
    monkeypatch.setenv(variable, '"gcc')
    forget()
    with pytest.raises(ValueError, match=f"{variable}='\"gcc' is no list of words"):
        native.load("twice")


@needs_compiler
def test_a_source_is_compiled_once_and_runs(place) -> None:
    assert native.load("twice").twice(21.0) == 42.0
    (first,) = compiled(place)
    made = first.stat().st_mtime_ns
    forget()
    assert native.load("twice") is not None
    assert [path.stat().st_mtime_ns for path in compiled(place)] == [made]


@needs_compiler
def test_what_the_result_depends_on_is_compiled_separately(place, monkeypatch) -> None:
    native.load("twice")
    (place / "shared.h").write_text("/* nothing */\n", encoding="utf-8")
    forget()
    native.load("twice")
    monkeypatch.setenv("PFL_LM_CFLAGS", "-O1")
    forget()
    native.load("twice")
    assert len(compiled(place)) == 3


@needs_compiler
def test_one_library_that_does_not_compile_is_said_once_and_leaves_the_other(
    place, caplog, monkeypatch
) -> None:
    (place / "twice.c").write_text("no C at all", encoding="utf-8")
    assert native.load("twice") is None
    assert native.load("twice") is None
    assert caplog.text.count("twice.c is not compiled") == 1
    assert native.load("other").twice(2.0) == 4.0
    monkeypatch.setattr(native, "BINDINGS", {n: BINDINGS[n] for n in ("twice", "other")})
    said = native.backend()
    assert said["twice"].startswith("not compiled: ")
    assert re.fullmatch(r"(gcc|clang) \d+\.\d+\.\d+", said["other"])


@needs_compiler
@pytest.mark.parametrize("wrong", ["size", "function"])
def test_a_library_that_does_not_fit_its_description_is_refused(
    place, caplog, monkeypatch, wrong: str
) -> None:
    binding = twice_with(Shorter) if wrong == "size" else Binding({"thrice": (None,)})
    monkeypatch.setitem(BINDINGS, "twice", binding)
    assert native.load("twice") is None
    said = "struct pair has 40 bytes in C and 16" if wrong == "size" else "no function thrice"
    assert said in caplog.text
    assert native.load("other") is not None


def test_every_struct_has_the_fields_of_its_twin_in_c() -> None:
    """The order too, which sizes do not show."""
    text = "".join(path.read_text("utf-8") for path in sorted(native.SOURCES.glob("*.[ch]")))
    text = re.sub(r"/\*.*?\*/", "", text, flags=re.DOTALL)
    structs = {name: s for binding in BINDINGS.values() for name, s in binding.structs.items()}
    assert set(structs.values()) == {
        s for s in vars(bindings).values() if isinstance(s, type(ctypes.Structure))
    } - {ctypes.Structure}
    for name, struct in structs.items():
        (body,) = re.findall(rf"typedef struct \{{([^}}]*)\}} {name};", text)
        assert re.findall(r"\b(\w+)(?:\[\w+\])?(?=[,;])", body) == [f for f, *_ in struct._fields_]


@needs_compiler
def test_every_library_of_this_package_fits_its_description() -> None:
    if native.load("products") is None:
        pytest.skip("no C kernels: no compiler, or PFL_LM_NATIVE=0")
    assert {path.stem for path in native.SOURCES.glob("*.c")} == set(BINDINGS)
    assert not [name for name, said in native.backend().items() if said.startswith("not")]


@pytest.mark.parametrize("command", ["gcc", "clang"])
def test_no_source_has_a_warning(command: str) -> None:
    if shutil.which(command) is None:
        pytest.skip(f"{command} is not installed")
    flags = ("-Wall", "-Wextra", "-Wvla", "-Werror", "-Wno-psabi", "-fsyntax-only")
    for source in sorted(native.SOURCES.glob("*.c")):
        done = subprocess.run([command, *flags, str(source)], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr


# ── the cache ────────────────────────────────────────────────────────────────────────────────────


@needs_compiler
@pytest.mark.parametrize(
    ("below", "mode", "trusted"),
    [
        ("cache/pfl_lm/native", 0o777, False),
        ("cache/pfl_lm", 0o777, False),
        ("cache", 0o777, False),
        ("cache", 0o1777, True),
        ("cache", 0o755, True),
    ],
)
def test_a_cache_that_others_may_replace_is_not_trusted(
    place, caplog, below: str, mode: int, trusted: bool
) -> None:
    (place.parent / "cache" / "pfl_lm" / "native").mkdir(parents=True, mode=0o755)
    os.chmod(place.parent / below, mode)
    assert (native.load("twice") is not None) == trusted
    assert ("by others" in caplog.text) != trusted


def test_a_folder_of_another_user_or_of_a_group_is_not_trusted() -> None:
    def about(mode: int, uid: int, gid: int = 0) -> os.stat_result:
        return os.stat_result((mode, 0, 0, 1, uid, gid, 0, 0, 0, 0))

    shared, other = 2**31 - 7, os.getuid() + 1
    assert not compiler._may_be_changed_by_others(about(0o755, os.getuid()))
    assert not compiler._may_be_changed_by_others(about(0o1777, 0))
    assert compiler._may_be_changed_by_others(about(0o755, other))
    assert compiler._may_be_changed_by_others(about(0o1777, other))
    assert compiler._may_be_changed_by_others(about(0o775, os.getuid(), shared))


@needs_compiler
def test_without_a_home_folder_nothing_is_compiled(place, caplog, monkeypatch) -> None:
    def nobody():
        raise RuntimeError("no home")

    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(compiler.Path, "home", nobody)
    assert native.load("twice") is None
    assert "set XDG_CACHE_HOME" in caplog.text


# ── compilers that cannot be used ────────────────────────────────────────────────────────────────


def test_without_a_compiler_or_wish_there_is_none(place, monkeypatch) -> None:
    monkeypatch.setenv("PFL_LM_NATIVE", "0")
    assert native.load("twice") is None
    assert native.attempt("twice").outcome == "not compiled: PFL_LM_NATIVE=0"
    monkeypatch.delenv("PFL_LM_NATIVE")
    monkeypatch.setenv("PATH", str(place))
    forget()
    assert native.load("twice") is None


def test_a_compiler_that_is_too_old_or_unknown_is_said_once(place, fake, caplog) -> None:
    fake(
        'case "$1" in -dM) printf \'#define __GNUC__ 11\\n#define __VERSION__ "11.4.0"\\n\';; esac'
    )
    assert native.load("twice") is None
    assert native.load("other") is None
    (line,) = (record for record in caplog.records if record.name == compiler.__name__)
    assert "GCC 11.4.0, which lacks __builtin_shufflevector" in line.getMessage()
    assert "\n" not in line.getMessage()
    assert len(caplog.records) == 1
    fake("exit 0")
    assert native.load("twice") is None
    assert "neither GCC nor clang" in caplog.text
    fake("echo broken installation >&2; exit 3")
    assert native.load("twice") is None
    assert "broken installation" in caplog.text


@pytest.mark.parametrize("hangs", ["when asked", "when it compiles"])
def test_a_compiler_that_hangs_is_ended_and_not_called_again(
    place, fake, caplog, monkeypatch, tmp_path, hangs: str
) -> None:
    monkeypatch.setattr(compiler, "ASK_SECONDS", 0.3 if hangs == "when asked" else 30)
    monkeypatch.setattr(compiler, "COMPILE_SECONDS", 0.3)
    log = tmp_path / "calls"
    answer = "" if hangs == "when asked" else (
        'case "$1" in -dM) echo "#define __clang__ 1"; exit;; --version) exit;; esac'
    )  # fmt: skip
    fake(f"echo call >> {log}\n{answer}\nsleep 1000 & echo $! > {tmp_path}/child; wait")
    assert native.load("twice") is None
    called = log.read_text()
    assert native.load("other") is None
    assert log.read_text() == called
    assert "did not finish within 0.3 s" in caplog.text
    wait_for_the_end_of(int((tmp_path / "child").read_text()))
    assert not compiled(place)


def wait_for_the_end_of(process: int) -> None:
    """Return when it runs no more; a killed process may still be on its way out."""
    for _ in range(600):
        try:
            state = Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0]
        except OSError:
            return
        if state == "Z":
            return
        time.sleep(0.1)
    raise AssertionError("what the compiler started still runs")


def test_what_is_required_fails_instead_of_falling_back(place, fake, monkeypatch) -> None:
    fake("exit 1")
    monkeypatch.setenv("PFL_LM_NATIVE", "required")
    with pytest.raises(RuntimeError, match=r"twice\.c cannot be used: no usable C compiler"):
        native.load("twice")
    monkeypatch.setenv("PFL_LM_NATIVE", "yes")
    forget()
    with pytest.raises(ValueError, match="PFL_LM_NATIVE must be one of 1, 0, required: 'yes'"):
        native.load("twice")


def test_the_log_of_a_process_holds_one_line_for_all_libraries(tmp_path, fake) -> None:
    """As a user sees it: the whole package on a machine whose compiler is too old."""
    fake(
        'case "$1" in -dM) printf \'#define __GNUC__ 11\\n#define __VERSION__ "11.4.0"\\n\';; esac'
    )
    program = "from pfl_lm import native; print(set(native.backend().values()))"
    environment = {n: v for n, v in os.environ.items() if n not in ("PFL_LM_NATIVE",)}
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout == "{'not compiled: no usable C compiler'}\n"
    assert len(done.stderr.splitlines()) == 1
