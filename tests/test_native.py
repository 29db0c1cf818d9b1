"""Compiled loops: built once, kept per machine, and never needed."""

from __future__ import annotations

import ctypes
import os
import shutil

import pytest

from pfl_lm import native

TWICE = "double twice(double x) { return 2 * x; }\n"

needs_compiler = pytest.mark.skipif(
    not any(map(shutil.which, ("cc", "gcc", "clang"))), reason="this machine has no C compiler"
)


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder of sources and a cache of the test's own."""
    sources, cache = tmp_path / "sources", tmp_path / "cache"
    sources.mkdir()
    (sources / "twice.c").write_text(TWICE, encoding="utf-8")
    monkeypatch.setattr(native, "SOURCES", sources)
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    monkeypatch.delenv("PFL_LM_NATIVE", raising=False)
    native.library.cache_clear()
    yield sources
    native.library.cache_clear()


def compiled(place):
    return sorted((place.parent / "cache").rglob("*.so"))


@needs_compiler
def test_a_source_is_compiled_once_and_runs(place):
    loaded = native.library("twice")
    loaded.twice.restype, loaded.twice.argtypes = ctypes.c_double, [ctypes.c_double]
    assert loaded.twice(21.0) == 42.0
    (first,) = compiled(place)
    made = first.stat().st_mtime_ns
    native.library.cache_clear()
    assert native.library("twice") is not None
    assert [path.stat().st_mtime_ns for path in compiled(place)] == [made]


@needs_compiler
def test_a_changed_source_or_header_is_compiled_anew(place):
    native.library("twice")
    (place / "shared.h").write_text("/* nothing */\n", encoding="utf-8")
    native.library.cache_clear()
    native.library("twice")
    assert len(compiled(place)) == 2


@needs_compiler
def test_what_does_not_compile_is_said_once_and_done_without(place, caplog):
    (place / "twice.c").write_text("no C at all", encoding="utf-8")
    assert native.library("twice") is None
    assert native.library("twice") is None
    assert caplog.text.count("twice.c was not compiled") == 1
    assert not compiled(place)


@needs_compiler
def test_a_cache_that_others_may_write_is_not_trusted(place, caplog):
    folder = place.parent / "cache" / "pfl_lm" / "native"
    folder.mkdir(parents=True)
    os.chmod(folder, 0o777)
    assert native.library("twice") is None
    assert "may be written by others" in caplog.text


def test_without_a_compiler_or_wish_there_is_none(place, monkeypatch):
    monkeypatch.setenv("PFL_LM_NATIVE", "0")
    assert native.library("twice") is None
    monkeypatch.delenv("PFL_LM_NATIVE")
    monkeypatch.setenv("PATH", str(place))
    monkeypatch.setenv("CC", "")
    native.library.cache_clear()
    assert native.library("twice") is None
