"""Kernels that a wheel brings: which one a machine takes, and when it takes none."""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
import zipfile
from itertools import pairwise
from pathlib import Path

import pytest

from pfl_lm.native import compiler, prebuilt
from pfl_lm.native.prebuilt import Level

ROOT = Path(__file__).resolve().parents[2]
needs_compiler = pytest.mark.skipif(
    not any(map(shutil.which, ("cc", "gcc", "clang"))), reason="this machine has no C compiler"
)
HERE = platform.machine()
LOW, HIGH = Level("low", HERE, frozenset({"a"})), Level("high", HERE, frozenset({"a", "b"}))


@pytest.fixture
def sources(tmp_path, monkeypatch):
    """A folder with one C file and libraries of two levels, which are not opened."""
    monkeypatch.setattr(prebuilt, "LEVELS", (HIGH, LOW))
    prebuilt._digest.cache_clear()
    (tmp_path / "twice.c").write_text("double twice(double x) { return 2 * x; }\n")
    about = {"compiler": "gcc 99", "sources": prebuilt._digest(tmp_path)}
    for level in ("low", "high"):
        folder = tmp_path / "prebuilt" / level
        folder.mkdir(parents=True)
        (folder / "twice.so").touch()
        (folder / "about.json").write_text(json.dumps(about))
    yield tmp_path
    prebuilt._digest.cache_clear()


def test_the_highest_level_of_which_a_processor_has_everything(sources) -> None:
    folder = sources / "prebuilt"
    assert prebuilt.find(sources, "twice", {"a", "b", "c"}) == (
        folder / "high" / "twice.so",
        "in the wheel: gcc 99, high",
    )
    assert prebuilt.find(sources, "twice", {"a", "c"}) == (
        folder / "low" / "twice.so",
        "in the wheel: gcc 99, low",
    )
    assert prebuilt.find(sources, "twice", {"b"}) is None
    assert prebuilt.find(sources, "another", {"a", "b"}) is None


def test_another_kind_of_processor_takes_none(sources, monkeypatch) -> None:
    monkeypatch.setattr(prebuilt.platform, "machine", lambda: "riscv64")
    assert prebuilt.find(sources, "twice", {"a", "b"}) is None


def test_libraries_of_other_sources_are_not_taken(sources) -> None:
    (sources / "shared.h").write_text("/* an edit */\n")
    prebuilt._digest.cache_clear()
    assert prebuilt.find(sources, "twice", {"a", "b"}) is None


def test_every_level_contains_those_below_it() -> None:
    for machine in {level.machine for level in prebuilt.LEVELS}:
        levels = [level.flags for level in prebuilt.LEVELS if level.machine == machine]
        assert all(high >= low for high, low in pairwise(levels))


def test_a_kind_of_processor_that_nobody_compiles_for(tmp_path) -> None:
    with pytest.raises(ValueError, match="no kernels are compiled for vax; known: aarch64, x86_64"):
        prebuilt.build(tmp_path, tmp_path / "built", "vax")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """A wheel with this machine's kernels, of the lowest level only, unpacked."""
    if HERE not in ("x86_64", "aarch64") or sys.platform != "linux":
        pytest.skip(f"no wheel with kernels is built for {HERE} on {sys.platform}")
    source, target = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("installed")
    for folder in ("pfl_lm", "tokenizers", "simulations", "privacy"):
        leave = shutil.ignore_patterns("__pycache__", "web")
        shutil.copytree(ROOT / folder, source / folder, ignore=leave)
    for file in ("pyproject.toml", "setup.py", "MANIFEST.in", "README.md", "LICENSE"):
        shutil.copy(ROOT / file, source / file)
    module = source / "pfl_lm" / "native" / "prebuilt.py"
    text = module.read_text(encoding="utf-8")
    assert 'Level("x86-64-v4", "x86_64", _V4),\n    Level("x86-64-v3", "x86_64", _V3),\n' in text
    lowest = text.replace('    Level("x86-64-v4", "x86_64", _V4),\n', "").replace(
        '    Level("x86-64-v3", "x86_64", _V3),\n', ""
    )
    module.write_text(lowest, encoding="utf-8")
    subprocess.run(
        [sys.executable, "-m", "build", "--no-isolation", "--wheel", "--outdir", "dist"],
        cwd=source, env={**os.environ, "PFL_LM_KERNELS_FOR": HERE}, check=True, capture_output=True,
    )  # fmt: skip
    (built,) = (source / "dist").glob("*.whl")
    assert "-py3-none-manylinux_2_" in built.name
    assert built.name.endswith(f"_{HERE}.whl")
    with zipfile.ZipFile(built) as archive:
        archive.extractall(target)
    return target


@pytest.mark.wheel
@needs_compiler
def test_a_wheel_with_kernels_runs_them_where_there_is_no_compiler(wheel, tmp_path) -> None:
    program = (
        "from pfl_lm import native; print(sorted(set(native.backend().values())));"
        "assert native.load('encode') is not None"
    )
    environment = {
        n: v for n, v in os.environ.items() if n not in ("PFL_LM_NATIVE", "PFL_LM_CFLAGS")
    }
    environment |= {"PYTHONPATH": str(wheel), "PATH": str(tmp_path), "CC": ""}
    environment |= {"XDG_CACHE_HOME": str(tmp_path / "cache"), "PFL_LM_NATIVE": "required"}
    done = subprocess.run(
        [sys.executable, "-P", "-c", program],
        cwd=tmp_path, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    level = "x86-64-v2" if HERE == "x86_64" else "armv8-a"
    compiled = compiler.find()
    assert compiled is not None
    assert done.stdout == f"['in the wheel: {compiled.name}, {level}']\n"
    assert not (tmp_path / "cache").exists()
