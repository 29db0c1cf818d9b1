"""Imports point down only: the privacy path can be read without the rest."""

from __future__ import annotations

import ast
import graphlib
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "pfl_lm"

# From the lowest row up. A part may import lower rows, and nothing in its own row but itself.
ROWS = {
    "leaves": (
        "native",
        "streams",
        "version",
        "interrupts",
        "files",
        "numbers",
        "validate",
        "opacus_modules",
        "translations",
        "web_device",
    ),
    "helpers": ("recipes", "distributed", "pages"),
    "pillars": ("text", "models", "payload", "dp", "secagg"),
    "actors": ("devices", "server"),
    "simulated people": ("phones", "evaluation"),
    "run": ("run",),
    "questions": ("queries",),
    "reference": ("reference",),
    "vectors": ("conformance",),
    "a run's page": ("report",),
    "readers": (
        "audit",
        "export",
        "network",
        "interop",
        "demo",
        "project",
    ),
    "interface": ("api",),
    "faces": ("keyboard", "cli", "__main__"),
}
SIDEWAYS = {("cli", "keyboard"), ("__main__", "cli")}

# Imports that no row forbids and nobody may write: (who, whom), each a module or a folder.
NEVER = (
    ("run", "interop"),
    ("phones", "secagg.local"),
    ("export", "report"),
    ("audit.accounting", "dp"),
    ("audit.ledger", "dp"),
    ("audit.artifacts", "dp"),
    ("audit.chain", "dp"),
    ("audit.gaussians", "dp"),
    ("server", "devices.trace"),
)
# Where a policy holds no reviewed figures, the auditor asks the code under audit for them, and
# checks the answer like any statement.
EXCEPTIONS = {
    ("audit.accounting.policy_file", "dp.guarantee"),
    ("audit.accounting.policy_file", "dp.policy"),
}


def row_of(part: str) -> int:
    for row, parts in enumerate(ROWS.values()):
        if part in parts:
            return row
    raise AssertionError(f"pfl_lm/{part} stands in no row; give it one in {Path(__file__).name}")


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
        if other not in (None, part) and is_part(other) and (part, other) not in SIDEWAYS:
            assert row_of(other) < row_of(part), f"{part} imports {module}, not below it"


def test_no_files_import_each_other():
    """Not even for their types, nor within a part: a reader can begin at the bottom."""
    own = {
        path: ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts) for path in modules()
    }
    names = {name.removesuffix(".__init__") for name in own.values()}
    below = {
        own[path].removesuffix(".__init__"): names.intersection(imports_of(path)) for path in own
    }
    packages = {own[path].removesuffix(".__init__") for path in own if path.stem == "__init__"}
    files = {name: found - packages - {name} for name, found in below.items()}
    try:
        graphlib.TopologicalSorter(files).prepare()
    except graphlib.CycleError as error:
        pytest.fail("a circle of imports: " + " -> ".join(error.args[1]))


@pytest.mark.parametrize(("who", "whom"), NEVER, ids=lambda name: name)
def test_nobody_imports_what_they_never_may(who, whom):
    base = PACKAGE.joinpath(*who.split("."))
    paths = sorted(base.rglob("*.py")) if base.is_dir() else [base.with_suffix(".py")]
    for path in paths:
        own = ".".join(path.relative_to(PACKAGE).with_suffix("").parts)
        for module in imports_of(path):
            other = module.removeprefix("pfl_lm.")
            if not f"{other}.".startswith(f"{whom}."):
                continue
            excepted = any(own == a and f"{other}.".startswith(f"{b}.") for a, b in EXCEPTIONS)
            assert excepted, f"{own} imports {other}"


def test_every_exception_is_needed():
    for who, whom in EXCEPTIONS:
        path = PACKAGE.joinpath(*who.split(".")).with_suffix(".py")
        assert f"pfl_lm.{whom}" in imports_of(path), (who, whom)


def test_every_row_names_what_is_there():
    there = {path.stem for path in PACKAGE.iterdir() if path.suffix == ".py" or path.is_dir()}
    named = {part for parts in ROWS.values() for part in parts}
    assert named == there - {"__init__", "__pycache__"}


@pytest.mark.parametrize("part", ["dp", "secagg", "streams", "files"])
def test_the_privacy_path_needs_no_torch_to_be_read(part):
    paths = [PACKAGE / f"{part}.py"] if (PACKAGE / f"{part}.py").exists() else []
    for path in paths or sorted((PACKAGE / part).rglob("*.py")):
        assert not top_level_imports_of(path) & {"torch", "opacus", "dp_accounting"}, path


def test_importing_the_package_loads_nothing_heavy():
    code = (
        "import sys, pfl_lm, pfl_lm.cli;"
        "print([m for m in ('torch', 'opacus', 'scipy', 'pyarrow') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_reading_a_recipe_loads_no_torch():
    code = (
        "import sys; from pfl_lm.reference.kinds import KINDS, kind_of;"
        "from pfl_lm.reference.json_schema import json_schema;"
        "print([kind for kind in KINDS if json_schema(kind) and 'torch' in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_phone_loads_neither_statistics_nor_algebra():
    code = (
        "import sys, torch, pfl_lm.network.device; from pfl_lm.models.slopes import along;"
        "vectors = torch.ones(2, 3, requires_grad=True); slopes = torch.randn(2, 3);"
        "slope, = torch.autograd.grad(along([vectors], [slopes]), [vectors]);"
        "assert torch.equal(slope, slopes);"
        "print([m for m in ('scipy.stats', 'sympy') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
