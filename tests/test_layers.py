"""Imports point down only: the privacy path can be read without the rest."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "pfl_lm"

# Lower number = lower layer. A module may import its own layer only inside its own part.
LAYERS = (
    ("native", "interrupts"),
    ("streams", "files", "machine", "ranks"),
    ("directions", "row_draw", "payload_plan"),
    ("language", "payload", "dp", "secagg"),
    ("devices", "server"),
    ("recipes", "runs", "interop"),
    ("scenario", "model_file", "participation", "protection", "evaluation"),
    ("aggregation", "budget", "ways", "fit"),
    ("checkpoints", "central", "world"),
    ("attendance",),
    ("manifest",),
    ("resume",),
    ("books",),
    ("simulate", "report"),
    ("audit", "export", "demo", "network"),
    ("keyboard",),
    ("cli",),
    ("__main__",),
)


def layer_of(part: str) -> int:
    for level, parts in enumerate(LAYERS):
        if part in parts:
            return level
    raise AssertionError(f"pfl_lm/{part} has no layer; give it one in {Path(__file__).name}")


def part_of(module: str) -> str | None:
    names = module.split(".")
    return names[1] if names[0] == "pfl_lm" and len(names) > 1 else None


def is_part(name: str) -> bool:
    return (PACKAGE / f"{name}.py").exists() or (PACKAGE / name).is_dir()


def imports_of(path: Path) -> list[str]:
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            found += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    return found


def top_level_imports_of(path: Path) -> set[str]:
    body = ast.parse(path.read_text(encoding="utf-8")).body
    names: set[str] = set()
    for node in body:
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module.split(".")[0])
    return names


def modules() -> list[Path]:
    return sorted(path for path in PACKAGE.rglob("*.py") if path.parent != PACKAGE.parent)


@pytest.mark.parametrize("path", modules(), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_point_down(path):
    part = part_of(".".join(("pfl_lm", *path.relative_to(PACKAGE).with_suffix("").parts)))
    if part in (None, "__init__"):
        return
    for module in imports_of(path):
        other = part_of(module)
        if other not in (None, part) and is_part(other):
            assert layer_of(other) < layer_of(part), f"{part} imports {module}, not below it"


@pytest.mark.parametrize("part", ["dp", "secagg", "streams", "files"])
def test_the_privacy_path_needs_no_torch_to_be_read(part):
    paths = [PACKAGE / f"{part}.py"] if (PACKAGE / f"{part}.py").exists() else []
    for path in paths or sorted((PACKAGE / part).rglob("*.py")):
        assert not top_level_imports_of(path) & {"torch", "opacus", "dp_accounting"}, path


def test_the_server_cannot_see_a_trace():
    for path in sorted((PACKAGE / "server").rglob("*.py")):
        assert "Trace" not in path.read_text(encoding="utf-8"), path


def test_importing_the_package_loads_nothing_heavy():
    code = (
        "import sys, pfl_lm, pfl_lm.cli;"
        "print([m for m in ('torch', 'opacus', 'scipy', 'pyarrow') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
